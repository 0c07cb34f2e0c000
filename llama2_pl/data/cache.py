"""Work done once: folders keyed by what they were made from, safe with several processes at a time."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

Files = str | list[str]

VERSION = 2
"""Part of every key: raise it when the content made from the same input changes (chat format, columns)."""


def as_paths(files: Files) -> list[str]:
    """One path, folder or glob, or a list of them, as a list; ``~`` is the home folder."""
    return [os.path.expanduser(path) for path in ([files] if isinstance(files, str) else files)]


def describe_files(files: Files, key: str) -> list[list[str | int]]:
    """[path, bytes, mtime in ns] of every file behind ``files``: paths, folders or globs, in a fixed order.

    ``key`` is the option the paths came from, for the error.
    """
    found: list[Path] = []
    for pattern in as_paths(files):
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise ValueError(f"{key}: no file matches {pattern!r}: give an existing path, folder or glob")
        for match in map(Path, matches):
            found += sorted(p for p in match.rglob("*") if p.is_file()) if match.is_dir() else [match]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path in found for stat in [path.stat()]]


def fingerprint(*parts: object) -> str:
    """Hex digest of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build_once(
    cache_dir: str | Path, name: str, made_from: Sequence[object], build: Callable[[Path], None]
) -> Path:
    """The folder ``cache_dir/name-KEY``, built by ``build(folder)`` unless it is there.

    Built under another name and renamed when complete. Of two processes that build at once the first rename wins
    and both use that folder.
    """
    target = Path(cache_dir) / f"{name}-{fingerprint(VERSION, name, *made_from)[:16]}"
    if target.is_dir():
        return target
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        build(draft)
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
