"""Instruction data in the wild to dialogues. Llama 2 §3.1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

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
    optional_string,
    parse_rows,
    sequence,
    string,
)
from llama2_pl.data.readers.files import json_rows
from llama2_pl.text.chat import Dialog, Message, Role, validate_roles

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_END_OF_TEXT = "<|endoftext|>"


def read_dialogues(
    path: str | Path,
    format: str = "auto",
    *,
    strict: bool = True,
    report: ReadReport | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Dialog]:
    """Dialogues of a JSON array or JSON-lines file, plain or gzipped; each ends with an answer.

    Llama 2 §3.1. Formats: see ``DIALOGUE_FORMATS``; ours is ``{"messages": [{"role", "content"}, ...]}``.

    Args:
        path: the file.
        format: its format; "auto" tells it from the keys.
        strict: stop at a malformed row, or skip and count it.
        report: counts are added to it.
        limits: on size and on the share of malformed rows.
    """
    chooser = FormatChooser(DIALOGUE_FORMATS, format)
    how = Reading(str(path), strict, limits, report if report is not None else ReadReport())
    return parse_rows(json_rows(Path(path), how), chooser, how)


def dialog_to_row(dialog: Dialog) -> dict[str, Any]:
    """The row of our own format that ``read_dialogues`` reads back."""
    return {"messages": messages_to_json(dialog)}


def messages_to_json(dialog: Dialog) -> list[dict[str, str]]:
    """A dialogue as a list of role/content objects."""
    return [{"role": message.role, "content": message.content} for message in dialog.messages]


def messages_from_json(items: list[Any], role_key: str = "role", text_key: str = "content") -> Dialog:
    """A dialogue of role/content objects; UnusableRow where the roles are not those of a chat."""
    messages = []
    for item in items:
        message = mapping(item, "a message")
        role = string(message, role_key)
        if role not in _ROLES:
            raise UnusableRow(f"role {role!r} (only system, user and assistant can be told to the model)")
        messages.append(Message(_ROLES[role], filled(string(message, text_key), f"{_ROLES[role]} message")))
    return checked(Dialog(tuple(messages)))


def checked(dialog: Dialog) -> Dialog:
    """``dialog`` if its roles take turns as they must."""
    try:
        validate_roles(dialog)
    except ValueError as error:
        # Without the number of the message, so that equal reasons are counted as one.
        raise UnusableRow(re.sub(r"^message \d+", "a message", str(error)).split(":")[0]) from None
    return dialog


def answered(dialog: Dialog) -> Dialog:
    """``dialog`` if it ends with an answer."""
    if dialog.messages[-1].role != "assistant":
        raise UnusableRow("ends with a user message")
    return dialog


def single_turn(user: str, answer: str, system: str = "") -> Dialog:
    """A dialogue of one question and one answer."""
    head = (Message("system", system),) if system.strip() else ()
    turn = (
        Message("user", filled(user, "user message")),
        Message("assistant", filled(answer, "assistant message")),
    )
    return Dialog((*head, *turn))


def with_input(instruction: str, extra: str) -> str:
    """An instruction and its input as one user message. Our choice: a blank line between."""
    return f"{instruction.strip()}\n\n{extra.strip()}" if extra.strip() else instruction


def parse_hh_transcript(transcript: str) -> Dialog:
    """The "\\n\\nHuman: ...\\n\\nAssistant: ..." string of hh-rlhf, the last answer possibly empty.

    A name counts only at the start of a paragraph, since "Human:" also stands inside turns.
    """
    parts = _HH_TURN.split(transcript)
    if parts[0].strip() or len(parts) < 2:
        raise MalformedRow(f"the transcript starts with {transcript[:30]!r}, not with '\\n\\nHuman:'")
    names = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return checked(Dialog(tuple(Message(cast(Role, names[name]), text.strip()) for name, text in turns)))


def _messages(row: dict[str, Any], _: Raw) -> list[Dialog]:
    if row.get("label") is False:
        raise UnusableRow("labelled a bad answer")
    return [answered(messages_from_json(sequence(row, "messages")))]


def sharegpt_dialog(row: dict[str, Any]) -> Dialog:
    """The from/value messages of a ShareGPT row, with the system message that some rows keep apart."""
    dialog = messages_from_json(sequence(row, "conversations"), "from", "value")
    system = optional_string(row, "system")
    if system.strip() and dialog.messages[0].role != "system":
        return Dialog((Message("system", system), *dialog.messages))
    return dialog


def _sharegpt(row: dict[str, Any], _: Raw) -> list[Dialog]:
    return [answered(sharegpt_dialog(row))]


def _alpaca(row: dict[str, Any], _: Raw) -> list[Dialog]:
    user = with_input(string(row, "instruction"), optional_string(row, "input"))
    return [single_turn(user, string(row, "output"), optional_string(row, "system"))]


def _dolly(row: dict[str, Any], _: Raw) -> list[Dialog]:
    user = with_input(string(row, "instruction"), optional_string(row, "context"))
    return [single_turn(user, string(row, "response"))]


def _longform(row: dict[str, Any], _: Raw) -> list[Dialog]:
    return [single_turn(string(row, "input"), string(row, "output"))]


def _completion(row: dict[str, Any], _: Raw) -> list[Dialog]:
    answer = string(row, "completion").strip().removesuffix(_END_OF_TEXT)
    return [single_turn(string(row, "prompt"), answer)]


def _self_instruct(row: dict[str, Any], _: Raw) -> list[Dialog]:
    instances = [mapping(item, "an instance") for item in sequence(row, "instances")]
    instruction = string(row, "instruction")
    return [
        single_turn(with_input(instruction, optional_string(i, "input")), string(i, "output"))
        for i in instances
    ]


def _oasst(row: dict[str, Any], _: Raw) -> list[Dialog]:
    """The branch that follows the best-ranked reply at every step, up to its last answer."""
    node: dict[str, Any] | None = mapping(row["prompt"], "key 'prompt'")
    messages = []
    while node is not None:
        messages.append({"role": string(node, "role"), "content": string(node, "text")})
        node = _best_reply(node)
    if len(messages) % 2:
        messages.pop()
    return [answered(messages_from_json(messages))]


def _best_reply(node: dict[str, Any]) -> dict[str, Any] | None:
    replies = [mapping(reply, "a reply") for reply in node.get("replies") or []]
    kept = [reply for reply in replies if not reply.get("deleted")]
    # Rank 0 is best; an unranked reply comes after every ranked one.
    return min(kept, key=lambda r: float("inf") if r.get("rank") is None else r["rank"], default=None)


def _hh(row: dict[str, Any], _: Raw) -> list[Dialog]:
    dialog = answered(parse_hh_transcript(string(row, "chosen")))
    for message in dialog.messages:
        filled(message.content, f"{message.role} message")
    return [dialog]


def _taskmaster(row: dict[str, Any], _: Raw) -> list[Dialog]:
    utterances = sequence(row, "utterances")
    dialog = messages_from_json(utterances, "speaker", "text")
    return [answered(Dialog(dialog.messages[:-1]) if dialog.messages[-1].role == "user" else dialog)]


# In the order in which keys are tried. `completion` is T0's, `longform` has no instruction.
DIALOGUE_FORMATS: dict[str, Format] = {
    "messages": Format(frozenset({"messages"}), _messages),
    "sharegpt": Format(frozenset({"conversations"}), _sharegpt),
    "self-instruct": Format(frozenset({"instruction", "instances"}), _self_instruct),
    "alpaca": Format(frozenset({"instruction", "output"}), _alpaca),
    "dolly": Format(frozenset({"instruction", "response"}), _dolly),
    "completion": Format(frozenset({"prompt", "completion"}), _completion),
    "oasst": Format(frozenset({"message_tree_id", "prompt"}), _oasst),
    "hh-rlhf": Format(frozenset({"chosen", "rejected"}), _hh),
    "taskmaster": Format(frozenset({"utterances"}), _taskmaster),
    "longform": Format(frozenset({"input", "output"}), _longform),
}
