"""SHA-256 of files and folders; a file that stayed as it was is not read again, as in git's index.

A run of 7B holds terabytes of checkpoints, and each start of its recipe asks whether one of them changed. So a hash is
remembered with the file's size, time and inode, in this process and in the manifests, and holds while those three stay.
Damage on the disk itself, which changes none of them, is what the hashes beside checkpoints and token files are for.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

State = list[int]
"""Size in bytes, time of the last change in nanoseconds, inode."""

_TICK = 50_000_000  # nanoseconds: a change soon after another may get the same time
_SECOND = 1_000_000_000  # as long as that where times are whole seconds
_known: dict[tuple[str, int, int, int], str] = {}


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and hashes of the files below a folder. Missing: an empty string."""
    path = Path(path)
    if path.is_file():
        return _of_file(path)
    return digest(listing(path)) if path.is_dir() else ""


def listing(folder: Path) -> dict[str, str]:
    """The hash of each file below a folder, by its path from there, in order."""
    return {str(path.relative_to(folder)): _of_file(path) for path in files_below(folder)}


def digest(hashes: Mapping[str, str]) -> str:
    return sha256("\n".join(f"{name} {sha}" for name, sha in hashes.items()))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def files_below(path: Path) -> list[Path]:
    """The file itself, or those below the folder, in the order of their names."""
    found = path.rglob("*") if path.is_dir() else [path]
    return sorted((one for one in found if one.is_file()), key=lambda one: str(one.relative_to(path)))


def states(paths: Iterable[str]) -> dict[str, State]:
    """The state of each file there and below, to be remembered with its hash; not of one that changed just now."""
    found = {str(file): _state(file) for path in paths for file in files_below(Path(path))}
    return {name: state for name, state in found.items() if state is not None}


def remember(hashes: Mapping[str, str], then: Mapping[str, State]) -> None:
    """These files, when they were in these states, had these hashes."""
    for name in hashes.keys() & then.keys():
        _known[_key(Path(name), then[name])] = hashes[name]


def _of_file(path: Path) -> str:
    state = _state(path)
    key = None if state is None else _key(path, state)
    if key in _known:
        return _known[key]
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    if key is not None:
        _known[key] = found.hexdigest()
    return found.hexdigest()


def _key(path: Path, state: State) -> tuple[str, int, int, int]:
    size, changed, inode = state
    return os.path.abspath(path), size, changed, inode


def _state(path: Path) -> State | None:
    """None: changed so lately that another change might not show."""
    found = path.stat()
    granularity = _TICK if found.st_mtime_ns % _SECOND else _SECOND + _TICK
    lately = time.time_ns() - found.st_mtime_ns < granularity
    return None if lately else [found.st_size, found.st_mtime_ns, found.st_ino]
