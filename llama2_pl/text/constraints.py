"""Instructions that hold for a whole dialogue, and the program that checks an answer against them.

Llama 2 §3.3: Ghost Attention teaches the model to keep such an instruction over many turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_KEYS = ("text", "short", "check", "kind")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Constraint(NamedTuple):
    """One instruction that the model must keep in every answer.

    Attributes:
        text: the instruction: "Always answer in capitals."
        short: the same, shortened as in the paper's "Figure: Napoleon.": "Style: capitals."
        check: "capitals", "starts_with:WORD", "ends_with:WORD", "contains:WORD"; None: no program can tell.
        kind: constraints of one kind exclude each other ("figure", "language"); "": the name of the check.
    """

    text: str
    short: str
    check: str | None = None
    kind: str = ""

    @property
    def group(self) -> str:
        """What it may be combined only once with: its kind, else the name of its check, else itself."""
        return self.kind or (self.check.partition(":")[0] if self.check else self.text)


def constraint_kept(constraint: Constraint, answer: str) -> bool:
    """Does the answer keep the constraint, as far as its program check can tell?

    Our choice of checks: "capitals" wants at least one letter and none in lower case. The others compare whole
    words, without regard to case (so that they combine with "capitals") or to punctuation around the words.
    An empty answer keeps nothing. A constraint without a check raises ValueError.
    """
    if constraint.check is None:
        raise ValueError(f"constraint {constraint.text!r} has no check: no program can tell; give it one")
    name, wanted = parse_check(constraint.check)
    words = _words(answer)
    if name == "capitals":
        return answer.isupper()
    if name == "starts_with":
        return words[: len(wanted)] == wanted
    if name == "ends_with":
        return words[-len(wanted) :] == wanted
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))


def checkable(constraints: Iterable[Constraint]) -> list[Constraint]:
    """Those that a program can check."""
    return [constraint for constraint in constraints if constraint.check is not None]


def parse_check(check: str) -> tuple[str, list[str]]:
    """(name of the check, its words in lower case), or ValueError for a check that there is not."""
    name, colon, argument = check.partition(":")
    words = _words(argument)
    if name == "capitals" and not colon:
        return name, []
    if name in ("starts_with", "ends_with", "contains") and words:
        return name, words
    raise ValueError(
        f'check {check!r}: give "capitals", "starts_with:WORD", "ends_with:WORD" or "contains:WORD", '
        "where WORD has a letter or a digit, or null where no program can tell"
    )


def constraint_of(row: Mapping[str, Any], where: str = "constraint") -> Constraint:
    """A constraint of a row {"text", "short", "check", "kind"}; all but the text may be missing or null."""
    unknown = set(row) - set(_KEYS)
    if unknown:
        raise ValueError(f"{where}: unknown key {min(unknown)!r}; there are {', '.join(_KEYS)}")
    values = {key: row.get(key) for key in _KEYS}
    for key, value in values.items():
        if not isinstance(value, str) and (key == "text" or value is not None):
            raise ValueError(f"{where}: key {key!r} is {value!r}; it must be a string")
    text = values["text"]
    assert isinstance(text, str)
    if not text.strip():
        raise ValueError(f"{where}: key 'text' is empty; write the instruction")
    try:
        if values["check"] is not None:
            parse_check(values["check"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Constraint(text, values["short"] or text, values["check"], values["kind"] or "")


def read_constraints(source: str | Path | Sequence[Mapping[str, Any]]) -> list[Constraint]:
    """Constraints of a JSON array or JSON-lines file, or of rows at hand."""
    if not isinstance(source, (str, Path)):
        return [constraint_of(row, f"constraint {number}") for number, row in enumerate(source)]
    text = Path(source).read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows = [(f"{source}: item {number}", row) for number, row in enumerate(_loads(text, str(source)))]
    else:
        lines = [(f"{source}:{number}", line) for number, line in enumerate(text.splitlines(), start=1)]
        rows = [(where, _loads(line, where)) for where, line in lines]
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {row!r:.60} is not an object with a text")
    return [constraint_of(row, where) for where, row in rows]


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
