"""The ledger of a cleaning run: what came in, what went out, and what each rule took. In is out and taken, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Size:
    """Documents, characters, and tokens where a tokenizer counts them."""

    documents: int = 0
    characters: int = 0
    tokens: int | None = None

    def add(self, text: str, tokens: int | None) -> None:
        self.documents += 1
        self.characters += len(text)
        if tokens is not None:
            self.tokens = (self.tokens or 0) + tokens


@dataclass
class Taken:
    """What a rule took: whole documents; of others, how many it changed, their lines; characters of both.

    A rule that puts words in place of others may take less than no characters.
    """

    documents: int = 0
    changed: int = 0
    lines: int = 0
    characters: int = 0

    def add(self, before: str, left: str | None) -> None:
        self.characters += len(before) - len(left or "")
        if left is None:
            self.documents += 1
        elif left is not before:
            self.changed += 1
            self.lines += before.count("\n") - left.count("\n")


@dataclass
class Account:
    """One source: `size_in` is `size_out` and the sum of `taken`, in documents and in characters."""

    rules: Sequence[str]
    size_in: Size = field(default_factory=Size)
    size_out: Size = field(default_factory=Size)
    taken: dict[str, Taken] = field(init=False)

    def __post_init__(self) -> None:
        self.taken = {name: Taken() for name in self.rules}

    def to_dict(self) -> dict[str, Any]:
        taken = {name: asdict(rule) for name, rule in self.taken.items()}
        return {"in": asdict(self.size_in), "out": asdict(self.size_out), "taken": taken}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under their heads as aligned text: numbers to the right, with a comma at the thousands."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def size_table(accounts: dict[str, Account]) -> str:
    """Each source in and out."""
    head = ["source", "documents", "kept", "characters", "kept", "tokens", "kept"]
    rows = []
    for name, account in accounts.items():
        into, out = account.size_in, account.size_out
        rows.append(
            [name, into.documents, out.documents, into.characters, out.characters, into.tokens, out.tokens]
        )
    counted = any(account.size_in.tokens is not None for account in accounts.values())
    columns = len(head) if counted else 5
    return table(head[:columns], [row[:columns] for row in rows])


def rule_table(accounts: dict[str, Account]) -> str:
    """What each rule took of each source; rules that took nothing are left out."""
    rows = [
        [name, rule, taken.documents, taken.changed, taken.lines, taken.characters]
        for name, account in accounts.items()
        for rule, taken in account.taken.items()
        if taken != Taken()
    ]
    return table(["source", "rule", "documents", "changed", "lines", "characters"], rows)
