"""Reward models as Hugging Face folders, and the types that weights are exported in."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama2_pl.checkpoints.hugging_face import from_hugging_face, to_hugging_face
from llama2_pl.checkpoints.ours import export_checkpoint, load_language_model, load_reward_model
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.text import Dialog, Tokenizer, encode_dialog, train_tokenizer

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=700, multiple_of=96, max_seq_len=64
)
TALKS = [
    [("user", "Hi"), ("assistant", "Hello, and good day to you.")],
    [("user", "1 + 1?"), ("assistant", "2")],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    text = [inspect.getsource(module) for module in (textwrap, shutil)]
    return train_tokenizer(text, tmp_path_factory.mktemp("tokenizer"), vocab_size=700, num_threads=1)


@pytest.fixture(scope="module")
def reward() -> ScalarModel:
    torch.manual_seed(0)
    model = ScalarModel(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.dim() == 1 else 0.0, 0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(reward: ScalarModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What RewardModule saves."""
    path = tmp_path_factory.mktemp("reward") / "last.ckpt"
    weights = {f"model.{name}": tensor for name, tensor in reward.state_dict().items()}
    hyper_parameters = {"backbone": CONFIG.to_dict()}
    content = {
        "state_dict": weights,
        "hyper_parameters": hyper_parameters,
        "tokenizer_sha256": tokenizer.sha256,
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "reward"
    export_checkpoint(str(checkpoint), str(folder), str(tokenizer.path))
    return folder


def test_transformers_gives_whole_dialogues_our_scores_in_a_padded_batch(
    reward: ScalarModel, exported: Path, tokenizer: Tokenizer
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    words = AutoTokenizer.from_pretrained(exported)
    texts = [[{"role": role, "content": content} for role, content in talk] for talk in TALKS]
    batch = words.apply_chat_template(texts, padding=True, return_tensors="pt", return_dict=True)
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        theirs = AutoModelForSequenceClassification.from_pretrained(exported)(**batch).logits.squeeze(-1)
    for talk, score in zip(TALKS, theirs, strict=True):
        ids, _ = encode_dialog(Dialog.of(talk), tokenizer)
        torch.testing.assert_close(reward(torch.tensor([ids]))[0, -1], score, rtol=0, atol=1e-4)


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_labels=1, pad_token_id=0, initializer_range=0.3)
    theirs = LlamaForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = torch.arange(1, 27).view(2, 13)
    with torch.no_grad():
        ours = load_reward_model(tmp_path)(tokens)[:, -1]
        torch.testing.assert_close(ours, theirs(tokens).logits.squeeze(-1), rtol=0, atol=1e-4)


def test_a_folder_reads_back_as_the_reward_model_it_was(reward: ScalarModel, exported: Path) -> None:
    found = load_reward_model(exported)
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in reward.state_dict().items())


def test_a_folder_of_the_other_kind_is_called_what_it_is(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is a reward model; give a language model"):
        load_language_model(exported)
    to_hugging_face(LanguageModel(CONFIG), tmp_path / "language")
    with pytest.raises(ValueError, match="this is a language model; give a reward model"):
        load_reward_model(tmp_path / "language")


def test_a_classifier_of_two_labels_is_refused(exported: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = shutil.copytree(exported, tmp_path / "two")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "score.weight": torch.ones(2, 32)}, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"score\.weight is \[2, 32\] and the configuration asks for \[1, 32\]"
    ):
        load_reward_model(folder)


def test_a_folder_of_another_tokenizer_is_refused(exported: Path, tmp_path: Path) -> None:
    text = [inspect.getsource(json.decoder)]
    other = train_tokenizer(text, tmp_path / "other", vocab_size=400, num_threads=1)
    with pytest.raises(ValueError, match="policy, reference and reward models must share one"):
        load_reward_model(exported, tokenizer=other)


@pytest.mark.parametrize("kind", [LanguageModel, ScalarModel])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_export_in_another_type_is_each_weight_rounded(kind: type, dtype: str, tmp_path: Path) -> None:
    model = kind(CONFIG)
    to_hugging_face(model, tmp_path / "whole")
    export_checkpoint(str(tmp_path / "whole"), str(tmp_path / "half"), dtype=dtype)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == dtype
    rounded = load_file(tmp_path / "half" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(rounded[name], tensor.to(getattr(torch, dtype))), name
    assert from_hugging_face(tmp_path / "half", torch.float32, kind).config == model.config


def test_shards_are_as_long_as_the_type_makes_them(tmp_path: Path) -> None:
    model = LanguageModel(CONFIG)
    to_hugging_face(model, tmp_path / "out", max_shard_bytes=60_000, dtype=torch.bfloat16)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * CONFIG.num_parameters()
    sizes = [
        sum(tensor.nbytes for tensor in load_file(path).values())
        for path in (tmp_path / "out").glob("*.safetensors")
    ]
    assert sum(sizes) == 2 * CONFIG.num_parameters() and max(sizes) <= 60_000 and len(sizes) < 6
