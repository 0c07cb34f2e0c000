"""Does an instruction given once still hold some turns later? (Llama 2 §3.3 and A.3.5, table 30)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama2_pl.evaluation.answers import answer
from llama2_pl.evaluation.intervals import Interval, wilson
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.chat import Dialog, encode_prompt
from llama2_pl.text.tags import strip_control_tags
from llama2_pl.text.tokenizer import Tokenizer


class Case(NamedTuple):
    """One conversation to hold with the model.

    Attributes:
        instruction: given with the first user turn only.
        user_turns: what the user says, turn by turn, whatever the answers.
        kept: program check of one answer against the instruction.
        name: of the kind of instruction, for the account by kind.
    """

    instruction: str
    user_turns: tuple[str, ...]
    kept: Callable[[str], bool]
    name: str


class Persistence(NamedTuple):
    """Share of answers that keep the instruction at each turn, over all cases and by kind, and the dialogues."""

    by_turn: dict[str, Interval]
    by_name: dict[str, dict[str, Interval]]
    dialogs: list[Dialog]


def persistence(
    model: LanguageModel,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    *,
    turns: Sequence[int] = (1, 2, 4),
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_batch: int | None = 256,
) -> Persistence:
    """Hold each conversation with the model's own answers and check the answers at `turns` (1 is the first).

    Llama 2 A.3.5, table 30 asks at turns 2, 4, 6 and 20. The instruction is the system message, which the chat
    format puts into the first user turn and nowhere else (§3.3). Our choice: greedy answers, so that the share has
    no sampling noise of its own; the intervals are over cases. Control tags are cut from an answer before it
    becomes context. Every dialogue must fit the model's context to its last turn, as the paper's do; nothing is
    cut, for a cut dialogue brings the instruction nearer.

    Args:
        model: the chat model.
        tokenizer: its own.
        cases: instruction, user turns and how an answer is checked.
        turns: where answers are checked.
        max_new_tokens: most tokens of an answer, EOS included.
        temperature: of sampling; 0: greedy.
        top_p: of sampling.
        seed: of sampling.
        max_batch: most dialogues answered together; None: all.
    """
    last = max(turns)
    _require_turns(cases, last)
    require_room(model, tokenizer, [_shortest(case, last) for case in cases], last, max_new_tokens)
    dialogs = [Dialog.of([("system", case.instruction)]) for case in cases]
    kept: dict[int, list[bool]] = {}
    for turn in range(1, last + 1):
        asked = [
            dialog.then("user", case.user_turns[turn - 1])
            for dialog, case in zip(dialogs, cases, strict=True)
        ]
        require_room(model, tokenizer, asked, turn, max_new_tokens)
        answers = answer(
            model,
            tokenizer,
            asked,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + turn,
            max_batch=max_batch,
        )
        kept[turn] = [case.kept(text) for case, text in zip(cases, answers, strict=True)]
        clean = [strip_control_tags(text).strip() for text in answers]
        dialogs = [dialog.then("assistant", text) for dialog, text in zip(asked, clean, strict=True)]
    return Persistence(*_shares(cases, {turn: kept[turn] for turn in turns}), dialogs)


def _require_turns(cases: Sequence[Case], last: int) -> None:
    for case in cases:
        if len(case.user_turns) < last:
            raise ValueError(
                f"case {case.name!r} ({case.instruction!r}) has {len(case.user_turns)} user turns; "
                f"turn {last} was asked for"
            )


def _shortest(case: Case, turns: int) -> Dialog:
    """The case up to its question of turn `turns`, as if every answer were empty."""
    dialog = Dialog.of([("system", case.instruction), ("user", case.user_turns[0])])
    for text in case.user_turns[1:turns]:
        dialog = dialog.then("assistant", "").then("user", text)
    return dialog


def require_room(
    model: LanguageModel, tokenizer: Tokenizer, asked: Sequence[Dialog], turn: int, max_new_tokens: int
) -> None:
    """Raise ValueError where a dialogue and its next answer are longer than the model's context."""
    room = model.config.max_seq_len - max_new_tokens
    longest = max(len(encode_prompt(dialog, tokenizer, tags="neutralise")) for dialog in asked)
    if longest > room:
        raise ValueError(
            f"turn {turn}: a dialogue has {longest} tokens, and with max_new_tokens {max_new_tokens} only {room} fit "
            f"the model's max_seq_len {model.config.max_seq_len}; ask at earlier turns, lower max_new_tokens, or "
            "fine-tune with a longer model.max_seq_len"
        )


def _shares(
    cases: Sequence[Case], kept: dict[int, list[bool]]
) -> tuple[dict[str, Interval], dict[str, dict[str, Interval]]]:
    """The share kept by turn, over all cases and for each name."""
    by_turn = {str(turn): wilson(sum(rows), len(rows)) for turn, rows in kept.items()}
    by_name: dict[str, dict[str, Interval]] = {}
    for name in sorted({case.name for case in cases}):
        own = {
            turn: [k for k, case in zip(rows, cases, strict=True) if case.name == name]
            for turn, rows in kept.items()
        }
        by_name[name] = {str(turn): wilson(sum(rows), len(rows)) for turn, rows in own.items()}
    return by_turn, by_name
