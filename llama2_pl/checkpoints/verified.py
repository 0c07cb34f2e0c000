"""Checkpoints of one file that a kill cannot halve and a flipped bit cannot change unseen."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from llama2_pl.files import flush, replacing, write_json

PREVIOUS = ".previous"
_WRITTEN: set[Path] = set()  # by this process, so that its own files are not read again at each save


class DamagedCheckpoint(ValueError):
    """A checkpoint is not the file that was written."""


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's single-file checkpoints, whole or not at all, with a SHA-256 beside them and the one before kept.

    `torch.load` checks nothing: of 150 flipped bits in a small checkpoint, 50 load silently. Here `x.ckpt` is written
    beside its place, flushed and renamed; `x.ckpt.sha256` names its hash; what stood in its place stays as
    `x.ckpt.previous`. Between two renames the hash file names both the old and the new file, so that no moment leaves
    a checkpoint that does not match. A load verifies first; where the file is damaged or missing it warns, naming it,
    and takes the previous one. Plain types and tensors only are read (`weights_only`).

    Folders of shards, which Lightning writes past every CheckpointIO, are `sharded`'s.

    Args:
        keep_previous: keep what stood at the same path before; costs its size on disk.
        background: write in a thread while training goes on. A failed write stops the run at the next save or at its
            end; the state is copied first, which costs its size in memory. Folders of shards are written at once and
            hashed, flushed to the disk and put in place in the thread.
    """

    def __init__(self, keep_previous: bool = True, background: bool = False) -> None:
        super().__init__()
        self.keep_previous = keep_previous
        self._writer = ThreadPoolExecutor(1) if background else None
        self._pending: Future[object] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write `path`, its hash, and keep what was there."""
        if storage_options is not None:
            raise TypeError("storage_options is not supported by VerifiedCheckpointIO; leave it out")
        if self._writer is None:
            write_checkpoint(checkpoint, Path(path), self.keep_previous)
            return
        self.wait()  # before the copy, which needs the memory of the last one
        self.later(write_checkpoint, _copy(checkpoint), Path(path), self.keep_previous)

    @property
    def background(self) -> bool:
        """Whether writes end in a thread."""
        return self._writer is not None

    def later(self, work: Callable[..., object], *arguments: Any) -> None:
        """Work in the background, after what is under way there; its failure is raised by the next `wait`."""
        assert self._writer is not None
        self.wait()
        self._pending = self._writer.submit(work, *arguments)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The verified content of `path`, or of the one before it. `weights_only` None means True."""
        self.wait()
        if Path(path).is_dir():
            raise ValueError(
                f"{path}: a folder of shards; go on with a strategy that reads it, on any number of devices: "
                "ModelParallelStrategy (configs/trainer/fsdp2.yaml)"
            )
        sound = verified_path(Path(path))
        return torch.load(
            sound, map_location=map_location or "cpu", weights_only=weights_only is not False, mmap=False
        )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and what belongs to it; one that cannot be removed is left with a warning.

        Where the write before it failed nothing goes, for it may be the last good one; the next save, of which all
        ranks hear, raises.
        """
        if self._pending is not None and self._pending.exception() is not None:
            return
        for file in (
            previous_of(Path(path)),
            Path(path),
        ):  # in this order, for `recover` gives the former its name
            for part in (file, hash_file(file)):
                clear(part)

    def teardown(self) -> None:
        """Wait for the last write; raises where it failed."""
        self.wait()

    def wait(self) -> None:
        """For the write in the background; raises where it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def clear(path: Path) -> None:
    """Remove a file or folder; what cannot be removed stays, with a warning."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        rank_zero_warn(f"{path}: could not be removed ({error}); training goes on, remove it by hand")


def hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def previous_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{PREVIOUS}")


def write_checkpoint(checkpoint: dict[str, Any], path: Path, keep_previous: bool = True) -> None:
    """Write beside, flush, rename; every moment between leaves files that match their hashes."""
    for rest in path.parent.glob(f".{path.name}*.tmp"):  # of a save that was killed
        rest.unlink(missing_ok=True)
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)
        flush(temporary)
        new = sha256(temporary)
        old = _stands_at(path)
        # a damaged one, which a resume left behind, must not take the place of the good one before it
        if old and keep_previous and (path in _WRITTEN or damage(path) is None):
            _keep(path, old)
        _write_hashes(path, [new, *old])
    _write_hashes(path, [new])
    _WRITTEN.add(path)


def move_checkpoint(source: Path, target: Path) -> None:
    """Rename a checkpoint over another, its hash with it where it has one."""
    hashes = _stands_at(source) if hash_file(source).exists() else []
    if hashes:
        _write_hashes(target, [*hashes, *_stands_at(target)])
    os.replace(source, target)
    if hashes:
        _write_hashes(target, hashes)
        hash_file(source).unlink()


def verified_path(path: Path) -> Path:
    """`path` where it is what was written, else the one before it with a warning; DamagedCheckpoint if both are bad.

    A file without a hash beside it (a copy, or of another program) has only the checksums that torch.save writes in it.
    """
    problem = damage(path)
    if problem is None:
        if not hash_file(path).exists():
            rank_zero_info(
                f"{path}: no {hash_file(path).name} beside it; checked by the checksums in the file alone"
            )
        return path
    before = previous_of(path)
    if before.exists() and hash_file(before).exists() and damage(before) is None:
        rank_zero_warn(f"{problem}; going on from the checkpoint before it, {before}")
        return before
    raise DamagedCheckpoint(f"{problem}; there is no sound {before.name} either: give an older checkpoint")


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, in words; None where nothing is."""
    if not path.is_file():
        return f"{path}: no such checkpoint"
    if not hash_file(path).exists():
        return _damaged_archive(path)
    try:
        expected = _hashes(path)
    except (ValueError, KeyError, TypeError):
        return f"{hash_file(path)}: not the hash of a checkpoint, it is damaged"
    found = sha256(path)
    if found in expected:
        return None
    return f"{path}: damaged, its SHA-256 is {found[:12]}… and {expected[0][:12]}… was written"


