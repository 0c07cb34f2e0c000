"""Networks out of any checkpoint: ours, Hugging Face's or Meta's."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llama2_pl.checkpoints.hugging_face import from_hugging_face, to_hugging_face
from llama2_pl.checkpoints.hugging_face_config import read_config
from llama2_pl.checkpoints.meta import from_meta
from llama2_pl.checkpoints.networks import (
    Network,
    Shapes,
    check_tensors,
    materialise,
    on_meta,
    read_json,
    shapes_of,
)
from llama2_pl.checkpoints.schema import migrate
from llama2_pl.checkpoints.sharded import folder_damage
from llama2_pl.checkpoints.untrusted import (
    PlainReader,
    check_storage,
    inside,
    read_metadata,
    read_torch,
    refuse_code,
)
from llama2_pl.checkpoints.verified import DamagedCheckpoint, damage
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.text.tokenizer import Tokenizer


class Saved(NamedTuple):
    """A checkpoint of ours, opened and not yet read.

    Attributes:
        tokenizer_sha256: of the tokenizer.model it was trained with; None where nobody noted it.
        tensors: of a file; None: a folder of shards, which are read straight into the network.
    """

    path: Path
    hyper_parameters: dict[str, Any]
    tokenizer_sha256: str | None
    shapes: Shapes
    tensors: dict[str, Tensor] | None


def load_language_model(
    path: str | Path,
    device: str = "cpu",
    trust_checkpoint: bool = False,
    tokenizer: Tokenizer | None = None,
) -> LanguageModel:
    """The language model in a checkpoint of ours (pretraining, SFT, DPO, PPO) or a Hugging Face or Meta folder.

    Args:
        path: of the checkpoint.
        device: where the model goes.
        trust_checkpoint: read a Meta folder at all: its files are pickles, see `from_meta`.
        tokenizer: refuse a checkpoint that was trained with another one.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        _check_tokenizer_beside(path, tokenizer)
        return from_hugging_face(path).to(device)
    if (path / "params.json").is_file():
        _check_tokenizer_beside(path, tokenizer)
        return from_meta(path, trust_checkpoint=trust_checkpoint).to(device)
    saved = _open(path)
    check_tokenizer(tokenizer, saved.tokenizer_sha256, path)
    return _build(LanguageModel, saved, *_language_model_in(saved)).to(device)


def language_model_config(path: str | Path) -> ModelConfig:
    """The size of what `load_language_model` finds there, without reading, or verifying, its weights."""
    path = Path(path)
    if (path / "config.json").is_file():
        return read_config(path / "config.json")
    if (path / "params.json").is_file():
        return from_meta(path).config
    saved = _open(path, verify=False)
    return _config(saved, _language_model_in(saved)[1])


def _language_model_in(saved: Saved) -> tuple[str, str]:
    """Where its weights and its size are: PPO's and DPO's is the policy."""
    policy = ("policy.", "policy_backbone")
    return policy if policy[1] in saved.hyper_parameters else ("model.", "backbone")


def load_reward_model(
    path: str | Path, device: str = "cpu", tokenizer: Tokenizer | None = None
) -> ScalarModel:
    """The reward model in a checkpoint of ours or a Hugging Face folder, or the value network in one of PPO.

    Args:
        path: of the checkpoint.
        device: where the model goes.
        tokenizer: refuse a checkpoint that was trained with another one.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        _check_tokenizer_beside(path, tokenizer)
        return from_hugging_face(path, torch.float32, ScalarModel).to(device)
    saved = _open(path)
    check_tokenizer(tokenizer, saved.tokenizer_sha256, path)
    prefix, key = ("value.", "value_backbone")
    if key not in saved.hyper_parameters:
        prefix, key = ("model.", "backbone")
    return _build(ScalarModel, saved, prefix, key).to(device)


def export_checkpoint(
    checkpoint: str,
    out: str,
    tokenizer: str | None = None,
    trust_checkpoint: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Write the language or reward model of a checkpoint as a Hugging Face folder, for transformers and vLLM.

    A reward model becomes a LlamaForSequenceClassification of one label, whose logit is the score of the whole text.

    Args:
        checkpoint: a .ckpt, one file or sharded, of any stage (of PPO the policy), or a Hugging Face or Meta folder.
        out: the folder to write; new or empty.
        tokenizer: the tokenizer.model to put beside the weights, with the chat template.
        trust_checkpoint: read Meta's .pth files, which are pickles; other commands read what this one writes.
        dtype: of the weights; float32, in which they were trained, loses nothing.
    """
    words = None if tokenizer is None else Tokenizer(tokenizer)
    if _holds_a_reward_model(Path(checkpoint)):
        model = load_reward_model(checkpoint, tokenizer=words)
    else:
        model = load_language_model(checkpoint, trust_checkpoint=trust_checkpoint, tokenizer=words)
    to_hugging_face(model, out, words, dtype=getattr(torch, dtype))


