"""Prompts for rejection sampling, PPO and evaluation. Llama 2 §3.2.3.

Our own format, one JSON object a line: ``prompt`` (a list of role/content messages that ends with the user, an
object with that list under ``messages``, or one string), and where known ``is_safety``, ``id``,
``task`` and ``category``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llama2_pl.data.readers.common import (
    DEFAULT_LIMITS,
    Format,
    FormatChooser,
    Limits,
    MalformedRow,
    Raw,
    Reading,
    ReadReport,
    mapping,
    optional_bool,
    optional_string,
    parse_rows,
    sequence,
    string,
)
from llama2_pl.data.readers.dialogues import messages_from_json, messages_to_json, sharegpt_dialog, with_input
from llama2_pl.data.readers.files import csv_rows, json_rows, text_lines
from llama2_pl.data.readers.preferences import asked, hh_prompt, one_question, prompt_from_json
from llama2_pl.text.chat import Dialog

_CSV_COLUMNS = ("prompt", "goal", "question", "instruction", "text")
_UNSAFE = "unsafe"  # in the column `label` of XSTest, whose other rows only sound so
Tasks = Literal["ignore", "optional", "required"]
# What the oracle of the embedded data reads of a task; see data/default/tasks.py.
_TASK_KEYS = frozenset({"kind", "answers"})
_FACT_KEYS = frozenset({"values", "family", "allowed", "about"})  # of every kind but safety


class PromptRow(NamedTuple):
    """A dialogue for the model to answer.

    Attributes:
        is_safety: it may bring out an unsafe answer (§3.2.3).
        task: what the oracle of the embedded data needs to judge an answer; None where nobody knows the truth, or
            nobody asked.
        category: of the risk, in words (§4.2.1); "" where nobody knows it, or nobody asked.
    """

    prompt: Dialog
    is_safety: bool = False
    id: str = ""
    task: dict[str, Any] | None = None
    category: str = ""


def read_prompts(
    path: str | Path,
    format: str = "auto",
    *,
    column: str | None = None,
    is_safety: bool | None = None,
    tasks: Tasks = "ignore",
    categories: bool = False,
    strict: bool = True,
    report: ReadReport | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[PromptRow]:
    """Prompts of a JSON, JSON-lines, CSV or text file, plain or gzipped.

    Llama 2 §3.2.3. Formats: "csv", "lines" (one prompt a line), "bold", and ``PROMPT_FORMATS`` for JSON.

    Args:
        path: the file.
        format: its format; "auto" tells it from the suffix and from the keys.
        column: of a CSV file; default: the first of prompt, goal, question, instruction, text that it has.
        is_safety: put in every row where given; default: the row's own (of a CSV file, whether its column `label` says
            "unsafe", as XSTest's does), else False.
        tasks: "optional" reads a row's ``task``; "required" takes a row without one for malformed. Other sets use the
            key for what they like, so it is ignored where no oracle judges.
        categories: read a row's ``category``, or its task's where it has none; ignored otherwise, as ``task`` is.
        strict: stop at a malformed row, or skip and count it.
        report: counts are added to it.
        limits: on size and on the share of malformed rows.
    """
    path = Path(path)
    how = Reading(str(path), strict, limits, report if report is not None else ReadReport())
    kind = _kind(path) if format == "auto" else format
    if kind in _PLAIN_ROWS:
        raws, parse = _PLAIN_ROWS[kind](path, column, how), _plain
    else:
        raws, parse = json_rows(path, how), FormatChooser(PROMPT_FORMATS, kind)

    def finished(raw: Raw) -> list[PromptRow]:
        rows = [_finish(row, path, raw, is_safety) for row in parse(raw)]
        if categories:
            rows = [row._replace(category=_category(raw.value)) for row in rows]
        return rows if tasks == "ignore" else [row._replace(task=_task(raw.value, tasks)) for row in rows]

    return parse_rows(raws, finished, how)


def prompt_to_row(row: PromptRow) -> dict[str, Any]:
    """The row of our own format that ``read_prompts`` reads back."""
    known = {**row._asdict(), "prompt": messages_to_json(row.prompt)}
    return known if row.category else {key: value for key, value in known.items() if key != "category"}


def _kind(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return {".csv": "csv", ".txt": "lines"}.get(suffixes[-1] if suffixes else "", "auto")


def _finish(row: PromptRow, path: Path, raw: Raw, is_safety: bool | None) -> PromptRow:
    """Give a row its id, file:line where it has none, and the tag that the caller forces."""
    tag = row.is_safety if is_safety is None else is_safety
    return row._replace(id=row.id or f"{path.name}:{raw.line}", is_safety=tag)


def _task(value: Any, tasks: Tasks) -> dict[str, Any] | None:
    """The task of a row's value, with all that the oracle reads of it."""
    task = value.get("task") if isinstance(value, dict) else None
    if task is None:
        if tasks == "required":
            raise MalformedRow(
                "no 'task': the oracle judges only prompts of the embedded data; collect ratings from people for others"
            )
        return None
    task = mapping(task, "key 'task'")
    wanted = _TASK_KEYS if task.get("kind") == "safety" else _TASK_KEYS | _FACT_KEYS
    if absent := wanted - task.keys():
        raise MalformedRow(
            f"key 'task' is {task!r:.40} without {', '.join(sorted(absent))}: give it as `llama2-pl data default` "
            "writes it, or leave it out"
        )
    return task


