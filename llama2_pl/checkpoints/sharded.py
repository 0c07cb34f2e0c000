"""As `verified`, for folders of shards (FSDP2): a kill cannot halve them, a flipped bit not change them unseen."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_info, rank_zero_warn

from llama2_pl.checkpoints import schema
from llama2_pl.checkpoints.verified import (
    PREVIOUS,
    DamagedCheckpoint,
    clear,
    move_checkpoint,
    previous_of,
    sha256,
)
from llama2_pl.files import flush, write_json

MANIFEST = "manifest.json"
_WRITTEN: set[Path] = set()  # by this process, so that its own folders are not read again at each save
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def commit(
    staging: Path, path: Path, rank: int = 0, world: int = 1, group: dist.ProcessGroup | None = None
) -> str | None:
    """Hash and flush a written folder, each rank its own shards, and put it in its place; what failed, in words.

    The manifest is written last: a folder without one was never finished. In a thread the ranks need a group of their
    own, apart from what training sends.
    """
    try:
        mine: dict[str, str] | str = {
            file.name: _flushed_hash(file) for file in _files_of(staging, rank, world)
        }
    except OSError as error:
        mine = str(error)
    parts = _gathered(mine, world, group)
    problem = next((part for part in parts if isinstance(part, str)), None)
    if problem is None and rank == 0:
        try:
            hashes = {name: digest for part in parts for name, digest in part.items()}
            write_json(staging / MANIFEST, {"sha256": hashes})
            put_in_place(staging, path)
        except OSError as error:
            problem = str(error)
    return agreed(problem, world, group)


def agreed(problem: str | None, world: int, group: dist.ProcessGroup | None = None) -> str | None:
    """The first rank's problem, on every rank; None where no rank has one."""
    return next((found for found in _gathered(problem, world, group) if found is not None), None)


def verified_folder(path: Path, rank: int = 0, world: int = 1) -> Path:
    """The folder where it is what was written, else the one before it with a warning.

    Raises DamagedCheckpoint where both are bad. A folder without a manifest (of Lightning alone) is taken as it is.
    Each rank reads a part; all say the same.
    """
    problem = folder_damage(path, rank, world)
    if problem is None:
        if not (path / MANIFEST).exists():
            rank_zero_info(f"{path}: no {MANIFEST} in it, so nobody knows whether it is whole")
        return path
    before = previous_of(path)
    if (before / MANIFEST).exists() and folder_damage(before, rank, world) is None:
        rank_zero_warn(f"{problem}; going on from the checkpoint before it, {before}")
        return before
    raise DamagedCheckpoint(f"{problem}; there is no sound {before.name} either: give an older checkpoint")


def folder_damage(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with the bytes of a folder, in words, the same on every rank; None where nothing is."""
    return agreed(_damage(path, rank, world), world)


def _damage(path: Path, rank: int, world: int) -> str | None:
    if not path.is_dir():
        return f"{path}: no such checkpoint"
    manifest = path / MANIFEST
    if not manifest.exists():
        return _unfinished(path)
    try:
        hashes: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
        names = sorted(hashes)
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(names)
    except (ValueError, KeyError, TypeError):
        return f"{manifest}: not the hashes of a checkpoint, it is damaged"
    for name in names[rank::world]:
        if not (path / name).is_file():
            return f"{path / name}: no such file, and {MANIFEST} names it"
        if (found := sha256(path / name)) != hashes[name]:
            return f"{path / name}: damaged, its SHA-256 is {found[:12]}… and {str(hashes[name])[:12]}… was written"
    return None


def _unfinished(path: Path) -> str | None:
    """What a missing manifest means: every save of ours writes it last, one of Lightning alone writes none."""
    about = path / "meta.pt"
    if about.is_file() and schema.KEY.encode() in about.read_bytes():
        return f"{path / MANIFEST}: no such file, and every save of llama2_pl ends with it"
    return None


def put_in_place(staging: Path, path: Path) -> None:
    """Give a folder its name and what stood there the name of the previous one.

    The two change names in one step where the file system can (Linux: ext4, xfs, btrfs, tmpfs). Elsewhere a kill
    between two renames can leave the previous one alone, which `recover` puts back. What stood there damaged, left
    behind by a resume, goes, and the good one before it stays.
    """
    flush(staging)
    before, old = previous_of(path), path.with_name(f".{path.name}.old")
    clear(old)
    if not path.exists():
        os.rename(staging, path)
    else:
        sound = path in _WRITTEN or folder_damage(path) is None
        exchanged = _exchange(staging, path)
        if sound and before.exists():
            os.rename(before, old)
        if exchanged:
            os.rename(staging, before if sound else old)
        else:
            os.rename(path, before if sound else old)
            os.rename(staging, path)
    flush(path.parent)
    clear(old)
    _WRITTEN.add(path)


def recover(folder: Path) -> None:
    """Give back its name to each `x.ckpt.previous` whose `x.ckpt` a kill or a hand has removed."""
    for before in folder.glob(f"*.ckpt{PREVIOUS}"):
        path = before.with_suffix("")
        if path.exists():
            continue
        move_checkpoint(before, path)
        rank_zero_warn(f"{path}: missing; the checkpoint before it is back under its name")


def _files_of(folder: Path, rank: int, world: int) -> list[Path]:
    """A rank's own shards, `__<rank>_*`; rank 0 takes what is nobody's (`.metadata`, meta.pt)."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return [path for path in files if _owner(path.name, world) == rank]


def _owner(name: str, world: int) -> int:
    found = re.match(r"__(\d+)_", name)
    owner = int(found[1]) if found else 0
    return owner if owner < world else 0


def _flushed_hash(path: Path) -> str:
    flush(path)
    return sha256(path)


def _gathered(value: Any, world: int, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value, on every rank."""
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value, group)
    return values


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change names in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