def _damaged_archive(path: Path) -> str | None:
    """As `damage`, by the checksum that a file of torch.save has of each of its parts; torch.load looks at none."""
    with path.open("rb") as file:
        if file.read(1) == pickle.PROTO:  # torch before 1.6, which wrote none
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    # RuntimeError: encrypted, or packed in a way that Python does not know
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError):
        return f"{path}: damaged or cut short, not a whole file of torch.save"
    return None if part is None else f"{path}: damaged, the checksum of {part} in it is wrong"


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _keep(path: Path, hashes: list[str]) -> None:
    """Let `previous` name the file that stands at `path`, without a moment in which it names none."""
    before = previous_of(path)
    stood = _stands_at(before)
    link = before.with_name(f".{before.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # exFAT, SMB and others have no links
        shutil.copyfile(path, link)
        flush(link)
    _write_hashes(before, [*hashes, *stood])
    os.replace(link, before)
    _write_hashes(before, hashes)


def _stands_at(path: Path) -> list[str]:
    """The hashes that the file at `path` may have; none where there is no file, or only a damaged hash of it."""
    if not path.is_file():
        return []
    if not hash_file(path).exists():
        return [sha256(path)]
    try:
        return _hashes(path)
    except (ValueError, KeyError, TypeError):
        return []


def _hashes(path: Path) -> list[str]:
    """The hashes that a file may have: one, or two while it is being replaced."""
    hashes = json.loads(hash_file(path).read_text(encoding="utf-8"))["sha256"]
    if not hashes or not all(isinstance(digest, str) and len(digest) == 64 for digest in hashes):
        raise ValueError(hashes)
    return hashes


def _write_hashes(path: Path, hashes: list[str]) -> None:
    write_json(hash_file(path), {"sha256": list(dict.fromkeys(hashes))})


def _copy(value: Any) -> Any:
    """A copy of the tensors on the CPU, so that training may go on changing its own."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_copy(part) for part in value]
    return tuple(map(_copy, value)) if type(value) is tuple else value
