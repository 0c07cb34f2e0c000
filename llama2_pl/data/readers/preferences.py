"""Preference data in the wild to pairs. Llama 2 §3.2.1.

Our own format, one JSON object a line: ``prompt`` (a list of role/content messages that ends with the user, an
object with that list under ``messages``, or one string), ``chosen``, ``rejected``, and where known the other fields
of ``PreferenceRow``. Sets of others seldom have ratings: those rows keep None, and the data module's
``default_rating`` stands in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llama2_pl.data.readers.common import (
    DEFAULT_LIMITS,
    Format,
    FormatChooser,
    Limits,
    MalformedRow,
    Raw,
    Reading,
    ReadReport,
    UnusableRow,
    filled,
    mapping,
    optional_bool,
    optional_string,
    parse_rows,
    sequence,
    string,
)
from llama2_pl.data.readers.dialogues import (
    checked,
    messages_from_json,
    messages_to_json,
    parse_hh_transcript,
    sharegpt_dialog,
    with_input,
)
from llama2_pl.data.readers.files import json_rows
from llama2_pl.text.chat import Dialog, Message


class PreferenceRow(NamedTuple):
    """Two answers to one prompt, and which was liked better. Llama 2 §3.2.1. None or "": not known.

    Attributes:
        rating: 0 significantly better, 1 better, 2 slightly better, 3 negligibly better or unsure.
        chosen_safe: with ``rejected_safe`` the safety bin; an unsafe answer chosen beside a safe one is refused.
        is_safety: the prompt was written to bring out an unsafe answer.
        chosen_model: the model variant that gave the chosen answer, a name or a checkpoint's path.
        batch: number of the weekly batch, from 1.
        annotator: who chose.
    """

    prompt: Dialog
    chosen: str
    rejected: str
    rating: int | None = None
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    source: str = ""
    is_safety: bool = False
    chosen_model: str = ""
    rejected_model: str = ""
    chosen_temperature: float | None = None
    rejected_temperature: float | None = None
    batch: int | None = None
    annotator: str = ""


def read_preferences(
    path: str | Path,
    format: str = "auto",
    *,
    source: str | None = None,
    is_safety: bool | None = None,
    strict: bool = True,
    report: ReadReport | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[PreferenceRow]:
    """Preference pairs of a JSON array or JSON-lines file, plain or gzipped.

    Llama 2 §3.2.1. Formats: see ``PREFERENCE_FORMATS``.

    Args:
        path: the file.
        format: its format; "auto" tells it from the keys.
        source: name put in every row; default: the row's own, else folder/file, as in "helpful-base/test".
        is_safety: put in every row where given; default: the row's own, else False.
        strict: stop at a malformed row, or skip and count it.
        report: counts are added to it.
        limits: on size and on the share of malformed rows.
    """
    path = Path(path)
    chooser = FormatChooser(PREFERENCE_FORMATS, format)
    finish = _Finish(source, is_safety, f"{path.parent.name}/{path.name.split('.')[0]}")
    how = Reading(str(path), strict, limits, report if report is not None else ReadReport())
    return parse_rows(json_rows(path, how), lambda raw: [finish(row) for row in chooser(raw)], how)


def preference_to_row(pair: PreferenceRow) -> dict[str, Any]:
    """The row of our own format that ``read_preferences`` reads back."""
    return {**pair._asdict(), "prompt": messages_to_json(pair.prompt)}


@dataclass(frozen=True)
class _Finish:
    """The checks that hold for every format, and the two values that a caller may set."""

    source: str | None
    is_safety: bool | None
    file_source: str

    def __call__(self, pair: PreferenceRow) -> PreferenceRow:
        filled(pair.chosen, "chosen answer")
        filled(pair.rejected, "rejected answer")
        if pair.chosen.strip() == pair.rejected.strip():
            raise UnusableRow("chosen and rejected are equal")
        if pair.chosen_safe is False and pair.rejected_safe is True:
            raise MalformedRow(
                "chosen is unsafe and rejected is safe: Llama 2 leaves this bin out, "
                "since the safer answer should be the better one; drop the row"
            )
        return pair._replace(
            source=self.source if self.source is not None else pair.source or self.file_source,
            is_safety=self.is_safety if self.is_safety is not None else pair.is_safety,
        )


def prompt_from_json(value: Any) -> Dialog:
    """A prompt given as one string, or as role/content messages that end with the user, bare or in an object."""
    if isinstance(value, str):
        return one_question(value)
    if isinstance(value, dict):
        value = sequence(value, "messages")
    if not isinstance(value, list):
        raise MalformedRow(
            f"key 'prompt' is {type(value).__name__}, and must be a string or an array of messages"
        )
    return asked(messages_from_json(value))


def one_question(text: str) -> Dialog:
    """A prompt of one user message."""
    return Dialog((Message("user", filled(text, "prompt")),))


def asked(dialog: Dialog) -> Dialog:
    """``dialog`` if it ends with a user message."""
    if dialog.messages[-1].role != "user":
        raise UnusableRow("the prompt ends with an answer")
    return dialog


def hh_prompt(transcript: str) -> tuple[Dialog, str]:
    """(context, last answer) of an hh-rlhf transcript."""
    messages = parse_hh_transcript(transcript).messages
    if messages[-1].role != "assistant":
        raise UnusableRow("the transcript ends with a user message")
    for message in messages[:-1]:
        filled(message.content, f"{message.role} message")
    return checked(Dialog(messages[:-1])), messages[-1].content


def _ours(row: dict[str, Any], _: Raw) -> list[PreferenceRow]:
    rating = row.get("rating")
    if rating is not None and (
        isinstance(rating, bool) or not isinstance(rating, int) or not 0 <= rating <= 3
    ):
        raise MalformedRow(
            f"rating {rating!r}: give 0 (significantly better) to 3 (negligibly better), or null"
        )
    return [
        PreferenceRow(
            prompt=prompt_from_json(row["prompt"]),
            chosen=string(row, "chosen"),
            rejected=string(row, "rejected"),
            rating=rating,
            chosen_safe=optional_bool(row, "chosen_safe"),
            rejected_safe=optional_bool(row, "rejected_safe"),
            source=optional_string(row, "source"),
            is_safety=bool(optional_bool(row, "is_safety")),
            chosen_model=optional_string(row, "chosen_model"),
            rejected_model=optional_string(row, "rejected_model"),
            chosen_temperature=_temperature(row, "chosen_temperature"),
            rejected_temperature=_temperature(row, "rejected_temperature"),
            batch=_batch(row),
            annotator=optional_string(row, "annotator"),
        )
    ]


def _temperature(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise MalformedRow(f"{key} {value!r}: give a number of 0 or more, or null")
    return float(value)


def _batch(row: dict[str, Any]) -> int | None:
    value = row.get("batch")
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31
    ):
        raise MalformedRow(f"batch {value!r}: give the number of the weekly batch, from 1, or null")
    return value


def _hh(row: dict[str, Any], _: Raw) -> list[PreferenceRow]:
    prompt, chosen = hh_prompt(string(row, "chosen"))
    other_prompt, rejected = hh_prompt(string(row, "rejected"))
    if prompt != other_prompt:
        raise UnusableRow("chosen and rejected have different contexts")
    return [PreferenceRow(prompt, chosen, rejected)]


def _sharegpt(row: dict[str, Any], _: Raw) -> list[PreferenceRow]:
    chosen, rejected = (
        string(mapping(row.get(key), f"key {key!r}"), "value") for key in ("chosen", "rejected")
    )
    return [PreferenceRow(asked(sharegpt_dialog(row)), chosen, rejected)]


def _alpaca(row: dict[str, Any], _: Raw) -> list[PreferenceRow]:
    prompt = one_question(with_input(string(row, "instruction"), optional_string(row, "input")))
    return [PreferenceRow(prompt, string(row, "chosen"), string(row, "rejected"))]


def _stackexchange(row: dict[str, Any], _: Raw) -> list[PreferenceRow]:
    prompt = one_question(string(row, "question"))
    return [PreferenceRow(prompt, string(row, "response_j"), string(row, "response_k"))]


def _pandalm(row: dict[str, Any], _: Raw) -> list[PreferenceRow]:
    """Three annotators say 1, 2 or 0 for a tie; the majority decides."""
    votes = [row.get(f"annotator{number}") for number in (1, 2, 3)]
    if any(isinstance(vote, bool) or vote not in (0, 1, 2) for vote in votes):
        raise MalformedRow(f"annotators {votes}: each must be 0 (tie), 1 or 2")
    winner, count = Counter(votes).most_common(1)[0]
    if count < 2 or winner == 0:
        raise UnusableRow("tie, or no majority of the annotators")
    # A model that answered with the bare word true has the JSON value true there.
    answers = [
        str(a).lower() if isinstance(a, bool) else a for a in (row.get("response1"), row.get("response2"))
    ]
    first, second = (string({"response": answer}, "response") for answer in answers)
    prompt = one_question(with_input(string(row, "instruction"), optional_string(row, "input")))
    return [PreferenceRow(prompt, first, second) if winner == 1 else PreferenceRow(prompt, second, first)]


def _alpaca_eval(row: dict[str, Any], _: Raw) -> list[PreferenceRow]:
    """A judge's preference from 1 (the first answer wins) to 2 (the second does)."""
    preference = row.get("preference")
    if isinstance(preference, bool) or not isinstance(preference, (int, float)) or not 1 <= preference <= 2:
        raise MalformedRow(f"preference {preference!r}: must be a number from 1 to 2")
    if preference == 1.5:
        raise UnusableRow("tie")
    chosen, rejected = (1, 2) if preference < 1.5 else (2, 1)
    return [
        PreferenceRow(
            one_question(string(row, "instruction")),
            string(row, f"output_{chosen}"),
            string(row, f"output_{rejected}"),
            chosen_model=optional_string(row, f"generator_{chosen}"),
            rejected_model=optional_string(row, f"generator_{rejected}"),
            annotator=optional_string(row, "annotator"),
        )
    ]


# In the order in which keys are tried.
PREFERENCE_FORMATS: dict[str, Format] = {
    "pairs": Format(frozenset({"prompt", "chosen", "rejected"}), _ours),
    "sharegpt": Format(frozenset({"conversations", "chosen", "rejected"}), _sharegpt),
    "alpaca": Format(frozenset({"instruction", "chosen", "rejected"}), _alpaca),
    "hh-rlhf": Format(frozenset({"chosen", "rejected"}), _hh),
    "stackexchange-paired": Format(frozenset({"question", "response_j", "response_k"}), _stackexchange),
    "pandalm": Format(frozenset({"response1", "response2", "annotator1"}), _pandalm),
    "alpaca-eval": Format(frozenset({"output_1", "output_2", "preference"}), _alpaca_eval),
}
