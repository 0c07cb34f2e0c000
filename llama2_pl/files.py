"""Files that are there whole or not at all. Every room may use it; it imports nothing of ours and nothing heavy."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to; flushed to disk and renamed to `path` when all is written, else removed.

    A reader, a kill or a power cut sees the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        os.chmod(temporary, 0o644)  # mkstemp's is for the owner alone
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Busy(OSError):
    """Another process that is alive holds a lock."""


@dataclass
class Lock:
    """A held lock; `left_by` says in words who held it and died, empty where nobody did."""

    path: Path
    descriptor: int
    left_by: str = ""

    def release(self) -> None:
        """Remove the file and let go; a second call does nothing, nor one in a forked child."""
        if self.descriptor in _held:
            self.path.unlink(missing_ok=True)
            _held.remove(self.descriptor)
            os.close(self.descriptor)
        self.descriptor = -1


_held: set[int] = set()


def _let_go() -> None:
    """In a forked child: a loader's worker outlives its killed parent by seconds, and would hold the lock so long."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def lock(path: str | Path) -> Lock | None:
    """Hold a lock file, with who holds it in it; Busy where a living process does.

    The system lets go of it when its process ends in whatever way, so one that is left behind stops nobody. None where
    the system or the file system has no locks.
    """
    if fcntl is None:
        return None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise Busy(holder or "another process") from None
        except OSError:  # no locks on this file system
            os.close(descriptor)
            return None
        if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            break
        os.close(descriptor)  # its holder removed it between the two calls
    left_by = os.read(descriptor, 1000).decode(errors="replace").strip()
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since},".encode())
    _held.add(descriptor)
    return Lock(path, descriptor, left_by)


def write_bytes(path: str | Path, content: bytes) -> None:
    """All of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """All of it or nothing, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: object) -> None:
    """All of it or nothing, indented for people."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def append_line(path: Path, line: str) -> None:
    """On a line of its own, also behind one that a kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())
