"""`llama2-pl tokenizer train`: a tokenizer from files in any of the formats that pretraining reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from llama2_pl.data.readers import read_documents
from llama2_pl.text.tokenizer import train_tokenizer


def train_tokenizer_on_files(
    files: str | list[str],
    out: str,
    vocab_size: int = 32_000,
    format: str = "auto",
    max_characters_per_file: int | None = None,
    input_sentence_size: int = 200_000_000,
    seed: int = 0,
    num_threads: int = 2,
) -> None:
    """Write tokenizer.model and tokenizer.vocab with Llama 2's options (§2.2).

    Args:
        files: one or a list of files, folders or globs of documents.
        out: folder for the tokenizer.
        vocab_size: pieces in all, control pieces and bytes among them.
        format: of the documents, as for the corpus; "auto" looks.
        max_characters_per_file: read no more of each entry of `files`; a cheap way to weigh sources.
        input_sentence_size: most lines to look at, a random sample beyond that.
        seed: of that sample.
        num_threads: of the trainer.
    """
    files = [files] if isinstance(files, str) else files
    texts = itertools.chain.from_iterable(_texts(path, format, max_characters_per_file) for path in files)
    tokenizer = train_tokenizer(
        texts,
        out,
        vocab_size=vocab_size,
        input_sentence_size=input_sentence_size,
        seed=seed,
        num_threads=num_threads,
    )
    print(f"tokenizer: {tokenizer.vocab_size} pieces, sha256 {tokenizer.sha256[:12]}, {out}/tokenizer.model")


def _texts(path: str, format: str, limit: int | None) -> Iterator[str]:
    seen = 0
    for document in read_documents(path, format=format):
        if limit is not None and seen >= limit:
            return
        seen += len(document.text)
        yield document.text
