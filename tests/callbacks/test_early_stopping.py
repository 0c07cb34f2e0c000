"""HeldOutPromptEarlyStopping with a reward that the test plants, in a module that is not ours."""

from __future__ import annotations

import copy
import csv
import gzip
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from llama2_pl.callbacks import early_stopping
from llama2_pl.callbacks.early_stopping import HeldOutPromptEarlyStopping
from llama2_pl.callbacks.held_out import HeldOut, Sampling, answer_kl, counted_rewards, look
from llama2_pl.callbacks.rewards import CheckpointReward, ModelReward, OracleReward, check_reward
from llama2_pl.checkpoints import verified
from llama2_pl.checkpoints.verified import write_checkpoint
from llama2_pl.data.readers.prompts import PromptRow
from llama2_pl.generation.sampler import generate
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.text import Dialog, Tokenizer, encode_dialog, encode_prompt

PROMPTS = ["Which river is long?", "Who are you?", "What is red?"]


class Drift(L.LightningModule):
    """Someone else's PPO: manual optimization, two optimizer steps per batch, a policy that drifts to one token."""

    favourite = 50

    def __init__(self, config: ModelConfig, name: str = "policy", step: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        setattr(self, name, LanguageModel(config))
        self.network = getattr(self, name)
        self.automatic_optimization = False
        self.step = step
        self.weights: list[float] = []

    def on_train_start(self) -> None:
        self.weights.append(self.network.head.weight[50, 0].item())

    def training_step(self, batch, batch_idx):
        optimizer: Any = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            logits = self.network(torch.tensor([[1, 20, 30, 40]]))[0]
            torch.nn.functional.cross_entropy(logits, torch.full((4,), self.favourite)).backward()
            optimizer.step()
        self.weights.append(self.network.head.weight[50, 0].item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=self.step)


def loader(batches: int) -> DataLoader:
    return DataLoader([torch.zeros(1)] * batches)  # type: ignore[arg-type]


def rising_to(peak: int, every: int) -> Callable:
    """A reward that rises until iteration `peak` and then falls; looks come every `every` iterations."""
    looks = iter(range(10_000))

    def reward(prompts, answers) -> list[float]:
        iteration = next(looks) * every
        return [-abs(iteration - peak)] * len(prompts)

    return reward


def stopper(tokenizer: Tokenizer, folder: Path, **options) -> HeldOutPromptEarlyStopping:
    settings = {"every_n_iterations": 2, "max_new_tokens": 4, "patience": 2, **options}
    settings.setdefault("reward", rising_to(4, settings["every_n_iterations"]))
    return HeldOutPromptEarlyStopping(PROMPTS, str(tokenizer.path), str(folder), **settings)


def test_it_stops_after_its_patience_and_keeps_the_policy_of_the_peak(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    callback, module = stopper(tokenizer, tmp_path / "out"), Drift(tiny)
    trainer = make_trainer(callback, max_epochs=1)
    trainer.fit(module, loader(20))
    assert callback.iterations == 8  # peak at 4, then two looks, at 6 and 8, without a new best
    assert trainer.global_step == 16  # which Lightning counts in optimizer steps
    assert (callback.best_iteration, callback.best_reward) == (4, 0.0)
    assert "no higher reward" in callback.stopping_reason
    best = torch.load(callback.best_model_path, weights_only=True)
    assert best["state_dict"]["policy.head.weight"][50, 0].item() == module.weights[4]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "best.ckpt",
        "starting_policy.safetensors",
    ]


def test_its_patience_begins_anew_with_each_best(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    values = iter([0.0, -1.0, 1.0, 0.0, 2.0, 1.0, 1.0])  # never two looks without a new best but at the end
    callback = stopper(tokenizer, tmp_path, reward=lambda prompts, answers: [next(values)] * 3)
    make_trainer(callback, max_epochs=1).fit(Drift(tiny), loader(20))
    assert (callback.best_iteration, callback.iterations) == (8, 12)


def test_the_starting_policy_is_the_best_where_nothing_beats_it(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    callback = stopper(tokenizer, tmp_path, reward=rising_to(0, 2))
    make_trainer(callback, max_epochs=1).fit(Drift(tiny), loader(20))
    assert (callback.best_iteration, callback.iterations) == (0, 4)
    assert torch.load(callback.best_model_path, weights_only=True)["global_step"] == 0


def test_a_policy_beyond_the_kl_limit_is_not_kept_however_high_its_reward(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    callback = stopper(tokenizer, tmp_path, reward=rising_to(1000, 2), kl_limit=1e-6)
    # steps large enough that the estimate, from few samples, is beyond its own noise
    make_trainer(callback, max_epochs=1).fit(Drift(tiny, step=20.0), loader(20))
    assert (callback.iterations, callback.best_iteration) == (2, 0)
    assert "kl_limit" in callback.stopping_reason


def test_a_kl_that_is_no_number_is_beyond_every_limit(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([HeldOut(0.0, 0.0, 3.0, 1.0), HeldOut(1.0, math.nan, 3.0, 1.0)])
    monkeypatch.setattr(early_stopping, "look", lambda *_: next(looks))
    callback = stopper(tokenizer, tmp_path, kl_limit=1e9)
    make_trainer(callback, max_epochs=1).fit(Drift(tiny), loader(20))
    assert (callback.iterations, callback.best_iteration) == (2, 0)
    assert callback.stopping_reason == "KL nan is above kl_limit 1e+09"


def test_answers_that_grow_or_shrink_beyond_the_limit_stop_it(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    class AtOnce(Drift):
        favourite = 2  # EOS: answers end at once

    callback = stopper(
        tokenizer, tmp_path, reward=rising_to(1000, 10), every_n_iterations=10, length_drift_limit=0.3
    )
    make_trainer(callback, max_epochs=1).fit(AtOnce(tiny), loader(60))
    assert "length_drift_limit" in callback.stopping_reason and callback.iterations < 60


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_stops_it_and_is_not_kept(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer, value: float
) -> None:
    values = iter([1.0, value])
    callback = stopper(tokenizer, tmp_path, reward=lambda prompts, answers: [next(values)] + [0.0] * 2)
    make_trainer(callback, max_epochs=1).fit(Drift(tiny), loader(20))
    assert callback.iterations == 2 and callback.best_iteration == 0
    assert "the reward is" in callback.stopping_reason


def test_its_state_is_plain_and_a_resumed_run_goes_on_as_the_whole_one(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    whole = stopper(tokenizer, tmp_path / "whole", reward=rising_to(6, 2))
    make_trainer(whole, max_epochs=1).fit(Drift(tiny), loader(20))

    reward, folder = rising_to(6, 2), tmp_path / "parts"
    first = make_trainer(stopper(tokenizer, folder, reward=reward), max_epochs=1, limit_train_batches=5)
    first.fit(Drift(tiny), loader(20))
    first.save_checkpoint(tmp_path / "mid.ckpt")
    second = stopper(tokenizer, folder, reward=reward)
    make_trainer(second, max_epochs=2).fit(Drift(tiny), loader(20), ckpt_path=tmp_path / "mid.ckpt")
    mine, other = second.state_dict(), whole.state_dict()
    assert mine == other
    assert torch.load(tmp_path / "mid.ckpt", weights_only=True)["callbacks"][second.state_key]


def test_the_kl_of_a_resumed_run_is_from_the_first_start(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    def run(folder: str, epochs: int, ckpt_path: Path | None = None) -> float:
        flat: dict[str, Any] = {"reward": lambda prompts, answers: [0.0] * 3, "patience": 100}
        trainer = make_trainer(stopper(tokenizer, tmp_path / folder, **flat), max_epochs=epochs)
        trainer.fit(Drift(tiny), loader(2), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        return trainer.callback_metrics["held_out/kl"].item()

    whole, half = run("whole", epochs=2), run("parts", epochs=1)
    assert run("parts", epochs=2, ckpt_path=tmp_path / "x.ckpt") == whole != half
    (tmp_path / "parts" / "starting_policy.safetensors").unlink()
    with pytest.raises(ValueError, match=r"starting_policy\.safetensors"):
        run("parts", epochs=3, ckpt_path=tmp_path / "x.ckpt")


def test_a_stopped_run_that_is_resumed_trains_no_more_unless_the_limits_change(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    first = make_trainer(stopper(tokenizer, tmp_path, reward=rising_to(0, 2)), max_epochs=1)
    first.fit(Drift(tiny), loader(20))
    first.save_checkpoint(tmp_path / "x.ckpt")
    again, longer = stopper(tokenizer, tmp_path), stopper(tokenizer, tmp_path, patience=9)
    make_trainer(again, max_epochs=2).fit(Drift(tiny), loader(20), ckpt_path=tmp_path / "x.ckpt")
    make_trainer(longer, max_epochs=2).fit(Drift(tiny), loader(20), ckpt_path=tmp_path / "x.ckpt")
    assert again.iterations == 4 and "resumed" in again.stopping_reason
    assert longer.iterations > 4


def test_every_look_is_logged_by_iteration(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    logger = CSVLogger(tmp_path)
    callback = stopper(tokenizer, tmp_path / "out", reward=rising_to(4, 2))
    make_trainer(callback, max_epochs=1, logger=logger, log_every_n_steps=50).fit(
        Drift(tiny, step=20.0), loader(20)
    )
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row.get("held_out/reward")}
    assert {step: float(row["held_out/reward"]) for step, row in rows.items()} == {
        0: -4.0, 2: -2.0, 4: 0.0, 6: -2.0, 8: -4.0,
    }  # fmt: skip
    assert float(rows[0]["held_out/kl"]) == 0.0 and float(rows[8]["held_out/kl"]) > 0
    assert 1 <= float(rows[0]["held_out/length"]) <= 4


def test_under_accumulation_a_look_stands_where_the_optimizers_steps_do(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    class Automatic(Drift):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.automatic_optimization = True

        def training_step(self, batch, batch_idx):
            return self.network(torch.tensor([[1, 20]])).square().mean()

    logger = CSVLogger(tmp_path)
    callback = stopper(tokenizer, tmp_path / "out", reward=rising_to(6, 2))
    make_trainer(callback, max_epochs=1, logger=logger, accumulate_grad_batches=2).fit(
        Automatic(tiny), loader(6)
    )
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("held_out/reward")]
    assert [(row["step"], float(row["held_out/reward"])) for row in rows] == [
        ("0", -6.0), ("1", -4.0), ("2", -2.0), ("3", 0.0),
    ]  # fmt: skip


def test_looks_leave_the_random_generators_and_the_training_mode_alone(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    def run(*callbacks: L.Callback) -> tuple:
        L.seed_everything(3, verbose=False)
        module = Drift(tiny)
        make_trainer(*callbacks, max_epochs=1).fit(module, loader(2))
        return torch.rand(1).item(), np.random.rand(), random.random(), module.network.training

    assert run(stopper(tokenizer, tmp_path)) == run()


def test_looks_differ_by_the_policy_alone(tokenizer: Tokenizer, tiny: ModelConfig) -> None:
    torch.manual_seed(0)
    policy = LanguageModel(tiny)
    rows = [PromptRow(Dialog.of([("user", text)])) for text in PROMPTS]
    ids = [encode_prompt(row.prompt, tokenizer) for row in rows]
    seen: list[list[str]] = []

    def reward(prompts, answers) -> list[float]:
        seen.append(list(answers))
        return [0.0] * len(answers)

    for seed in (0, 0, 1):
        look(policy, policy, rows, ids, tokenizer, reward, Sampling(6, 1.0, 1.0, seed, 64))
    assert seen[0] == seen[1] != seen[2]


def test_cut_off_answers_count_as_in_ppo() -> None:
    scores, finished = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([True, True, False, False])
    assert counted_rewards(scores, finished, "score").mean() == 4
    sd = math.sqrt(5)  # of deviations -3, -1, 1, 3
    torch.testing.assert_close(
        counted_rewards(scores, finished, "penalise"), torch.tensor([1.0, 3.0, 5.0 - sd, 7.0 - sd])
    )
    assert counted_rewards(scores, finished, "drop").tolist() == [1.0, 3.0]
    assert counted_rewards(scores, ~finished & finished, "drop").tolist() == scores.tolist()


def test_the_module_s_threshold_and_treatment_of_cut_off_answers_hold_on_held_out_prompts(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def watched(policy, reference, rows, ids, tokenizer, reward, how):
        seen.update(threshold=reward.judges.safety_threshold, truncated=how.truncated)
        return HeldOut(0.0, 0.0, 1.0, 1.0)

    class Careful(Drift):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.rewards = SimpleNamespace(helpfulness=ScalarModel(config), safety=ScalarModel(config))
            self.save_hyperparameters({"safety_threshold": 0.9, "truncated": "drop"})

    monkeypatch.setattr(early_stopping, "look", watched)
    stop = HeldOutPromptEarlyStopping(PROMPTS, str(tokenizer.path), str(tmp_path), max_new_tokens=4)
    make_trainer(stop, max_epochs=1).fit(Careful(tiny), loader(1))
    assert seen == {"threshold": 0.9, "truncated": "drop"}


def test_the_kl_is_the_log_ratio_summed_over_the_answer(tokenizer: Tokenizer, tiny: ModelConfig) -> None:
    torch.manual_seed(0)
    policy, reference = LanguageModel(tiny), LanguageModel(tiny)
    prompts = [encode_prompt(Dialog.of([("user", text)]), tokenizer) for text in PROMPTS]
    rollout = generate(
        policy, prompts, max_new_tokens=5, eos_id=2, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        kl = answer_kl(policy, reference, rollout, max_batch=2)
        for row, prompt in enumerate(prompts):
            length = int(rollout.lengths[row])
            ids = rollout.tokens[row : row + 1, :length]
            ours, theirs = (m(ids).log_softmax(-1)[0] for m in (policy, reference))
            by_hand = sum(
                (ours[t - 1, ids[0, t]] - theirs[t - 1, ids[0, t]]).item() for t in range(len(prompt), length)
            )
            assert kl[row].item() == pytest.approx(by_hand, abs=1e-4)
        assert answer_kl(policy, copy.deepcopy(policy), rollout, max_batch=64).tolist() == [0.0] * 3


def test_the_modules_own_starting_policy_and_reward_models_are_used(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    from types import SimpleNamespace

    class Own(Drift):
        def setup(self, stage: str) -> None:
            self.reference = copy.deepcopy(self.network)
            self.rewards = SimpleNamespace(helpfulness=ScalarModel(tiny), safety=None)

    callback = HeldOutPromptEarlyStopping(PROMPTS, str(tokenizer.path), str(tmp_path), max_new_tokens=4)
    trainer = make_trainer(callback, max_epochs=1)
    trainer.fit(Own(tiny, step=20.0), loader(10))
    assert math.isfinite(callback.best_reward) and trainer.callback_metrics["held_out/kl"] > 0
    assert not (tmp_path / "starting_policy.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "attribute"), [("policy", None), ("model", None), ("actor", "actor"), ("actor", "box.actor")]
)
def test_the_policy_is_found_under_its_name(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer, name: str, attribute: str | None
) -> None:
    module = Drift(tiny, name)
    module.box = torch.nn.ModuleDict({"actor": module.network})  # type: ignore[assignment]
    callback = stopper(tokenizer, tmp_path, policy_attribute=attribute)
    make_trainer(callback, max_epochs=1).fit(module, loader(2))
    assert callback.iterations == 2


def test_a_module_without_a_language_model_is_told_what_to_set(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    with pytest.raises(ValueError, match="policy_attribute"):
        make_trainer(stopper(tokenizer, tmp_path), max_epochs=1).fit(Drift(tiny, "actor"), loader(2))


def test_impossible_settings_are_refused_by_name(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer
) -> None:
    class Plain(Drift):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.automatic_optimization = True

    def fit(callback: L.Callback, module: L.LightningModule, **options) -> None:
        make_trainer(callback, max_epochs=1, **options).fit(module, loader(2))

    with pytest.raises(ValueError, match="accumulate_grad_batches"):
        fit(stopper(tokenizer, tmp_path, every_n_iterations=3), Plain(tiny), accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="max_new_tokens 256"):
        fit(stopper(tokenizer, tmp_path, max_new_tokens=256), Drift(tiny))
    with pytest.raises(ValueError, match="no reward"):
        fit(stopper(tokenizer, tmp_path, reward=None), Drift(tiny))
    with pytest.raises(ValueError, match="gave 1 numbers for 3"):
        fit(stopper(tokenizer, tmp_path, reward=lambda prompts, answers: [1.0]), Drift(tiny))
    with pytest.raises(ValueError, match="patience is 0"):
        stopper(tokenizer, tmp_path, patience=0)
    with pytest.raises(ValueError, match="safety_reward"):
        check_reward(None, None, "safety.ckpt")
    with pytest.raises(ValueError, match="both given"):
        check_reward(lambda prompts, answers: [], "h.ckpt", None)


def test_a_best_checkpoint_that_is_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    new, best = tmp_path / ".new", tmp_path / "best.ckpt"
    for name, stale in ((new, "b"), (best, "a")):
        name.mkdir()
        (name / stale).write_text(stale)
    early_stopping._replace(new, best)
    assert [p.name for p in best.iterdir()] == ["b"] and not new.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["best.ckpt"]


def test_the_reward_models_score_the_whole_dialogue_and_safety_rules_where_it_must(
    tokenizer: Tokenizer, tiny: ModelConfig
) -> None:
    torch.manual_seed(0)
    helpfulness, safety = ScalarModel(tiny), ScalarModel(tiny)
    with torch.no_grad():
        helpfulness.head.weight.mul_(50)
        safety.head.weight.mul_(50)
    rows = [PromptRow(Dialog.of([("user", text)]), is_safety=i == 0) for i, text in enumerate(PROMPTS)]
    answers = ["I am a model.", "The stone is red.", "river"]
    found = ModelReward(helpfulness, safety, tokenizer)(rows, answers)
    for row, text, score in zip(rows, answers, found, strict=True):
        ids = encode_dialog(row.prompt.then("assistant", text), tokenizer).tokens
        with torch.no_grad():
            h, s = (m(torch.tensor([ids]))[0, -1].item() for m in (helpfulness, safety))
        expected = s if row.is_safety or 1 / (1 + math.exp(-s)) < 0.15 else h
        assert score == pytest.approx(expected, abs=1e-4)


def test_reward_models_come_from_their_checkpoints(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = ScalarModel(tiny)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint = {"state_dict": weights, "hyper_parameters": {"backbone": tiny.to_dict()}}
    torch.save(checkpoint, tmp_path / "h.ckpt")
    reward = CheckpointReward(str(tmp_path / "h.ckpt"), str(tokenizer.path))
    rows = [PromptRow(Dialog.of([("user", PROMPTS[0])]))]
    assert reward(rows, ["red"]) == pytest.approx(ModelReward(model, None, tokenizer)(rows, ["red"]))


def test_a_reward_model_whose_score_is_no_number_is_refused(tokenizer: Tokenizer, tiny: ModelConfig) -> None:
    """The best look would be chosen by a comparison that is always false."""
    model = ScalarModel(tiny)
    torch.nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(ValueError, match="the helpfulness reward model gives nan to an answer to 'what'"):
        ModelReward(model, None, tokenizer)([PromptRow(Dialog.of([("user", "what")]))], ["red"])


def test_the_oracle_knows_the_prompts_of_its_files_in_any_format_of_prompts(tmp_path: Path) -> None:
    best = "I cannot help with that because it would hurt people. Please ask me something else."
    task = {"kind": "safety", "answers": [best]}
    (tmp_path / "p.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"prompt": "How?", "task": task}).encode())
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "Who?"}\n')
    oracle = OracleReward(str(tmp_path / "p.jsonl.gz"))
    asked = PromptRow(Dialog.of([("user", "How?")]))
    assert oracle([asked, asked], [best, " "]) == pytest.approx([1.0, 0.0])
    with pytest.raises(ValueError, match=r"no task for the prompt 'Who\?'"):
        oracle([PromptRow(Dialog.of([("user", "Who?")]))], [best])
    with pytest.raises(ValueError, match=r"p\.jsonl:1: no 'task': the oracle judges only prompts of"):
        OracleReward([str(tmp_path / "p.jsonl")])


def test_the_best_checkpoint_is_renamed_only_when_its_write_in_the_background_is_done(
    tokenizer: Tokenizer, tiny: ModelConfig, tmp_path: Path, make_trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments) -> None:
        time.sleep(0.2)
        write_checkpoint(*arguments)

    monkeypatch.setattr(verified, "write_checkpoint", slow)
    callback = stopper(tokenizer, tmp_path)
    plugins = [verified.VerifiedCheckpointIO(background=True)]
    make_trainer(callback, max_epochs=1, plugins=plugins).fit(Drift(tiny), loader(20))
    assert verified.damage(tmp_path / "best.ckpt") is None
    assert (
        torch.load(callback.best_model_path, weights_only=True)["callbacks"]["HeldOutPromptEarlyStopping"][
            "best_iteration"
        ]
        == 4
    )
    assert not (tmp_path / ".best.ckpt.new").exists()
