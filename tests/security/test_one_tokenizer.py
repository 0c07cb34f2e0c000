"""Policy, reference and reward models share one tokenizer: of equal size is not enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import disable_possible_user_warnings

from llama2_pl.app.chat import chat
from llama2_pl.callbacks.rewards import CheckpointReward
from llama2_pl.checkpoints.hugging_face import to_hugging_face
from llama2_pl.checkpoints.ours import export_checkpoint, load_language_model, load_reward_model
from llama2_pl.data import DialogueDataModule, PreferenceDataModule, PromptDataModule
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.modules import PPOModule, RejectionSamplingModule, RewardModule, SFTModule
from llama2_pl.rlhf.collect import collect_preferences
from llama2_pl.rlhf.distill import distill_safety
from llama2_pl.rlhf.evaluate import evaluate
from llama2_pl.text import Tokenizer, train_tokenizer

CONFIG = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=290, multiple_of=8, max_seq_len=128)
REFUSAL = r"{}: trained with a tokenizer\.model of SHA-256 {}….*{} has {}…"


class Files(NamedTuple):
    """Two tokenizers of one size, and checkpoints that were trained with each."""

    folder: Path
    mine: Tokenizer
    other: Tokenizer
    prompts: str
    dialogues: str
    pairs: str

    def checkpoint(self, kind: str, tokenizer: str) -> str:
        return str(self.folder / f"{kind}-{tokenizer}.ckpt")

    def refusal(self, path: str) -> str:
        first, second = self.other.sha256[:16], self.mine.sha256[:16]
        return REFUSAL.format(Path(path).name, first, "tokenizer.model", second)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    disable_possible_user_warnings()
    folder = tmp_path_factory.mktemp("files")
    texts = {"mine": "the cat sat on the mat ", "other": "one dog ran to our red house "}
    words = {
        n: train_tokenizer([t * 20], folder / n, vocab_size=290, num_threads=1) for n, t in texts.items()
    }
    assert words["mine"].vocab_size == words["other"].vocab_size
    asked = [{"role": "user", "content": "the cat"}]
    rows = {
        "prompts": {"messages": asked, "task": {"kind": "safety", "answers": ["no"]}, "is_safety": False},
        "dialogues": {"messages": [*asked, {"role": "assistant", "content": "sat"}]},
        "pairs": {"prompt": asked, "chosen": "on the mat", "rejected": "ran"},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    torch.manual_seed(0)
    for kind, network in (("language", LanguageModel(CONFIG)), ("reward", ScalarModel(CONFIG))):
        weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
        for name, tokenizer in words.items():
            content = {"state_dict": weights, "hyper_parameters": {"backbone": CONFIG.to_dict()}}
            torch.save({**content, "tokenizer_sha256": tokenizer.sha256}, folder / f"{kind}-{name}.ckpt")
    return Files(folder, words["mine"], words["other"], *(str(folder / f"{name}.jsonl") for name in rows))


def trainer(folder: Path) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def prompt_data(files: Files, tokenizer: Tokenizer) -> PromptDataModule:
    return PromptDataModule(files.prompts, str(tokenizer.path), batch_size=4, max_prompt_len=64)


def test_a_training_notes_the_sha256_of_its_tokenizer_file(files: Files, tmp_path: Path) -> None:
    data = DialogueDataModule(
        files.dialogues, str(files.mine.path), seq_len=64, batch_size=1, cache_dir=str(tmp_path)
    )
    run = trainer(tmp_path)
    run.fit(SFTModule(CONFIG, min_warmup_steps=1), datamodule=data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    expected = hashlib.sha256(files.mine.path.read_bytes()).hexdigest()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["tokenizer_sha256"] == expected
    load_language_model(tmp_path / "last.ckpt", tokenizer=files.mine)
    with pytest.raises(ValueError, match=r"last\.ckpt: trained with"):
        load_language_model(tmp_path / "last.ckpt", tokenizer=files.other)


@pytest.mark.parametrize(("kind", "load"), [("language", load_language_model), ("reward", load_reward_model)])
def test_a_checkpoint_of_another_tokenizer_is_refused_by_both_names(
    kind: str, load: Callable, files: Files
) -> None:
    path = files.checkpoint(kind, "other")
    with pytest.raises(ValueError, match=files.refusal(path)):
        load(path, tokenizer=files.mine)
    load(path, tokenizer=files.other)
    load(path)


def test_a_checkpoint_that_notes_no_tokenizer_is_read(files: Files, tmp_path: Path) -> None:
    content = torch.load(files.checkpoint("language", "other"), weights_only=True)
    del content["tokenizer_sha256"]
    torch.save(content, tmp_path / "old.ckpt")
    load_language_model(tmp_path / "old.ckpt", tokenizer=files.mine)


def test_a_hugging_face_folder_is_known_by_the_tokenizer_beside_it(files: Files, tmp_path: Path) -> None:
    to_hugging_face(LanguageModel(CONFIG), tmp_path / "hf", files.other)
    load_language_model(tmp_path / "hf", tokenizer=files.other)
    with pytest.raises(ValueError, match=files.refusal("hf")):
        load_language_model(tmp_path / "hf", tokenizer=files.mine)


# Each wrong file of a stage in turn: how it is run with it, and which file is to be named.
def ppo(files: Files, **wrong: str) -> None:
    given = {"policy": files.checkpoint("language", "mine")}
    given |= dict.fromkeys(("helpfulness_reward", "safety_reward"), files.checkpoint("reward", "mine"))
    module = PPOModule(**{**given, **wrong}, tokenizer=str(files.mine.path), max_new_tokens=4)  # type: ignore[arg-type]
    trainer(files.folder).fit(module, datamodule=prompt_data(files, files.mine))


def rejection_sampling(files: Files, **wrong: str) -> None:
    given = {"policy": files.checkpoint("language", "mine")}
    given |= {"helpfulness_reward": files.checkpoint("reward", "mine"), "out": str(files.folder / "best")}
    module = RejectionSamplingModule(**{**given, **wrong}, tokenizer=str(files.mine.path), max_new_tokens=4)  # type: ignore[arg-type]
    trainer(files.folder).predict(module, datamodule=prompt_data(files, files.mine))


def evaluation(files: Files, **wrong: str) -> None:
    given = dict.fromkeys(("helpfulness_reward", "safety_reward"), files.checkpoint("reward", "mine"))
    policy = wrong.pop("policy", files.checkpoint("language", "mine"))
    evaluate({"sft": policy}, str(files.mine.path), [files.prompts], out="x", **{**given, **wrong})


def collection(files: Files, policy: str) -> None:
    policies = [files.checkpoint("language", "mine"), policy]
    collect_preferences(policies, str(files.mine.path), files.prompts, "x")


def distillation(files: Files, **wrong: str) -> None:
    given = {
        "policy": files.checkpoint("language", "mine"),
        "safety_reward": files.checkpoint("reward", "mine"),
    }
    distill_safety(
        **{**given, **wrong}, tokenizer=str(files.mine.path), prompts=files.prompts, out="x", is_safety=True
    )


def supervised(files: Files, init_from: str) -> None:
    data = DialogueDataModule(files.dialogues, str(files.mine.path), cache_dir=str(files.folder / "cache"))
    trainer(files.folder).fit(SFTModule(CONFIG, init_from=init_from), datamodule=data)


def reward_training(files: Files, init_from: str) -> None:
    data = PreferenceDataModule(
        str(files.mine.path), helpful=files.pairs, cache_dir=str(files.folder / "cache")
    )
    trainer(files.folder).fit(RewardModule(CONFIG, init_from=init_from), datamodule=data)


STAGES = [
    (ppo, "policy", "language"),
    (ppo, "helpfulness_reward", "reward"),
    (ppo, "safety_reward", "reward"),
    (rejection_sampling, "policy", "language"),
    (rejection_sampling, "helpfulness_reward", "reward"),
    (rejection_sampling, "safety_reward", "reward"),
    (evaluation, "policy", "language"),
    (evaluation, "helpfulness_reward", "reward"),
    (evaluation, "safety_reward", "reward"),
    (collection, "policy", "language"),
    (distillation, "policy", "language"),
    (distillation, "safety_reward", "reward"),
    (supervised, "init_from", "language"),
    (reward_training, "init_from", "language"),
]


@pytest.mark.parametrize(
    ("stage", "name", "kind"), STAGES, ids=lambda value: getattr(value, "__name__", value)
)
def test_each_stage_refuses_a_model_of_another_tokenizer(
    stage: Callable, name: str, kind: str, files: Files
) -> None:
    wrong = files.checkpoint(kind, "other")
    with pytest.raises(ValueError, match=files.refusal(wrong)):
        stage(files, **{name: wrong})


@pytest.mark.parametrize("stage", ["ppo", "rejection sampling"])
def test_prompts_encoded_by_another_tokenizer_are_refused_by_both_names(stage: str, files: Files) -> None:
    given = {
        "policy": files.checkpoint("language", "mine"),
        "helpfulness_reward": files.checkpoint("reward", "mine"),
        "tokenizer": str(files.mine.path),
    }
    data, run = prompt_data(files, files.other), trainer(files.folder)
    with pytest.raises(
        ValueError, match=r"mine/tokenizer\.model and data\.tokenizer .*other/tokenizer\.model"
    ):
        if stage == "ppo":
            run.fit(PPOModule(**given), datamodule=data)  # type: ignore[arg-type]
        else:
            run.predict(RejectionSamplingModule(**given, out="x"), datamodule=data)  # type: ignore[arg-type]


def test_the_tools_refuse_a_tokenizer_that_is_not_the_checkpoint_s(files: Files, tmp_path: Path) -> None:
    language, reward = files.checkpoint("language", "other"), files.checkpoint("reward", "other")
    mine = str(files.mine.path)
    for tool in (
        lambda: chat(language, mine),
        lambda: export_checkpoint(language, str(tmp_path / "out"), mine),
        lambda: CheckpointReward(reward, mine),
    ):
        with pytest.raises(ValueError, match="policy, reference and reward models must share one"):
            tool()
    assert list(tmp_path.iterdir()) == []
