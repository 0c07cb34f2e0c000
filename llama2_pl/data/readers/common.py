"""What all readers share: row errors, strict and lenient reading, the report, and the limits.

Our choice: a row is *malformed* when its bytes or its shape are wrong (bad UTF-8, a missing key, NaN). Strict
reading stops there with file and line; lenient reading skips it, counts it, and stops when too many are bad.
A row is *unusable* when it is well formed and says nothing to learn from (a tie, an empty answer, a tool call).
Both kinds of reading skip it and count it.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from llama2_pl.files import replacing

log = logging.getLogger(__name__)
T = TypeVar("T")


class MalformedRow(ValueError):
    """A row whose bytes or shape are wrong. The text says what, the value, and the way out."""


class UnusableRow(ValueError):
    """A well-formed row that gives nothing to learn from. The text is the reason that is counted."""


@dataclass(frozen=True)
class Limits:
    """Where a reader stops, against decompression bombs and files that are mostly broken. Sizes in bytes.

    Our choice. ``max_ratio`` is decompressed over compressed size (text gzips by 3 to 10, zeros by 1000);
    ``max_skipped_share`` is the share of malformed rows that lenient reading puts up with.
    """

    max_line_bytes: int = 16 * 2**20
    max_document_bytes: int = 256 * 2**20
    max_array_bytes: int = 2**30
    max_total_bytes: int = 2**40
    max_ratio: float = 200.0
    max_skipped_share: float = 0.05


DEFAULT_LIMITS = Limits()


@dataclass
class ReadReport:
    """Counts of one or more files that were read. Give the same report to several readers to add them up."""

    read: int = 0
    malformed: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        return self.malformed + self.unusable.total()

    @property
    def malformed_share(self) -> float:
        return self.malformed / max(1, self.malformed + self.read + self.unusable.total())

    def __str__(self) -> str:
        parts = [f"{self.read} read"]
        parts += [f"{self.malformed} malformed rows skipped"] if self.malformed else []
        parts += [f"{count} unusable: {reason}" for reason, count in self.unusable.most_common()]
        parts += [f"{count} repaired: {what}" for what, count in self.repaired.most_common()]
        return "; ".join(parts)


class Raw(NamedTuple):
    """One row before it is understood: where it stands, and its value or what is wrong with it."""

    line: int
    value: Any = None
    problem: str | None = None


@dataclass
class Reading:
    """How one file is read; ``name`` is the path as the user gave it."""

    name: str
    strict: bool = True
    limits: Limits = field(default_factory=Limits)
    report: ReadReport = field(default_factory=ReadReport)

    def named(self, name: str) -> Reading:
        """The same for another file; the report is shared."""
        return Reading(name, self.strict, self.limits, self.report)


def parse_rows(raws: Iterable[Raw], parse: Callable[[Raw], Iterable[T]], how: Reading) -> Iterator[T]:
    """What ``parse`` makes of each row; a bad row stops or is counted, as ``how`` says."""
    start = how.report.skipped
    for raw in raws:
        try:
            if raw.problem is not None:
                raise MalformedRow(raw.problem)
            values = list(parse(raw))
        except UnusableRow as reason:
            how.report.unusable[str(reason)] += 1
            continue
        except MalformedRow as error:
            _skip(f"{how.name}:{raw.line}: {error}", how)
            continue
        how.report.read += len(values)
        yield from values
    _check_share(how, enough=1)
    if how.report.skipped > start:
        log.warning("%s: %d rows skipped; so far: %s", how.name, how.report.skipped - start, how.report)


def _skip(error: str, how: Reading) -> None:
    if how.strict:
        raise ValueError(
            f"{error} (where the source or command has the option, strict: false skips and counts such rows)"
        ) from None
    how.report.malformed += 1
    if len(how.report.examples) < 10:
        how.report.examples.append(error)
    _check_share(how, enough=1000)


def _check_share(how: Reading, enough: int) -> None:
    """Stop when too large a share of the rows is malformed; looked at early only once ``enough`` were seen."""
    report, limit = how.report, how.limits.max_skipped_share
    if report.read + report.skipped >= enough and report.malformed_share > limit:
        raise ValueError(
            f"{how.name}: {report.malformed} of {report.read + report.skipped} rows are malformed, more than the "
            f"share of {limit:g} that max_skipped_share allows; the first: {report.examples[0]}"
        )


@dataclass(frozen=True)
class Format:
    """A kind of row: the keys that tell it, and what a row of it becomes."""

    keys: frozenset[str]
    parse: Callable[[dict[str, Any], Raw], list[Any]]


class FormatChooser:
    """Parses rows with the named format, or with the one that the keys of the first fitting row tell.

    The format then holds for the file, so that a later row without a key is an error and not a new format.
    """

    def __init__(self, formats: Mapping[str, Format], name: str) -> None:
        if name != "auto" and name not in formats:
            raise ValueError(f"format {name!r}: choose auto or one of {', '.join(formats)}")
        self._formats = formats
        self.name = name

    def __call__(self, raw: Raw) -> list[Any]:
        row = mapping(raw.value, "the row")
        if self.name == "auto":
            self.name = self._tell(row)
        return self._formats[self.name].parse(row, raw)

    def _tell(self, row: dict[str, Any]) -> str:
        for name, known in self._formats.items():
            if known.keys and known.keys <= row.keys():
                return name
        raise MalformedRow(
            f"the keys {sorted(row)[:12]} fit no known format; known: "
            + ", ".join(f"{name} ({' '.join(sorted(known.keys))})" for name, known in self._formats.items())
            + "; or pass the format"
        )


def mapping(value: Any, what: str) -> dict[str, Any]:
    """``value`` if it is a JSON object."""
    if not isinstance(value, dict):
        raise MalformedRow(f"{what} is {_kind(value)}, and must be an object")
    return value


def sequence(row: Mapping[str, Any], key: str) -> list[Any]:
    """``row[key]`` if it is a JSON array."""
    value = _get(row, key)
    if not isinstance(value, list):
        raise MalformedRow(f"key {key!r} is {_kind(value)}, and must be an array")
    return value


def string(row: Mapping[str, Any], key: str) -> str:
    """``row[key]`` if it is a string."""
    value = _get(row, key)
    if not isinstance(value, str):
        raise MalformedRow(f"key {key!r} is {_kind(value)}, and must be a string")
    return value


def optional_string(row: Mapping[str, Any], key: str) -> str:
    """``row[key]`` if it is a string, "" where it is absent or null."""
    return "" if row.get(key) is None else string(row, key)


def optional_bool(row: Mapping[str, Any], key: str) -> bool | None:
    """``row[key]`` if it is true or false, None where it is absent or null."""
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise MalformedRow(f"key {key!r} is {_kind(value)}, and must be true, false or null")
    return value


def filled(text: str, what: str) -> str:
    """``text`` if it holds something besides white space."""
    if not text.strip():
        raise UnusableRow(f"empty {what}")
    return text


def _get(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise MalformedRow(f"key {key!r} is missing; the row has {sorted(row)[:12]}")
    return row[key]


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.40}"


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines, whole or not at all; returns how many.

    The temporary file stands beside the target, is flushed to disk and then renamed over it.
    """
    path, count = Path(path), 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        for count, row in enumerate(rows, start=1):
            file.write(_dumps(row, path, count))
    return count


def _dumps(row: Mapping[str, Any], path: Path, line: int) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:  # UnicodeEncodeError, for a lone surrogate, is one
        raise ValueError(f"{path}:{line}: cannot write {row!r:.80}: {error}") from error
