"""A network made for weights that are already there: check first, allocate then."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel

Network = TypeVar("Network", LanguageModel, ScalarModel)
Shapes = Mapping[str, Sequence[int]]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the weights need it beside them")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__} and not an object; download it again")
    return content


def read_torch(path: Path) -> Any:
    """What torch.save wrote, tensors mapped and not yet read; nothing in the file is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        # torch's own message offers weights_only=False, which runs what is in the file.
        raise ValueError(
            f"{path}: not a readable weights file: cut short, not written by torch.save, or with more in it than "
            "tensors and plain types"
        ) from error


def on_meta(network: type[Network], config: ModelConfig) -> Network:
    """The network with shapes and no memory."""
    with torch.device("meta"):
        return network(config)


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
            raise ValueError(
                f"{where}: {name} is {list(found[name])} and the configuration asks for {list(shape)}"
            )


def materialise(model: Network, dtype: torch.dtype) -> Network:
    """A network from `on_meta` in memory, all parameters of this dtype and yet to be filled; RoPE's table is."""
    model.to(dtype).to_empty(device="cpu")
    model.backbone.rope.reset_parameters()
    return model
