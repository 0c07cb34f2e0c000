"""`llama2-pl preview`: the dialogues of a file as the model will see them."""

from __future__ import annotations

from itertools import islice

from llama2_pl.data.readers.dialogues import read_dialogues
from llama2_pl.text.chat import TrainOn
from llama2_pl.text.preview import preview
from llama2_pl.text.tags import TagPolicy
from llama2_pl.text.tokenizer import Tokenizer


def preview_file(
    file: str,
    tokenizer: str,
    format: str = "auto",
    limit: int = 3,
    train_on: TrainOn = "answers",
    tags: TagPolicy = "neutralise",
    ids: bool = False,
    color: bool | None = None,
) -> None:
    """Print the tokens of a file's dialogues with the loss mask coloured.

    Args:
        file: dialogues in any format that ``read_dialogues`` knows.
        tokenizer: path of a tokenizer.model.
        format: of the file; "auto" tells it from the keys.
        limit: show so many dialogues.
        train_on: the answers that count: answers (all) or last_answer.
        tags: control tags in the text: refuse or neutralise.
        ids: put each token's number after its piece.
        color: colour, or ⟦ ⟧ around learned tokens; null: colour on a terminal.
    """
    dialogs = islice(read_dialogues(file, format), limit)
    preview(dialogs, Tokenizer(tokenizer), train_on=train_on, tags=tags, ids=ids, color=color)
