"""Meta's sharded checkpoints, against a forward pass written as Meta's release computes it: complex RoPE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llama2_pl.checkpoints.keys import adjacent_to_half_split, entries
from llama2_pl.checkpoints.meta import from_meta
from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel

LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB = 2, 32, 4, 2, 8, 96, 40
PARAMS = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "multiple_of": 24}
PARAMS |= {"norm_eps": 1e-5, "vocab_size": -1}
TOKENS = torch.arange(22).view(2, 11) * 7 % VOCAB

Weights = dict[str, Tensor]


def random_weights() -> Weights:
    """Unsharded weights under Meta's names; shapes written out."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (VOCAB, DIM),
        "output.weight": (VOCAB, DIM),
    }
    shapes["norm.weight"] = (DIM,)
    for i in range(LAYERS):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (HEADS * HEAD_DIM, DIM),
            f"layers.{i}.attention.wk.weight": (KV_HEADS * HEAD_DIM, DIM),
            f"layers.{i}.attention.wv.weight": (KV_HEADS * HEAD_DIM, DIM),
            f"layers.{i}.attention.wo.weight": (DIM, HEADS * HEAD_DIM),
            f"layers.{i}.feed_forward.w1.weight": (HIDDEN, DIM),
            f"layers.{i}.feed_forward.w2.weight": (DIM, HIDDEN),
            f"layers.{i}.feed_forward.w3.weight": (HIDDEN, DIM),
            f"layers.{i}.attention_norm.weight": (DIM,),
            f"layers.{i}.ffn_norm.weight": (DIM,),
        }
    return {
        name: torch.rand(shape) + 0.5 if len(shape) == 1 else torch.randn(shape) * 1.5 / shape[1] ** 0.5
        for name, shape in shapes.items()
    }


def shard(weights: Weights, count: int) -> list[Weights]:
    """By columns: embedding, wo, w2. Whole: norms. By rows: all others."""
    shards: list[Weights] = [{"rope.freqs": torch.ones(HEAD_DIM // 2)} for _ in range(count)]
    for name, tensor in weights.items():
        whole = "norm" in name
        columns = name.startswith("tok_embeddings") or name.endswith(("wo.weight", "w2.weight"))
        for number in range(count):
            part = tensor if whole else tensor.chunk(count, 1 if columns else 0)[number]
            shards[number][name] = part.clone()
    return shards


def write(folder: Path, shards: list[Weights], **changes: object) -> Path:
    for number, weights in enumerate(shards):
        torch.save(weights, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps({**PARAMS, **changes}))
    return folder


def meta_forward(weights: Weights, tokens: Tensor, eps: float = 1e-5, theta: float = 10_000.0) -> Tensor:
    """(B, T) -> logits (B, T, V): adjacent pairs as complex numbers, kv heads repeated, softmax written out."""
    batch, time = tokens.shape
    frequency = 1.0 / theta ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = torch.polar(torch.ones(time, HEAD_DIM // 2), torch.outer(torch.arange(time).float(), frequency))
    turns = turns[None, :, None]  # (1, T, 1, K/2)
    future = torch.full((time, time), -torch.inf).triu(1)

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], HEAD_DIM // 2, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)

    h = weights["tok_embeddings.weight"][tokens]
    for i in range(LAYERS):
        w = {
            name.removeprefix(f"layers.{i}."): t
            for name, t in weights.items()
            if name.startswith(f"layers.{i}.")
        }
        x = norm(h, w["attention_norm.weight"])
        q = turned((x @ w["attention.wq.weight"].T).view(batch, time, HEADS, HEAD_DIM))
        k = turned((x @ w["attention.wk.weight"].T).view(batch, time, KV_HEADS, HEAD_DIM))
        v = (x @ w["attention.wv.weight"].T).view(batch, time, KV_HEADS, HEAD_DIM)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 2) for t in (k, v))
        scores = torch.einsum("bqhk,bshk->bhqs", q, k) / HEAD_DIM**0.5 + future
        mixed = torch.einsum("bhqs,bshk->bqhk", scores.softmax(-1), v).flatten(2)
        h = h + mixed @ w["attention.wo.weight"].T
        x = norm(h, w["ffn_norm.weight"])
        gated = F.silu(x @ w["feed_forward.w1.weight"].T) * (x @ w["feed_forward.w3.weight"].T)
        h = h + gated @ w["feed_forward.w2.weight"].T
    return norm(h, weights["norm.weight"]) @ weights["output.weight"].T


@pytest.mark.parametrize("count", [1, 2])
def test_a_meta_checkpoint_computes_what_metas_forward_pass_does(count: int, tmp_path: Path) -> None:
    weights = random_weights()
    model = from_meta(write(tmp_path, shard(weights, count)), trust_checkpoint=True)
    expected = meta_forward(weights, TOKENS)
    assert expected.std() > 0.5
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=1e-4)
    # -1 in params.json, 40 in the embedding
    assert model.config == ModelConfig.of({**PARAMS, "vocab_size": VOCAB})


def test_a_folder_of_metas_is_recognised_and_read_as_fp32_from_half_precision(tmp_path: Path) -> None:
    halves = [{name: t.half() for name, t in weights.items()} for weights in shard(random_weights(), 2)]
    model = load_language_model(write(tmp_path, halves), trust_checkpoint=True)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, random_weights()["output.weight"].half().float())


