"""A dialogue's tokens as a person can read them, with the loss mask coloured."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from llama2_pl.text.chat import Dialog, TrainOn, encode_dialog, encode_prompt
from llama2_pl.text.tags import TagPolicy
from llama2_pl.text.tokenizer import Tokenizer

_LEARNED, _CONTROL, _PLAIN = "\033[32m", "\033[1;35m", "\033[0m"


def preview(
    dialogs: Dialog | Iterable[Dialog],
    tokenizer: Tokenizer,
    *,
    train_on: TrainOn = "answers",
    tags: TagPolicy = "refuse",
    ids: bool = False,
    color: bool | None = None,
    file: TextIO | None = None,
) -> None:
    """Print each dialogue as the model will see it: pieces, control tokens, and which tokens are learned.

    Args:
        dialogs: one dialogue or several; one that ends with a user message is shown as a prompt.
        tokenizer: gives the pieces.
        train_on: the answers that count, as in ``encode_dialog``.
        tags: what to do with control tags in the text, as in ``encode_dialog``.
        ids: put each token's number after its piece.
        color: colour, or ⟦ ⟧ around learned tokens; None: colour on a terminal, unless NO_COLOR is set.
        file: where to print; None: standard output.
    """
    out = file if file is not None else sys.stdout
    coloured = color if color is not None else out.isatty() and "NO_COLOR" not in os.environ
    for number, dialog in enumerate([dialogs] if isinstance(dialogs, Dialog) else dialogs, start=1):
        tokens, loss_mask = _encode(dialog, tokenizer, train_on, tags)
        print(f"dialogue {number}: {len(tokens)} tokens, {sum(loss_mask)} learned", file=out)
        print(render(tokens, loss_mask, tokenizer, ids=ids, color=coloured), end="\n\n", file=out)


def render(
    tokens: Sequence[int],
    loss_mask: Sequence[bool],
    tokenizer: Tokenizer,
    *,
    ids: bool = False,
    color: bool = False,
) -> str:
    """Pieces apart by a space, a line of its own for each turn; learned ones green, or between ⟦ and ⟧.

    A space of the text is ▁ and a line break <0x0A>, so what stands before EOS can be seen.

    Args:
        tokens: ids (T,).
        loss_mask: (T,), True on the learned ones.
        tokenizer: gives the pieces.
        ids: the number of each piece beside it.
        color: colours of a terminal, in place of ⟦ and ⟧.
    """
    if len(tokens) != len(loss_mask):
        raise ValueError(f"{len(tokens)} tokens and {len(loss_mask)} mask values: give one for each token")
    parts: list[str] = []
    learned_before = False
    for at, (token, learned) in enumerate(zip(tokens, loss_mask, strict=True)):
        label = _label(token, tokenizer, ids)
        last = at + 1 == len(tokens) or not loss_mask[at + 1]
        if color:
            control = token in (tokenizer.bos_id, tokenizer.eos_id)
            # Underlined as well when learned: a control token has its own colour.
            style = _CONTROL + ("\033[4m" if learned else "") if control else _LEARNED if learned else ""
            label = f"{style}{label}{_PLAIN}" if style else label
        elif learned:
            label = ("" if learned_before else "⟦") + label + ("⟧" if last else "")
        parts.append(("\n" if token == tokenizer.bos_id and at else " " if at else "") + label)
        learned_before = learned
    return "".join(parts)


def _encode(
    dialog: Dialog, tokenizer: Tokenizer, train_on: TrainOn, tags: TagPolicy
) -> tuple[list[int], list[bool]]:
    if dialog.messages and dialog.messages[-1].role == "user":
        tokens = encode_prompt(dialog, tokenizer, tags=tags)
        return tokens, [False] * len(tokens)
    return encode_dialog(dialog, tokenizer, train_on=train_on, tags=tags)


def _label(token: int, tokenizer: Tokenizer, ids: bool) -> str:
    """The piece without anything that a terminal would obey."""
    piece = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in tokenizer.piece(token))
    return f"{piece}:{token}" if ids else piece
