"""Evaluation samples to the text that stands for each, with a metric where asked. Llama 2 §A.6."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama2_pl.data.readers.common import (
    DEFAULT_LIMITS,
    Limits,
    MalformedRow,
    Raw,
    Reading,
    ReadReport,
    mapping,
)
from llama2_pl.data.readers.files import csv_rows, json_rows

# Tried in this order on a file's first row; of the second in each pair those are read that the row has.
_KEYS = (
    ("text", ()),
    ("messages", ()),
    ("conversations", ()),
    ("prompt", ("answer", "completion")),
    ("instruction", ("input", "output")),
    ("question", ("answer",)),
)
_TRUTH = {"true": 1.0, "false": 0.0}


class EvaluationSample(NamedTuple):
    """A sample as the model is given it.

    Attributes:
        text: its parts, one to a line.
        id: the row's, else file:line.
        metric: what the model reached on it; None where nobody asked.
    """

    text: str
    id: str
    metric: float | None


class SampleKeys:
    """Rows to samples; the keys are those given, or those that the first row tells and all others must have.

    Args:
        name: of the file, for ids.
        keys: whose values make the text, in order; empty: told by the first row.
        metric: key of the metric, if one is wanted.
    """

    def __init__(self, name: str, keys: Sequence[str], metric: str | None) -> None:
        self.name, self.keys, self.metric = name, tuple(keys), metric

    def __call__(self, raw: Raw) -> EvaluationSample:
        row = mapping(raw.value, "the row")
        self.keys = self.keys or _told_by(row)
        text = "\n".join(part for key in self.keys if (part := _text(_value(row, key), key)).strip())
        if not text:
            raise MalformedRow(f"no text under {', '.join(self.keys)}; take the row out, or give other keys")
        metric = None if self.metric is None else _number(_value(row, self.metric), self.metric)
        name = f"{self.name}:{raw.line}" if row.get("id") is None else str(row["id"])
        return EvaluationSample(text, name, metric)


def read_samples(
    path: str | Path, keys: SampleKeys, limits: Limits = DEFAULT_LIMITS
) -> Iterator[EvaluationSample]:
    """Samples of a JSON, JSON-lines or CSV file, plain or gzipped.

    A malformed row always stops: a figure of an evaluation set is of all its samples.

    Args:
        path: the file.
        keys: which values of a row are read.
        limits: on size.
    """
    path = Path(path)
    how = Reading(str(path), True, limits, ReadReport())
    for raw in _csv(path, how) if ".csv" in path.suffixes else json_rows(path, how):
        try:
            if raw.problem is not None:
                raise MalformedRow(raw.problem)
            yield keys(raw)
        except MalformedRow as error:
            raise ValueError(f"{path}:{raw.line}: {error}") from None


def _csv(path: Path, how: Reading) -> Iterator[Raw]:
    rows = csv_rows(path, how)
    next(rows)  # the names
    for raw in rows:
        yield raw._replace(value={key: cell for key, cell in raw.value.items() if cell is not None})


def _told_by(row: dict[str, Any]) -> tuple[str, ...]:
    for first, more in _KEYS:
        if first in row:
            return (first, *(key for key in more if key in row))
    raise MalformedRow(
        f"the keys {sorted(row)[:12]} have none of {', '.join(first for first, _ in _KEYS)}; "
        "name those that make the text (keys)"
    )


def _value(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise MalformedRow(f"key {key!r} is missing; the row has {sorted(map(str, row))[:12]}")
    return row[key]


def _text(value: Any, key: str) -> str:
    """A part of a sample: text or a number as it is, the items of a list, messages without their roles."""
    if value is None:
        return ""
    if isinstance(value, str | bool | int | float):
        return str(value)
    if isinstance(value, list):
        return "\n".join(_text(item, key) for item in value)
    for inner in ("messages", "content", "value"):
        if isinstance(value, dict) and inner in value:
            return _text(value[inner], key)
    raise MalformedRow(
        f"key {key!r} holds {value!r:.60}, which is neither text nor messages; give other keys"
    )


def _number(value: Any, key: str) -> float:
    if isinstance(value, str):  # a cell of a CSV file
        with contextlib.suppress(ValueError):
            value = _TRUTH[word] if (word := value.strip().lower()) in _TRUTH else float(word)
    if not isinstance(value, bool | int | float) or not abs(value) < 1e300:
        raise MalformedRow(f"key {key!r} is {value!r:.40}, and a metric must be a number, or true or false")
    return float(value)
