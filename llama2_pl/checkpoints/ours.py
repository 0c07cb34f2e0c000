"""Networks out of any checkpoint: ours, Hugging Face's or Meta's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama2_pl.checkpoints.hugging_face import from_hugging_face, to_hugging_face
from llama2_pl.checkpoints.meta import from_meta
from llama2_pl.checkpoints.networks import Network, check_tensors, materialise, on_meta, shapes_of
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel


def load_language_model(path: str | Path, device: str = "cpu") -> LanguageModel:
    """The language model in a checkpoint of ours (pretraining, SFT, PPO) or a Hugging Face or Meta folder."""
    path = Path(path)
    if path.is_dir():
        return _from_folder(path).to(device)
    checkpoint = _read(path)
    prefix, key = (
        ("policy.", "policy_backbone")
        if "policy_backbone" in checkpoint["hyper_parameters"]
        else ("model.", "backbone")
    )
    return _build(LanguageModel, path, checkpoint, prefix, key).to(device)


def load_reward_model(path: str | Path, device: str = "cpu") -> ScalarModel:
    """The reward model in a Lightning checkpoint of ours, or the value network in one of PPO."""
    checkpoint = _read(Path(path))
    prefix, key = (
        ("value.", "value_backbone")
        if "value_backbone" in checkpoint["hyper_parameters"]
        else ("model.", "backbone")
    )
    return _build(ScalarModel, Path(path), checkpoint, prefix, key).to(device)


def export_checkpoint(checkpoint: str, out: str, tokenizer: str | None = None) -> None:
    """Write the language model of a checkpoint as a Hugging Face folder, for transformers and vLLM.

    Args:
        checkpoint: a .ckpt file of pretraining, SFT or PPO, or a Meta folder.
        out: the folder to write; new or empty.
        tokenizer: the tokenizer.model to put beside the weights, with the chat template.
    """
    to_hugging_face(load_language_model(checkpoint), out, tokenizer)


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
    model = on_meta(network, ModelConfig.of(hyper_parameters[key]))
    check_tensors(path, shapes_of(model.state_dict()), shapes_of(weights))
    materialise(model, torch.float32).load_state_dict(weights)
    return model


def _from_folder(path: Path) -> LanguageModel:
    if (path / "config.json").exists():
        return from_hugging_face(path)
    if (path / "params.json").exists():
        return from_meta(path)
    raise ValueError(f"{path}: neither config.json (Hugging Face) nor params.json (Meta) in this folder")
