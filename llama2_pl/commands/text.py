"""`llama2-pl tokenizer train` and `llama2-pl preview`: files to the functions of the text room."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from llama2_pl.data.readers import read_dialogues, read_documents
from llama2_pl.text import Tokenizer
from llama2_pl.text import train_tokenizer as train_on_texts
from llama2_pl.text.preview import preview as print_preview


def train_tokenizer(inputs: list[str] | str, out_dir: str, vocab_size: int = 32_000, seed: int = 0) -> None:
    """Train a SentencePiece BPE tokenizer with Llama 2's options (Llama 2 §2.2).

    Args:
        inputs: a file or folder of text, or a list of them, in any format that the corpus readers know.
        out_dir: folder for tokenizer.model and tokenizer.vocab.
        vocab_size: pieces in all, with 3 control pieces and 256 bytes.
        seed: of the sample of lines that training looks at.
    """
    paths = [inputs] if isinstance(inputs, str) else inputs
    tokenizer = train_on_texts(_texts(paths), out_dir, vocab_size=vocab_size, seed=seed)
    print(f"wrote {out_dir}/tokenizer.model with {tokenizer.vocab_size} pieces")


def preview(
    file: str,
    tokenizer: str,
    limit: int = 3,
    train_on: Literal["answers", "last_answer"] = "answers",
    tags: Literal["refuse", "neutralise"] = "refuse",
    ids: bool = False,
) -> None:
    """Print dialogues as the model will see them, the learned tokens in colour.

    Args:
        file: dialogues in any format that the readers know.
        tokenizer: tokenizer.model.
        limit: number of dialogues to show.
        train_on: the answers that count in the loss.
        tags: what to do with control tags in the text.
        ids: put each token's number after its piece.
    """
    dialogs = islice(read_dialogues(file), limit)
    print_preview(dialogs, Tokenizer(tokenizer), train_on=train_on, tags=tags, ids=ids)


def _texts(paths: list[str]) -> Iterator[str]:
    for path in paths:
        for document in read_documents(path):
            yield document.text
