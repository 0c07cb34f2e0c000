"""PPODoctor: silent on a sound run, and each planted fault named in words."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import Tensor

from llama2_pl.callbacks import PPODoctor, doctor
from llama2_pl.callbacks.doctor_numbers import (
    correlation,
    judge_numbers,
    judge_start,
    last_tokens,
    prompt_numbers,
    repeated_share,
)
from llama2_pl.data.batches import PromptBatch
from llama2_pl.data.readers.prompts import PromptRow
from llama2_pl.evaluation.doctor import RULES, Limits, diagnose
from llama2_pl.files import append_line
from llama2_pl.generation.sampler import generate
from llama2_pl.model.config import ModelConfig
from llama2_pl.modules import PPOModule, PretrainModule, RewardModule
from llama2_pl.modules.policy import Scored
from llama2_pl.text.chat import Dialog

PROMPTS, ITERATIONS = 16, 3


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory) -> dict[str, str]:
    """Checkpoints of a policy and two reward models; the policy's EOS is likely enough to end some answers."""
    folder = tmp_path_factory.mktemp("doctor")
    L.seed_everything(0, verbose=False)
    config = ModelConfig(
        dim=16, n_layers=1, n_heads=2, vocab_size=tokenizer.vocab_size, multiple_of=16, max_seq_len=64
    )
    found = {"tokenizer": str(tokenizer.path)}
    for name, kind in (
        ("policy", PretrainModule),
        ("other", PretrainModule),
        ("helpfulness_reward", RewardModule),
        ("safety_reward", RewardModule),
    ):
        module = kind(config)
        module.configure_model()
        if kind is PretrainModule:
            module.model.head.weight.data[2] += 0.5
            module.model.head.weight.data *= 3  # answers that differ
        found[name] = str(folder / f"{name}.ckpt")
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, found[name])
    return found


class Prompts(L.LightningDataModule):
    """Other prompts in each iteration."""

    def __init__(self, bos: int = 1) -> None:
        super().__init__()
        self.bos = bos
        self.rows = [PromptRow(Dialog.of([("user", f"question {i}")])) for i in range(PROMPTS * ITERATIONS)]

    def train_dataloader(self):
        def batch(n: int) -> PromptBatch:
            index = torch.arange(n * PROMPTS, (n + 1) * PROMPTS)
            ids = [[1] * self.bos + [5 + i % 40, 6 + i % 30, 7] for i in index.tolist()]
            return PromptBatch(ids, index % 2 == 0, index)

        batches = [batch(n) for n in range(ITERATIONS)]
        return torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda x: x)  # type: ignore[arg-type]


def fit(files, kind=PPOModule, bos=1, doctor=None, **options) -> PPODoctor:
    """A few iterations under a doctor that says everything and stops nothing."""
    doctor = doctor or PPODoctor(stop=False)
    given = {name: path for name, path in files.items() if name != "other"}
    settings = {"lr": 1e-3, "max_new_tokens": 8, "minibatch_size": 8, "beta": 0.1, "truncated": "score"}
    module = kind(**{**given, **settings, **options})
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, callbacks=[doctor],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Prompts(bos))
    return doctor


class ShiftedMask(PPOModule):
    """Learns from the token after each of the answer's."""

    def experience(self, rollout, scored, outputs):
        made = super().experience(rollout, scored, outputs)
        return made._replace(mask=made.mask.roll(-1, 1))


class WrongReference(PPOModule):
    """Measures the KL to another model than it started from."""

    other = ""

    def setup(self, stage):
        super().setup(stage)
        from llama2_pl.checkpoints.ours import load_language_model

        self._reference = (self.frozen(load_language_model(self.other)),)


class DeafToEos(PPOModule):
    """The sampler does not know the tokenizer's EOS."""

    def sample(self, prompts, generator):
        hp = self.hparams
        return generate(
            self.policy, prompts, max_new_tokens=hp["max_new_tokens"], eos_id=200, generator=generator
        )


class FlippedReward(PPOModule):
    """A minus sign between the score and what is learned from."""

    def experience(self, rollout, scored, outputs):
        return super().experience(rollout, scored._replace(scores=-scored.scores), outputs)


class StaleRollouts(PPOModule):
    """Learns from the answers of the iteration before, to the prompts of now."""

    kept = None

    def sample(self, prompts, generator):
        old, self.kept = self.kept, super().sample(prompts, generator)
        return old if old is not None else self.kept


class ExplodedValue(PPOModule):
    """Values in another unit than the rewards."""

    def read_rollout(self, rollout):
        made = super().read_rollout(rollout)
        return made._replace(values=made.values + 300 * rollout.response_mask)


class Unwhitened(PPOModule):
    """The plain score at the end of each answer, in thousands."""

    def experience(self, rollout, scored, outputs):
        made = super().experience(rollout, scored, outputs)
        rewards = torch.where(last_tokens(made.mask), 7 + 1000 * scored.scores[:, None], made.rewards)
        return made._replace(rewards=rewards)


