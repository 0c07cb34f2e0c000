"""Meta's released checkpoints: consolidated.*.pth and params.json."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from llama2_pl.checkpoints.keys import Entry, adjacent_to_half_split, entries
from llama2_pl.checkpoints.networks import (
    check_tensors,
    materialise,
    on_meta,
    read_json,
    shapes_of,
)
from llama2_pl.checkpoints.untrusted import check_storage, inside, read_torch
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel

Shard = dict[str, Tensor]


def from_meta(
    folder: str | Path, dtype: torch.dtype = torch.float32, trust_checkpoint: bool = False
) -> LanguageModel:
    """The language model in a folder that Meta released: 7B in one shard, 13B in 2, 70B in 8.

    Shards are mapped, not read into memory, so that the peak is the model itself.

    Args:
        folder: consolidated.*.pth and params.json.
        dtype: of the parameters.
        trust_checkpoint: read .pth files at all. They are pickles, of which nothing is run here; a hole in torch's
            own reader is what is left to trust.
    """
    folder = Path(folder)
    if not trust_checkpoint:
        raise ValueError(
            f"{folder}: Meta's .pth files are pickles, and weights of others are read from safetensors alone; if you "
            f"trust their source, convert them once: llama2-pl export --checkpoint {folder} --out NEW_FOLDER "
            "--trust_checkpoint=true (in Python: trust_checkpoint=True)"
        )
    shards = [_read_shard(path) for path in _shard_paths(folder)]
    config = _read_config(folder / "params.json", shards)
    model = on_meta(LanguageModel, config, folder, len(shards[0]))
    table = entries(config.n_layers)
    _check_shards(folder, model, table, shards)
    materialise(model, dtype)
    with torch.no_grad():
        for entry in table:
            _fill(model.get_parameter(entry.ours), entry, [shard[entry.meta] for shard in shards], config)
    return model


def _shard_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths:
        raise ValueError(f"{folder}: no consolidated.*.pth in this folder")
    expected = [f"consolidated.{number:02d}.pth" for number in range(len(paths))]
    if [path.name for path in paths] != expected or len(paths) not in (1, 2, 4, 8):
        raise ValueError(
            f"{folder}: {', '.join(path.name for path in paths)}: expected 1, 2, 4 or 8 shards, numbered from "
            "consolidated.00.pth on; download what is missing"
        )
    return paths


def _read_shard(path: Path) -> Shard:
    shard = read_torch(inside(path.parent, path.name, path))
    if not isinstance(shard, dict) or not all(_is_weight(tensor) for tensor in shard.values()):
        raise ValueError(f"{path}: holds other things than named tensors of floating-point numbers")
    check_storage(path, shard)
    # RoPE's table is derived, never loaded.
    return {name: tensor for name, tensor in shard.items() if name != "rope.freqs"}


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _read_config(path: Path, shards: list[Shard]) -> ModelConfig:
    params = read_json(path)
    if params.get("vocab_size", -1) == -1:
        # Meta's loader fills this from the tokenizer; the embedding knows it as well.
        if "tok_embeddings.weight" not in shards[0]:
            raise ValueError(f"{path.parent}: tok_embeddings.weight is missing from consolidated.00.pth")
        params["vocab_size"] = shards[0]["tok_embeddings.weight"].shape[0]
    try:
        config = ModelConfig.of(params)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
    if config.norm_eps == 1e-6:
        rank_zero_warn(
            f"{path}: norm_eps is 1e-06, which is Llama 1's; Llama 2 has 1e-05, and the first params.json of its 7B "
            "chat model was wrong. If this is a Llama 2, write 1e-05 there"
        )
    if config.n_heads % len(shards) or config.kv_heads % len(shards):
        raise ValueError(
            f"{path}: {config.n_heads} heads and {config.kv_heads} kv heads cannot lie in {len(shards)} shards"
        )
    return config


def _check_shards(folder: Path, model: LanguageModel, table: list[Entry], shards: list[Shard]) -> None:
    whole = shapes_of(model.state_dict())
    expected = {}
    for entry in table:
        shape = list(whole[entry.ours])
        if entry.meta_split is not None:
            if shape[entry.meta_split] % len(shards):
                raise ValueError(
                    f"{folder}: {entry.meta} {shape} cannot lie in {len(shards)} shards; one is missing"
                )
            shape[entry.meta_split] //= len(shards)
        expected[entry.meta] = shape
    for number, shard in enumerate(shards):
        check_tensors(folder / f"consolidated.{number:02d}.pth", expected, shapes_of(shard))


def _fill(parameter: Tensor, entry: Entry, pieces: list[Tensor], config: ModelConfig) -> None:
    """Put the shards' pieces into the parameter, side by side or, where each shard holds it all, the first."""
    if entry.meta_split is None:
        parameter.copy_(pieces[0])
        return
    # A shard holds whole heads, so its rows can be reordered before they are joined.
    turn = entry.meta.endswith(("wq.weight", "wk.weight"))
    for target, piece in zip(parameter.chunk(len(pieces), entry.meta_split), pieces, strict=True):
        target.copy_(adjacent_to_half_split(piece, config.head_dim) if turn else piece)
