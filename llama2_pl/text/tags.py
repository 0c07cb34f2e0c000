"""The four control tags of the chat format, which a text must never hold.

The tags are plain text in Llama 2, so a message that holds one could forge a turn or a system message.
Meta's generation.py answers such a dialogue with a fixed error; here the caller chooses a policy.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

TagPolicy = Literal["refuse", "neutralise"]

# Between the characters of a tag: white space, control characters, SentencePiece's own mark for a space,
# and what no reader sees (zero-width, direction and variation marks). A model reads through all of these.
_IGNORED = (
    r"[\s\x00-\x1f\x7f-\x9f\u2581\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]*"
)


def _spaced(*parts: str) -> str:
    return _IGNORED.join(parts)


_TAG = re.compile(
    "|".join(
        (
            _spaced(r"\[", f"(?:/{_IGNORED})?I", "N", "S", "T", r"\]"),
            _spaced("<", "<", f"(?:/{_IGNORED})?S", "Y", "S", ">", ">"),
        )
    ),
    re.IGNORECASE,
)
_BREAK = str.maketrans("[]<>", "()()")


class ControlTag(NamedTuple):
    """A control tag found in a text: what stands there, and where."""

    text: str
    start: int
    end: int


def find_control_tags(text: str) -> list[ControlTag]:
    """Every [INST], [/INST], <<SYS>>, <</SYS>> in ``text``, in any case, with any inner spacing."""
    return [ControlTag(m.group(), m.start(), m.end()) for m in _TAG.finditer(text)]


def neutralise_control_tags(text: str) -> str:
    """``text`` with each tag's brackets made round: "[/INST]" becomes "(/INST)", "<<SYS>>" "((SYS))".

    A reader still sees what stood there, nothing else changes, and no tag is left: a tag needs its brackets,
    and a replaced one has none to lend to its neighbours. So a second call changes nothing.
    """
    return _TAG.sub(lambda m: m.group().translate(_BREAK), text)


def strip_control_tags(text: str) -> str:
    """``text`` without any tag or NUL, for a model's output that goes into a file or a later prompt.

    Repeated until none is left, since cutting the inner tag of "[IN[INST]ST]" makes a new one. A model with byte
    fallback can say NUL, which no reader of rows accepts.
    """
    text = text.replace("\x00", "")
    shorter = _TAG.sub("", text)
    while shorter != text:
        text, shorter = shorter, _TAG.sub("", shorter)
    return text


def guard(text: str, role: str, index: int, policy: TagPolicy) -> str:
    """``text`` as the policy lets it through: refused with ValueError, or neutralised."""
    if policy not in get_args(TagPolicy):
        raise ValueError(f"tags {policy!r}: choose one of {', '.join(get_args(TagPolicy))}")
    if policy == "neutralise":
        return neutralise_control_tags(text)
    found = find_control_tags(text)
    if found:
        raise ValueError(
            f"message {index} ({role}) holds the control tag {found[0].text!r} at character {found[0].start}, "
            "which could forge a turn: remove it, or set the option tags to neutralise where there is one"
        )
    return text
