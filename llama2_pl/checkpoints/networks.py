"""A network made for weights that are already there: check first, allocate then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel

Network = TypeVar("Network", LanguageModel, ScalarModel)
Shapes = Mapping[str, Sequence[int]]


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
