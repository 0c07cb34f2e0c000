"""`llama2-pl preview`: a file of dialogues to the preview of the text room."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

from llama2_pl.data.readers import read_dialogues
from llama2_pl.text import Tokenizer
from llama2_pl.text.preview import preview as print_preview


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
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    if Path(file).is_dir():
        raise ValueError(f"{file} is a folder; give one file of dialogues")
    dialogs = list(islice(read_dialogues(file), limit))
    if not dialogs:
        raise ValueError(f"{file} holds no dialogue to show")
    print_preview(dialogs, Tokenizer(tokenizer), train_on=train_on, tags=tags, ids=ids)