def _holds_a_reward_model(path: Path) -> bool:
    """Whether a checkpoint's only network scores."""
    if (path / "config.json").is_file():
        return read_json(path / "config.json").get("architectures") == ["LlamaForSequenceClassification"]
    if (path / "params.json").is_file():
        return False
    saved = _open(path, verify=False)
    head = saved.shapes.get(f"{_language_model_in(saved)[0]}head.weight", ())
    return len(head) == 2 and head[0] == 1


def check_tokenizer(tokenizer: Tokenizer | None, trained_with: str | None, path: Path) -> None:
    """Raise ValueError where a checkpoint is known to have been trained with another tokenizer.

    Ids mean other pieces to it: it would answer, or score, another text, and no size or shape would tell.
    """
    if tokenizer is not None and trained_with not in (None, tokenizer.sha256):
        raise ValueError(
            f"{path}: trained with a tokenizer.model of SHA-256 {str(trained_with)[:16]}…, and {tokenizer.path} has "
            f"{tokenizer.sha256[:16]}…; policy, reference and reward models must share one: give the file it was "
            "trained with"
        )


def _check_tokenizer_beside(folder: Path, tokenizer: Tokenizer | None) -> None:
    """The same for a Hugging Face or Meta folder, by the tokenizer.model in it."""
    if tokenizer is not None and (folder / "tokenizer.model").is_file():
        beside = hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()
        check_tokenizer(tokenizer, beside, folder)


def _open(path: Path, verify: bool = True) -> Saved:
    if path.is_dir():
        return _open_shards(path, verify)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; give a .ckpt or a Hugging Face or Meta folder")
    if verify and (problem := damage(path)) is not None:
        raise DamagedCheckpoint(f"{problem}; give another checkpoint, or make this one again")
    content = read_torch(path)
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise ValueError(f"{path}: not a Lightning checkpoint (no state_dict and hyper_parameters in it)")
    migrate(content)
    tensors, hyper_parameters = content["state_dict"], content["hyper_parameters"]
    if not isinstance(hyper_parameters, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path}: its state_dict or hyper_parameters are not those of a LightningModule")
    return Saved(path, hyper_parameters, content.get("tokenizer_sha256"), shapes_of(tensors), tensors)


def _open_shards(path: Path, verify: bool) -> Saved:
    """The folder that ModelParallelStrategy writes; of its pickles nothing is run."""
    if not (path / "meta.pt").is_file() or not (path / ".metadata").is_file():
        raise ValueError(
            f"{path}: neither config.json (Hugging Face), params.json (Meta) nor meta.pt and .metadata (a sharded "
            "checkpoint, whole) in this folder"
        )
    if verify and (problem := folder_damage(path)) is not None:
        raise DamagedCheckpoint(f"{problem}; give another checkpoint, or make this one again")
    meta = read_torch(inside(path, "meta.pt", path / "meta.pt"))
    if not isinstance(meta, dict) or not isinstance(meta.get("hyper_parameters"), dict):
        raise ValueError(
            f"{path / 'meta.pt'}: no hyper_parameters in it; it is not a checkpoint of llama2_pl"
        )
    migrate(meta)
    stored = read_metadata(path).state_dict_metadata
    shapes = {
        name.removeprefix("state_dict."): entry.size
        for name, entry in stored.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }
    return Saved(path, meta["hyper_parameters"], meta.get("tokenizer_sha256"), shapes, None)


def _build(network: type[Network], saved: Saved, prefix: str, key: str) -> Network:
    shapes = {name.removeprefix(prefix): s for name, s in saved.shapes.items() if name.startswith(prefix)}
    model = on_meta(network, _config(saved, key), saved.path, len(saved.shapes))
    check_tensors(saved.path, shapes_of(model.state_dict()), shapes)
    tensors = None if saved.tensors is None else {name: saved.tensors[f"{prefix}{name}"] for name in shapes}
    if tensors is not None:
        check_storage(saved.path, tensors)
    materialise(model, torch.float32)
    if tensors is None:
        # In place, each process for itself: some may ask for another checkpoint.
        target = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            _fill_from_shards({"state_dict": target}, saved.path)
    else:
        model.load_state_dict(tensors)
    return model


def _config(saved: Saved, key: str) -> ModelConfig:
    if key not in saved.hyper_parameters:
        raise ValueError(
            f"{saved.path}: no {key!r} in its hyper-parameters; it is not a checkpoint of llama2_pl"
        )
    try:
        return ModelConfig.of(saved.hyper_parameters[key])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{saved.path}: {key}: {error}") from error


def _fill_from_shards(target: dict[str, Any], path: Path) -> None:
    """Read a sharded folder into these tensors; nothing else of it is read."""
    try:
        dcp.load(target, storage_reader=PlainReader(path), no_dist=True)
    except CheckpointException as error:
        raise ValueError(refuse_code(path)) from error