def test_rows_within_a_head_go_from_2j_plus_c_to_c_times_half_plus_j() -> None:
    # two heads of 4 rows; Meta's pairs (0, 1), (2, 3) become (0, 2), (1, 3)
    rows = torch.arange(8.0).view(8, 1)
    assert adjacent_to_half_split(rows, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_key_table_names_every_parameter_once() -> None:
    config = ModelConfig.of({**PARAMS, "vocab_size": VOCAB})
    table = entries(LAYERS)
    assert {entry.ours for entry in table} == set(LanguageModel(config).state_dict())
    assert {entry.meta for entry in table} == set(random_weights())
    assert len({entry.hugging_face for entry in table}) == len(table) == 9 * LAYERS + 3


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path, shard(random_weights(), 2))
    (tmp_path / "consolidated.00.pth").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: expected 1, 2, 4 or 8 shards"):
        from_meta(tmp_path, trust_checkpoint=True)
    (tmp_path / "kept").rename(tmp_path / "consolidated.00.pth")
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(ValueError, match=r"is \[40, 16\] and the configuration asks for \[40, 32\]"):
        from_meta(tmp_path, trust_checkpoint=True)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "layers.0.attention.wq.bias",
            torch.ones(16),
            r"consolidated\.01\.pth: layers\.0\.attention\.wq\.bias",
        ),
        ("norm.weight", torch.ones(32, dtype=torch.int64), r"consolidated\.01\.pth: holds other things"),
        ("norm.weight", torch.ones(16), r"consolidated\.01\.pth: norm\.weight is \[16\]"),
        ("norm.weight", None, r"consolidated\.01\.pth: norm\.weight is missing"),
    ],
)
def test_every_shard_must_hold_exactly_its_tensors(
    name: str, tensor: Tensor | None, message: str, tmp_path: Path
) -> None:
    shards = shard(random_weights(), 2)
    if tensor is None:
        del shards[1][name]
    else:
        shards[1][name] = tensor
    with pytest.raises(ValueError, match=message):
        from_meta(write(tmp_path, shards), trust_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_scaled_rope": True}, r"params\.json: unknown model key 'use_scaled_rope'"),
        ({"n_layers": 3}, r"layers\.2\.\S+ is missing"),
        ({"n_kv_heads": 1}, "1 kv heads cannot lie in 2 shards"),
    ],
)
def test_params_that_do_not_fit_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_meta(write(tmp_path, shard(random_weights(), 2), **changes), trust_checkpoint=True)


@pytest.mark.parametrize(("eps", "warned"), [(1e-6, 1), (1e-5, 0)])
def test_the_epsilon_that_meta_took_back_is_warned_of(
    eps: float, warned: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = from_meta(write(tmp_path, shard(random_weights(), 1), norm_eps=eps), trust_checkpoint=True)
    assert model.config.norm_eps == eps
    assert sum("Llama 2 has 1e-05" in str(found.message) for found in recwarn) == warned


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, shard(random_weights(), 1))
    (tmp_path / "consolidated.00.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth: not a readable weights file"):
        from_meta(tmp_path, trust_checkpoint=True)
