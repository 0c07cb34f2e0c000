"""Training data as ids, document by document, whether tokenised already or not; memory holds one batch of them."""

from __future__ import annotations

import functools
import glob
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama2_pl.data.readers import Document, read_documents
from llama2_pl.data.token_file import TokenFile
from llama2_pl.text.tokenizer import Tokenizer

Batch = tuple[np.ndarray, np.ndarray]
"""ids (N,) of whole documents, and offsets (documents + 1,) from 0 to N."""
_MAPPED = 1 << 24  # tokens of a batch from a file of them
_READ = 1 << 20  # the same where they are made from text


class TrainingTokens(NamedTuple):
    """Tokens of a token file or of the documents behind a path.

    Attributes:
        name: the path.
        tokens: how many; None where nobody knows before they are made.
        batches: gives them, once.
    """

    name: str
    tokens: int | None
    batches: Callable[[], Iterator[Batch]]


def training_tokens(
    entry: str, tokenizer: Tokenizer, format: str = "auto", text_key: str = "text", strict: bool = True
) -> list[TrainingTokens]:
    """The token files that a path or glob names, or else its documents.

    A token file of another tokenizer is refused, and a missing file before anything is read.

    Args:
        entry: a token file (a folder with tokens.bin), a folder of CorpusDataModule's cache (its `train` is taken), a
            glob of either; or a file, folder or glob of documents.
        tokenizer: of the ids.
        format: of documents; see ``read_documents``, as for the next two.
        text_key: key or column of their text.
        strict: stop at a malformed row, or skip and count it.
    """
    entry = os.path.expanduser(entry)
    matches = [entry] if os.path.exists(entry) else sorted(glob.glob(entry, recursive=True))
    if cached := next((p.parents[1] for p in Path(entry).glob("*/train/tokens.bin")), None):
        raise ValueError(f"{entry}: a folder of caches, such as {cached}: name those that were trained on")
    folders = {match: folder for match in matches if (folder := _token_folder(Path(match)))}
    if folders and len(folders) < len(matches):
        other = next(match for match in matches if match not in folders)
        raise ValueError(
            f"{entry}: {next(iter(folders))} is a token file and {other} is none: give them apart"
        )
    if folders:
        files = [_opened(folder, tokenizer) for folder in folders.values()]
        return [TrainingTokens(str(f.path), len(f.tokens), functools.partial(_mapped, f)) for f in files]
    documents = read_documents(entry, format, text_key=text_key, strict=strict)
    return [TrainingTokens(entry, None, functools.partial(_encoded, documents, tokenizer))]


def _token_folder(path: Path) -> Path | None:
    """The token file that a folder is or holds as its part to train on."""
    return next((folder for folder in (path, path / "train") if (folder / "tokens.bin").is_file()), None)


def _opened(folder: Path, tokenizer: Tokenizer) -> TokenFile:
    file = TokenFile(folder)
    if file.meta.get("tokenizer_sha256", tokenizer.sha256) != tokenizer.sha256:
        raise ValueError(
            f"{folder}: its tokens are of another tokenizer than {tokenizer.path}: give that one, or the documents"
        )
    return file


def _mapped(file: TokenFile) -> Iterator[Batch]:
    first, offsets = 0, np.asarray(file.offsets)
    while first < len(file):
        last = int(np.searchsorted(offsets, offsets[first] + _MAPPED, side="right")) - 1
        last = max(first + 1, last)
        yield file.tokens[offsets[first] : offsets[last]], offsets[first : last + 1] - offsets[first]
        first = last


def _encoded(documents: Iterator[Document], tokenizer: Tokenizer) -> Iterator[Batch]:
    ids, offsets = array("I"), [0]
    for document in documents:
        ids.extend(tokenizer.encode(document.text, bos=True, eos=True))
        offsets.append(len(ids))
        if len(ids) >= _READ:
            yield np.array(ids, dtype=np.uint32), np.array(offsets)
            ids, offsets = array("I"), [0]
    yield np.array(ids, dtype=np.uint32), np.array(offsets)
