"""A network made for weights that are already there: check first, allocate then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel

Network = TypeVar("Network", LanguageModel, ScalarModel)
Shapes = Mapping[str, Sequence[int]]

_JSON_BYTES = 64 * 2**20
# A context of a million tokens has a RoPE table of half a gigabyte; a made-up one could ask for any amount.
MAX_CONTEXT = 2**20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the weights need it beside them")
    if path.stat().st_size > _JSON_BYTES:
        raise ValueError(
            f"{path}: larger than {_JSON_BYTES} bytes, and such a file has kilobytes; download it again"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__} and not an object; download it again")
    return content


def on_meta(network: type[Network], config: ModelConfig, where: Path, tensors: int) -> Network:
    """The network with shapes and no memory, for files of so many tensors.

    What no tensor's shape will contradict is bounded first: a made-up number of layers, or of positions.
    """
    if config.n_layers > tensors:
        raise ValueError(
            f"{where}: its configuration has {config.n_layers} layers, its files {tensors} tensors"
        )
    if config.max_seq_len > MAX_CONTEXT:
        raise ValueError(
            f"{where}: a context of {config.max_seq_len} tokens; files may ask for {MAX_CONTEXT}"
        )
    try:
        with torch.device("meta"):
            return network(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: no network has the sizes of its configuration ({error})") from error


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_tensors(where: Path, expected: Shapes, found: Shapes) -> None:
    """Raise ValueError unless both hold the same names with the same shapes."""
    for name in sorted(expected.keys() - found.keys()):
        raise ValueError(f"{where}: {name} is missing; the configuration asks for {list(expected[name])}")
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"{where}: {name} {list(found[name])} has no place in a model of this configuration")
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            if name == "head.weight" and 1 in (found[name][0], shape[0]):
                raise other_kind(where, scores=found[name][0] == 1)
            raise ValueError(
                f"{where}: {name} is {list(found[name])} and the configuration asks for {list(shape)}"
            )


def other_kind(where: Path, scores: bool) -> ValueError:
    """The error for a checkpoint with the other head than was asked for; `scores`: its own is a reward model's."""
    kinds = ("reward model", "language model")
    found, wanted = kinds if scores else kinds[::-1]
    return ValueError(f"{where}: this is a {found}; give a {wanted}")


def materialise(model: Network, dtype: torch.dtype) -> Network:
    """A network from `on_meta` in memory, all parameters of this dtype and yet to be filled; RoPE's table is."""
    model.to(dtype).to_empty(device="cpu")
    model.backbone.rope.reset_parameters()
    return model
