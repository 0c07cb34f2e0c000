"""Token files: documents as ids in one memory-mapped array, with their starts and an optional loss mask.

NAME/tokens.bin   uint16 (vocabulary up to 65,536) or uint32
NAME/mask.bin     uint8, one per token; dialogues only
NAME/offsets.npy  int64, start of each document and the end of the last one
NAME/meta.json    schema, counts, SHA-256 of the content; written last, so a folder without it is not finished
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

SCHEMA = 1
VERIFIED_BYTES = 1 << 30
"""A longer file is checked by its size alone: our choice, hashing takes a second or two per GB at each start."""


class TokenFile:
    """A finished token file, memory-mapped for reading.

    A flipped bit would train on other words without a sign, so its content is compared with its hash.

    Args:
        path: its folder.
        verify: compare; a worker process, which opens the files again, need not.
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        self.path = Path(path)
        self.meta = _read_meta(self.path)
        self.offsets = _array(self.path / "offsets.npy", mmap_mode="r")
        self.tokens = _map(self.path / "tokens.bin", np.dtype(self.meta["dtype"]), self.meta["tokens"])
        self.mask = (
            _map(self.path / "mask.bin", np.dtype(np.uint8), self.meta["tokens"])
            if self.meta["mask"]
            else None
        )
        if self.offsets.shape != (len(self) + 1,) or (
            len(self) and int(self.offsets[-1]) != len(self.tokens)
        ):
            raise ValueError(
                f"{self.path}/offsets.npy does not fit meta.json: delete the folder to build it again"
            )
        # a folder of an earlier version does not say of what its hash is
        if verify and "columns" in self.meta and self.tokens.nbytes <= VERIFIED_BYTES:
            self._verify()

    def _verify(self) -> None:
        """Raise ValueError where the content is not that of the hash, in the order of TokenFileWriter."""
        digest = hashlib.sha256()
        if self.mask is None:
            digest.update(self.tokens.tobytes())
        else:
            for start, stop in itertools.pairwise(self.offsets.tolist()):
                digest.update(self.tokens[start:stop].tobytes())
                digest.update(self.mask[start:stop].tobytes())
        for column in (self.offsets, *map(self.column, self.meta["columns"])):
            digest.update(np.ascontiguousarray(column).tobytes())
        if digest.hexdigest() != self.sha256:
            raise ValueError(
                f"{self.path}: damaged, its content has SHA-256 {digest.hexdigest()[:12]}… and meta.json says "
                f"{self.sha256[:12]}…: delete the folder to build it again"
            )

    def __len__(self) -> int:
        """Documents."""
        return int(self.meta["documents"])

    def __reduce__(self) -> tuple:
        # A memory map pickles as a copy of its content; a worker process opens the files itself instead.
        return TokenFile, (self.path, False)

    @property
    def sha256(self) -> str:
        """Hash of tokens, mask and document starts: the same content has the same hash wherever it was built."""
        return self.meta["sha256"]

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) int64 tokens of each document."""
        return np.diff(self.offsets)

    def document(self, number: int) -> np.ndarray:
        """(tokens of that document,) ids."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    def column(self, name: str) -> np.ndarray:
        """The per-row array written under ``name``."""
        return _array(self.path / f"{name}.npy")


class TokenFileWriter:
    """Writes a token file document by document; memory holds only the document starts (8 bytes each).

    Args:
        path: the folder to make.
        vocab_size: of the tokenizer; up to 65,536 a token takes two bytes, otherwise four.
        tokenizer_sha256: `Tokenizer.sha256`, so that no other tokenizer's model is trained on it.
        with_mask: a loss mask is written with each document.
    """

    def __init__(
        self, path: str | Path, vocab_size: int, tokenizer_sha256: str, with_mask: bool = False
    ) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True)
        self._dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._meta = {
            "schema": SCHEMA,
            "dtype": self._dtype.name,
            "mask": with_mask,
            "vocab_size": vocab_size,
        }
        self._meta["tokenizer_sha256"] = tokenizer_sha256
        self._tokens = (self.path / "tokens.bin").open("wb")
        self._mask = (self.path / "mask.bin").open("wb") if with_mask else None
        self._offsets = array("q", [0])
        self._hash = hashlib.sha256()

    @property
    def num_tokens(self) -> int:
        return self._offsets[-1]

    @property
    def num_documents(self) -> int:
        return len(self._offsets) - 1

    def add(self, tokens: Sequence[int], mask: Sequence[bool] | None = None) -> None:
        """Append one document."""
        content = np.asarray(tokens, dtype=self._dtype).tobytes()
        self._tokens.write(content)
        self._hash.update(content)
        if self._mask is not None:
            assert mask is not None and len(mask) == len(tokens)
            content = np.asarray(mask, dtype=np.uint8).tobytes()
            self._mask.write(content)
            self._hash.update(content)
        self._offsets.append(self._offsets[-1] + len(tokens))

    def close(self, sources: Sequence[object] = (), columns: Mapping[str, np.ndarray] | None = None) -> None:
        """Write document starts, ``columns`` (NAME.npy each) and, last, meta.json."""
        self._tokens.close()
        if self._mask is not None:
            self._mask.close()
        offsets = np.frombuffer(self._offsets, dtype=np.int64)
        np.save(self.path / "offsets.npy", offsets)
        self._hash.update(offsets.tobytes())
        for name, column in (columns or {}).items():
            np.save(self.path / f"{name}.npy", column)
            self._hash.update(np.ascontiguousarray(column).tobytes())
        meta = self._meta | {
            "tokens": self.num_tokens,
            "documents": self.num_documents,
            "sources": list(sources),
            "columns": list(columns or {}),
        }
        meta["sha256"] = self._hash.hexdigest()
        (self.path / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _read_meta(path: Path) -> dict:
    file = path / "meta.json"
    if not file.is_file():
        raise ValueError(
            f"{path}: not a finished token file (no meta.json): delete the folder to build it again"
        )
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}): delete the folder to build it again") from error
    if meta.get("schema") != SCHEMA:
        raise ValueError(
            f"{file}: schema {meta.get('schema')!r}, and this version reads {SCHEMA}: "
            "delete the folder to build it again, or use the version that wrote it"
        )
    if missing := sorted({"dtype", "tokens", "documents", "mask", "sha256"} - meta.keys()):
        raise ValueError(f"{file}: no {missing[0]}: delete the folder to build it again")
    if meta["dtype"] not in ("uint16", "uint32"):
        raise ValueError(
            f"{file}: dtype {meta['dtype']!r} is none of ours: delete the folder to build it again"
        )
    return meta


def _array(file: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except Exception as error:  # numpy's parser of a damaged header fails in any way there is
        raise ValueError(f"{file}: not readable ({error}): delete the folder to build it again") from error


def _map(file: Path, dtype: np.dtype, count: int) -> np.ndarray:
    size, expected = file.stat().st_size if file.is_file() else -1, count * dtype.itemsize
    if size != expected:
        state = "is missing" if size < 0 else f"has {size} bytes"
        raise ValueError(
            f"{file} {state} where meta.json says {count} {dtype.name} tokens, {expected} bytes: "
            "delete the folder to build it again"
        )
    return np.memmap(file, dtype=dtype, mode="r") if count else np.empty(0, dtype=dtype)
