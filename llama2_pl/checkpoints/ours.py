"""Networks out of any checkpoint: ours, Hugging Face's or Meta's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel

Network = TypeVar("Network", LanguageModel, ScalarModel)


def load_language_model(path: str | Path, device: str = "cpu") -> LanguageModel:
    """The language model in a Lightning checkpoint of ours (pretraining, SFT, PPO), or in a Hugging Face or Meta folder."""
    path = Path(path)
    if path.is_dir():
        return _from_folder(path).to(device)
    checkpoint = _read(path)
    prefix, key = ("policy.", "policy_backbone") if "policy_backbone" in checkpoint["hyper_parameters"] else ("model.", "backbone")
    return _build(LanguageModel, path, checkpoint, prefix, key).to(device)


def load_reward_model(path: str | Path, device: str = "cpu") -> ScalarModel:
    """The reward model in a Lightning checkpoint of ours, or the value network in one of PPO."""
    checkpoint = _read(Path(path))
    prefix, key = ("value.", "value_backbone") if "value_backbone" in checkpoint["hyper_parameters"] else ("model.", "backbone")
    return _build(ScalarModel, Path(path), checkpoint, prefix, key).to(device)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; give a .ckpt file or a Hugging Face or Meta folder")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= set(checkpoint):
        raise ValueError(f"{path}: not a Lightning checkpoint (no state_dict and hyper_parameters in it)")
    return checkpoint


def _build(network: type[Network], path: Path, checkpoint: dict[str, Any], prefix: str, key: str) -> Network:
    hyper_parameters = checkpoint["hyper_parameters"]
    if key not in hyper_parameters:
        raise ValueError(f"{path}: no {key!r} in its hyper-parameters; it is not a checkpoint of llama2_pl")
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    with torch.device("meta"):
        model = network(ModelConfig.of(hyper_parameters[key]))
    _check_shapes(path, model, weights)
    model.to_empty(device="cpu")
    model.backbone.rope.reset_parameters()
    model.load_state_dict(weights)
    return model


def _check_shapes(path: Path, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
            raise ValueError(f"{path}: does not fit a {type(model).__name__} of its configuration: {what}")


def _from_folder(path: Path) -> LanguageModel:
    from llama2_pl.checkpoints.hugging_face import from_hugging_face
    from llama2_pl.checkpoints.meta import from_meta

    if (path / "config.json").exists():
        return from_hugging_face(path)
    if (path / "params.json").exists():
        return from_meta(path)
    raise ValueError(f"{path}: neither config.json (Hugging Face) nor params.json (Meta) in this folder")
