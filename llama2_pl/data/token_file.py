"""Token files: documents as ids in one memory-mapped array, with their starts and an optional loss mask.

NAME/tokens.bin   uint16 (vocabulary up to 65,536) or uint32
NAME/mask.bin     uint8, one per token; dialogues only
NAME/offsets.npy  int64, start of each document and the end of the last one
NAME/meta.json    schema, counts, SHA-256 of the content; written last, so a folder without it is not finished
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

SCHEMA = 1


class TokenFile:
    """A finished token file, memory-mapped for reading."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta = _read_meta(self.path)
        self.offsets = np.load(self.path / "offsets.npy", mmap_mode="r", allow_pickle=False)
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

    def __len__(self) -> int:
        """Documents."""
        return int(self.meta["documents"])

    def __reduce__(self) -> tuple:
        # A memory map pickles as a copy of its content; a worker process opens the files itself instead.
        return TokenFile, (self.path,)

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
        return np.load(self.path / f"{name}.npy", allow_pickle=False)


class TokenFileWriter:
    """Writes a token file document by document; memory holds only the document starts (8 bytes each)."""

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
    return meta


def _map(file: Path, dtype: np.dtype, count: int) -> np.ndarray:
    size, expected = file.stat().st_size if file.is_file() else -1, count * dtype.itemsize
    if size != expected:
        state = "is missing" if size < 0 else f"has {size} bytes"
        raise ValueError(
            f"{file} {state} where meta.json says {count} {dtype.name} tokens, {expected} bytes: "
            "delete the folder to build it again"
        )
    return np.memmap(file, dtype=dtype, mode="r") if count else np.empty(0, dtype=dtype)