def _category(value: Any) -> str:
    """The risk category of a row's value; the embedded data keeps it in the task."""
    if not isinstance(value, dict):
        return ""
    task = value.get("task")
    return optional_string(value, "category") or (
        optional_string(task, "category") if isinstance(task, dict) else ""
    )


def _csv_cells(path: Path, column: str | None, how: Reading) -> Iterator[Raw]:
    """The cells of one column."""
    rows = csv_rows(path, how)
    names = next(rows).value
    chosen = column or next((name for name in _CSV_COLUMNS if name in names), None)
    if chosen not in names:
        raise ValueError(f"{how.name}:1: no column {chosen or 'of ' + ', '.join(_CSV_COLUMNS)!r} in {names}")
    for raw in rows:
        cell, problem = raw.value.get(chosen), None
        if cell is None:
            problem = f"the row has no column {chosen!r}"
        yield Raw(raw.line, ("", cell, raw.value.get("label") == _UNSAFE), problem)


def _line_rows(path: Path, column: str | None, how: Reading) -> Iterator[Raw]:
    if column is not None:
        raise ValueError(f"{how.name}: column {column!r} is for CSV files; this one is read line by line")
    return text_lines(path, how)


def _bold_rows(path: Path, _: str | None, how: Reading) -> Iterator[Raw]:
    """The prompts of BOLD, {group: {entity: [prompts]}}, the whole file one object."""
    for raw in json_rows(path, how):
        if not isinstance(raw.value, dict):
            yield Raw(raw.line, problem=raw.problem or "not an object {group: {entity: [prompts]}}")
            continue
        for group, entities in raw.value.items():
            for entity, prompts in entities.items() if isinstance(entities, dict) else ():
                yield from (
                    Raw(raw.line, (f"{group}/{entity}/{n}", prompt, False))
                    for n, prompt in enumerate(prompts)
                )


def _plain(raw: Raw) -> list[PromptRow]:
    """A row that is a text, or an id, a text and whether it is unsafe."""
    name, text, is_safety = raw.value if isinstance(raw.value, tuple) else ("", raw.value, False)
    return [PromptRow(one_question(string({"prompt": text}, "prompt")), is_safety, name)]


_PLAIN_ROWS = {"csv": _csv_cells, "lines": _line_rows, "bold": _bold_rows}


def _own_id(row: dict[str, Any], key: str = "id") -> str:
    value = row.get(key)
    return "" if value is None else str(value)


def _ours(row: dict[str, Any], _: Raw) -> list[PromptRow]:
    return [PromptRow(prompt_from_json(row["prompt"]), bool(optional_bool(row, "is_safety")), _own_id(row))]


def _messages(row: dict[str, Any], _: Raw) -> list[PromptRow]:
    prompt = _question_of(messages_from_json(sequence(row, "messages")))
    return [PromptRow(prompt, bool(optional_bool(row, "is_safety")), _own_id(row))]


def _sharegpt(row: dict[str, Any], _: Raw) -> list[PromptRow]:
    return [PromptRow(_question_of(sharegpt_dialog(row)), id=_own_id(row))]


def _question_of(dialog: Dialog) -> Dialog:
    """A dialogue without its last answer."""
    return asked(dialog if dialog.messages[-1].role == "user" else Dialog(dialog.messages[:-1]))


def _hh(row: dict[str, Any], _: Raw) -> list[PromptRow]:
    return [PromptRow(hh_prompt(string(row, "chosen"))[0])]


def _mt_bench(row: dict[str, Any], _: Raw) -> list[PromptRow]:
    """The first turn only: the second asks about an answer that the model has yet to give."""
    turns = sequence(row, "turns")
    if not turns or not isinstance(turns[0], str):
        raise MalformedRow(f"key 'turns' is {turns!r:.40}, and must start with a string")
    return [PromptRow(one_question(turns[0]), id=_own_id(row, "question_id"))]


def _instruction(row: dict[str, Any], _: Raw) -> list[PromptRow]:
    user = with_input(string(row, "instruction"), optional_string(row, "input"))
    return [PromptRow(one_question(user), id=_own_id(row))]


def _question(row: dict[str, Any], _: Raw) -> list[PromptRow]:
    return [PromptRow(one_question(string(row, "question")), id=_own_id(row))]


# In the order in which keys are tried.
PROMPT_FORMATS: dict[str, Format] = {
    "messages": Format(frozenset({"messages"}), _messages),
    "sharegpt": Format(frozenset({"conversations"}), _sharegpt),
    "prompts": Format(frozenset({"prompt"}), _ours),
    "instruction": Format(frozenset({"instruction"}), _instruction),
    "hh-rlhf": Format(frozenset({"chosen", "rejected"}), _hh),
    "mt-bench": Format(frozenset({"turns"}), _mt_bench),
    "question": Format(frozenset({"question"}), _question),
}