PLANTED = {
    "shifted_mask": ({"kind": ShiftedMask}, "between prompt|after the prompt"),
    "wrong_reference": ({"kind": WrongReference}, "before any update"),
    "ignored_eos": ({"kind": DeafToEos}, "EOS"),
    "doubled_bos": ({"bos": 2}, "BOS twice"),
    "flipped_reward": ({"kind": FlippedReward}, "falls where"),
    "stale_rollouts": ({"kind": StaleRollouts, "lr": 0.05}, "another policy sampled"),
    "exploded_value_loss": ({"kind": ExplodedValue, "value_clip": None}, "value loss"),
    "unwhitened_reward": ({"kind": Unwhitened}, "off 0 and 1"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_each_planted_fault_is_named_with_a_way_out(files, fault):
    options, words = PLANTED[fault]
    WrongReference.other = files["other"]
    doctor = fit(files, **options)
    assert doctor.seen[fault] > 0, doctor.seen
    rule = next(rule for rule in RULES if rule.name == fault)
    assert any(part in rule.meaning for part in words.split("|")) and rule.advice


def test_stale_rollouts_of_a_policy_that_hardly_moved_are_seen_by_their_prompts(files):
    doctor = fit(files, kind=StaleRollouts, lr=1e-6)
    assert doctor.seen["foreign_prompts"] == ITERATIONS - 1 and doctor.seen["stale_rollouts"] == 0


def test_the_sampler_is_compared_at_any_temperature(files):
    assert fit(files, kind=StaleRollouts, lr=0.05, temperature=0.7).seen["stale_rollouts"] > 0
    sound = fit(files, lr=0.05, temperature=0.7)
    assert sound.seen["stale_rollouts"] == sound.seen["foreign_prompts"] == 0


def test_the_samplers_own_logprobs_are_no_fault_and_hide_none(files):
    WrongReference.other = files["other"]
    sound = fit(files, lr=0.05, old_logprobs="sampler")
    assert not {"wrong_reference", "stale_rollouts", "ratio_not_one", "scattered_ratio"} & set(sound.seen)
    assert sound.start["entropy"] > 0
    stale = fit(files, kind=StaleRollouts, lr=0.05, old_logprobs="sampler")
    other = fit(files, kind=WrongReference, old_logprobs="sampler")
    assert stale.seen["stale_rollouts"] > 0 and other.seen["wrong_reference"] > 0


@pytest.mark.parametrize("truncated", ["score", "penalise", "drop"])
def test_a_sound_run_has_no_finding_that_a_bug_would_cause(files, truncated, tmp_path):
    doctor = fit(files, truncated=truncated, doctor=PPODoctor(stop=True, dirpath=str(tmp_path)))
    # tiny random networks end few answers and predict no value: those warnings are true
    assert set(doctor.seen) <= {"few_eos", "useless_value", "repeated_text", "looks_unsafe"}
    lines = [json.loads(line) for line in (tmp_path / "doctor.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    first, last = lines[0]["numbers"], lines[-1]["numbers"]
    assert first["start_kl"] == 0.0 and "start_kl" not in last
    assert first["ratio_error"] < 1e-5 and last["ratio_error"] < 1e-5
    assert last["penalty_slope"] == pytest.approx(0.1, abs=0.02)  # beta
    assert first["branch_tagged"] == 0.5


def test_a_fatal_finding_stops_the_run_with_advice(files):
    with pytest.raises(RuntimeError, match=r"iteration 0: doubled_bos: .*Way out: let encode_prompt alone"):
        fit(files, bos=2, doctor=PPODoctor(stop=True))


def test_limits_are_arguments(files):
    strict = fit(files, doctor=PPODoctor(stop=False, limits=Limits(eos_rate=1.1)))
    assert strict.seen["few_eos"] == ITERATIONS


def test_judges_measure_the_goodhart_gap(files):
    seen: list[tuple[int, str]] = []

    def gold(rows, answers):
        seen.extend((len(answers), row.prompt.messages[0].content) for row in rows)
        return [float(len(text)) for text in answers]

    doctor = PPODoctor(stop=False, gold=gold)
    fit(files, doctor=doctor)
    assert len(seen) == PROMPTS * ITERATIONS and seen[0] == (PROMPTS, "question 0")
    assert doctor.judge_start["gold"]["count"] == PROMPTS


def test_a_gap_by_hand():
    # start: reward 0, 2 (mean 1, sd 1), gold 1, 3 (mean 2, sd 1). Now reward 3, 5 (3 sd up), gold 2, 4 (1 sd up).
    start = judge_start(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))
    numbers = judge_numbers("gold", torch.tensor([3.0, 5.0]), torch.tensor([2.0, 4.0]), start)
    assert numbers["goodhart_gold"] == pytest.approx(2.0)
    assert numbers["goodhart_gold_low"] == pytest.approx(2.0)  # both rise by the same in every answer
    (finding,) = diagnose(numbers, Limits().settled(True))
    assert finding.name == "goodhart_gold" and "2 standard deviations" in finding.words


def test_numbers_by_hand():
    assert prompt_numbers([[1, 5], [1, 1, 5], [5, 6], [1, 7]], bos_id=1) == {
        "doubled_bos": 0.25,
        "missing_bos": 0.25,
    }
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_share([1, 2, 3, 4]) is None
    assert correlation(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1])) == pytest.approx(-1.0)
    assert correlation(torch.ones(3), torch.tensor([3.0, 2, 1])) is None
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    assert last_tokens(mask).tolist() == [[False, False, True, False], [False, False, False, True]]


@pytest.mark.parametrize(
    ("number", "value", "name"),
    [
        ("kl_in_errors", -6.0, "negative_kl"),
        ("penalty_slope", -0.1, "flipped_kl"),
        ("kl", 31.0, "large_kl"),
        ("ratio_error", 2e-5, "ratio_not_one"),
        ("ratio_max_error", 2e-3, "scattered_ratio"),
        ("repeat_logprob", -30.0, "repeated_rollouts"),
        ("branch_errors", 0.01, "wrong_branch"),
        ("score_sd", 1e-4, "flat_reward"),
        ("value_loss", 11.0, "high_value_loss"),
        ("explained_variance", -0.1, "useless_value"),
        ("clip_fraction", 0.4, "many_clipped"),
        ("entropy_share", 0.1, "entropy_collapse"),
        ("length_drift", 2.1, "length_drift"),
        ("repeated_text", 0.6, "repeated_text"),
        ("looks_unsafe", 0.6, "looks_unsafe"),
        ("general_agreement_in_errors", -6.0, "general_disagrees"),
        ("gold_agreement_in_errors", -6.0, "gold_disagrees"),
        ("goodhart_general_low", 1.1, "goodhart_general"),
        ("missing_bos", 0.1, "missing_bos"),
    ],
)
def test_each_other_rule_speaks_beyond_its_limit_and_not_within(number, value, name):
    limits = Limits().settled(full_precision=True)
    (finding,) = diagnose({number: value}, limits)
    assert finding.name == name and finding.value == value and "Way out: " in finding.words
    assert not diagnose({number: finding.threshold}, limits)


def test_whitening_is_that_of_the_answers_that_count_on_all_ranks(monkeypatch):
    # 6 of one rank and 1 of another, together of mean 0 and square 1: the mean of the two means is 0.7
    x = math.sqrt(1 / 6)
    one = {"reward_count": 6.0, "reward_sum": -6 * x, "reward_squares": 6 * x**2}
    other = {"reward_count": 1.0, "reward_sum": 6 * x, "reward_squares": 36 * x**2}
    monkeypatch.setattr(doctor, "gathered", lambda numbers, ranks: [numbers, other])
    numbers = doctor.over_ranks(one, None) | {"score_sd": 1.0}
    PPODoctor()._look_at_whitening(numbers)
    assert numbers["reward_mean"] == pytest.approx(0) and numbers["reward_square"] == pytest.approx(1)
    assert numbers["whitening_error"] == pytest.approx(0, abs=1e-6)


def test_what_is_no_number_is_fatal():
    (finding,) = diagnose({"value_loss": math.nan}, Limits().settled(True))
    assert (
        finding.name == "not_finite" and finding.severity == "fatal" and "value_loss is nan" in finding.words
    )


def test_half_precision_allows_more_rounding():
    assert not diagnose({"ratio_error": 5e-4, "sampler_gap": 0.05}, Limits().settled(full_precision=False))


def test_a_module_without_iterations_is_refused():
    doctor = PPODoctor()
    with pytest.raises(ValueError, match="PPODoctor looks at `last_iteration`"):
        doctor.on_fit_start(SimpleNamespace(datamodule=None), L.LightningModule())  # type: ignore[arg-type]


def test_every_rule_has_a_row_in_the_document():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs/doctor.md").read_text(encoding="utf-8")
    assert [rule.name for rule in RULES if f"`{rule.name}`" not in text] == []


def test_its_state_survives_a_resume():
    doctor, other = PPODoctor(), PPODoctor()
    doctor.start, doctor.seen["few_eos"] = {"entropy": 2.0, "length": 5.0}, 3
    doctor.judge_start = {"gold": judge_start(Tensor([1, 2]), Tensor([1, 2]))}
    other.load_state_dict(json.loads(json.dumps(doctor.state_dict())))
    assert (other.start, other.judge_start, other.seen) == (doctor.start, doctor.judge_start, doctor.seen)


def test_scores_without_a_safety_model_are_helpfulness():
    from llama2_pl.callbacks.doctor_numbers import branch_numbers

    scores, unknown = torch.tensor([1.0, 2.0]), torch.full((2,), torch.nan)
    sound = Scored(scores, scores, unknown, torch.zeros(2).bool())
    assert branch_numbers(sound, torch.tensor([True, False]), 0.15) == {"branch_errors": 0.0}
    flipped = sound._replace(scores=-scores)
    assert branch_numbers(flipped, torch.tensor([True, False]), 0.15) == {"branch_errors": 1.0}


def test_a_line_goes_behind_one_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "new" / "doctor.jsonl"
    append_line(path, "one")
    path.write_text(path.read_text() + '{"half', encoding="utf-8")
    append_line(path, "two")
    append_line(path, "three")
    assert path.read_text().splitlines() == ["one", '{"half', "two", "three"]
