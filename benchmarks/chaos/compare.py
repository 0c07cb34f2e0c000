"""Whether two runs ended in the same bits: weights, optimizer, scheduler, data position, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What a checkpoint says of the run's place and of its callbacks' paths and clocks. Epoch: Lightning counts it up after
# the last step, and a run stopped by a signal at that step saves before that and has nothing left to do.
IGNORED = ("callbacks", "loops", "epoch")


def difference(expected: Path, found: Path) -> str:
    """The first thing in which a finished run's folder differs; empty where nothing does."""
    names = sorted(path.name for path in expected.iterdir() if path.suffix == ".ckpt" or _answers(path))
    if not names:
        return f"{expected}: nothing to compare"
    for name in names:
        if not (found / name).exists():
            return f"{name} is missing"
        if _answers(expected / name):
            if (expected / name).read_bytes() != (found / name).read_bytes():
                return f"{name} has other bytes"
        elif place := differing(read(expected / name), read(found / name)):
            return f"{name}: {place}"
    return ""


def _answers(path: Path) -> bool:
    return path.name.startswith("batch-") and path.suffix == ".json"


def read(path: Path) -> dict[str, Any]:
    """The parts of a checkpoint that must not depend on interruptions."""
    if path.is_dir():
        content = {**read_shards(path), **torch.load(path / "meta.pt", weights_only=True)}
    else:
        content = torch.load(path, weights_only=True)
    return {key: value for key, value in content.items() if key not in IGNORED}


def read_shards(path: Path) -> dict[str, Any]:
    """A folder of our own making, whole."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    content: dict[str, Any] = {}
    reader = FileSystemReader(path)
    _load_state_dict(content, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return content


def differing(a: Any, b: Any, place: str = "") -> str:
    """Where two nested values differ; empty where every bit is the same."""
    if type(a) is not type(b):
        return f"{place} is {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
        return "" if same else place
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{place} has other keys: {sorted(map(str, a.keys() ^ b.keys()))}"
        return next((found for key in a if (found := differing(a[key], b[key], f"{place}.{key}"))), "")
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{place} has {len(a)} and {len(b)} entries"
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, pair in pairs if (found := differing(*pair, f"{place}[{i}]"))), "")
    return "" if a == b or (a != a and b != b) else f"{place} is {a!r} and {b!r}"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def progress(folder: Path) -> int:
    """Steps in the newest checkpoint, or batches of answers; -1 where there is nothing sound."""
    from llama2_pl.checkpoints.sharded import verified_folder
    from llama2_pl.checkpoints.verified import verified_path

    answers = sum(map(_answers, folder.iterdir())) if folder.is_dir() else 0
    path = folder / "last.ckpt"
    if answers or not path.exists():
        return answers or -1
    if path.is_dir():
        return torch.load(verified_folder(path) / "meta.pt", weights_only=True)["global_step"]
    return torch.load(verified_path(path), weights_only=True)["global_step"]
