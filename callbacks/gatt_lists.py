"""The constraints of Llama 2 §3.3: hobbies, languages, public figures; named by the chat model, or fixed.

The paper lets the chat model name hobbies and figures, so that it knows them; it says nothing of that for languages,
whose list is ours. The fixed lists of the other two are for a model too small to name any.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from llama2_pl.callbacks.gatt_build import Sample
from llama2_pl.text.chat import Dialog
from llama2_pl.text.constraints import Constraint

HOBBIES = (
    "tennis", "chess", "gardening", "painting", "hiking", "cooking", "astronomy", "sailing", "photography", "pottery",
    "cycling", "birdwatching", "knitting", "climbing", "jazz", "surfing",
)  # fmt: skip
LANGUAGES = (
    "French", "German", "Spanish", "Italian", "Portuguese", "Dutch", "Swedish", "Polish", "Russian", "Japanese",
    "Chinese", "Korean",
)  # fmt: skip
PUBLIC_FIGURES = (
    "Napoleon", "Mozart", "Marie Curie", "Leonardo da Vinci", "Cleopatra", "Isaac Newton", "Ada Lovelace",
    "Charles Darwin", "Jane Austen", "Galileo Galilei", "William Shakespeare", "Frida Kahlo",
    "Julius Caesar", "Joan of Arc", "Florence Nightingale", "Albert Einstein",
)  # fmt: skip

# Our choice: the paper does not say how it asked.
QUESTIONS = {
    "hobbies": (
        "Name ten hobbies.",
        "List some hobbies, separated by commas.",
        "Which hobbies do people enjoy?",
    ),
    "public figures": (
        "Name ten public figures.",
        "List some famous people, separated by commas.",
        "Which famous people of history do you know?",
    ),
}
ANSWERS = 8  # to each question in a round

_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+")
_AFTER_NAME = re.compile(r"\s*(?:[:,;(]|\s[-–—]\s).*")
_BETWEEN = re.compile(r"\s*(?:[,;]|\band\b)\s*")
_NAME = re.compile(r"[^\W\d_]+(?:[ '’.-]{1,2}[^\W\d_]+){0,3}")


class Named(NamedTuple):
    """What a model named, the most often named first, and one of its answers."""

    entries: list[str]
    said: str


def constraints_of(hobbies: Sequence[str], figures: Sequence[str]) -> list[Constraint]:
    """One constraint for each entry; those of one list exclude each other, those of different lists combine."""
    return [
        *(Constraint(f"You enjoy {x}.", f"Hobby: {x}.", kind="hobby") for x in hobbies),
        *(Constraint(f"Speak in {x}.", f"Language: {x}.", kind="language") for x in LANGUAGES),
        *(Constraint(f"Always act as {x} from now.", f"Figure: {x}.", kind="figure") for x in figures),
    ]


def fixed_constraints() -> list[Constraint]:
    """Those of the lists of this file."""
    return constraints_of(HOBBIES, PUBLIC_FIGURES)


def constraints_by_model(sample: Sample, length: int, rounds: int) -> list[Constraint]:
    """Those of lists that the model names, `length` entries each; ValueError where it names too few. §3.3."""
    lists = {}
    for what in QUESTIONS:
        named = ask_for(what, sample, length, rounds)
        if len(named.entries) < length:
            raise ValueError(
                f"GhostAttention: the model named {len(named.entries)} {what} of list_length {length}: "
                f"{', '.join(named.entries) or 'none'}. It said, for example, {named.said!r:.120}. Lower "
                "list_length, raise attempts or max_new_tokens, or give constraints: fixed (the lists of "
                "llama2_pl.callbacks.gatt_lists) or a file"
            )
        lists[what] = named.entries[:length]
    return constraints_of(lists["hobbies"], lists["public figures"])


def ask_for(what: str, sample: Sample, length: int, rounds: int) -> Named:
    """Ask for one list, at most `rounds` times, until at least `length` different entries are named.

    What more answers name comes first (our choice): it is what the model knows rather than a slip of sampling.
    """
    asked = [Dialog.of([("user", text)]) for text in QUESTIONS[what]]
    counts: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    said = ""
    for _ in range(rounds):
        for text in (text for answers in sample(asked) for text in answers):
            named = {entry.casefold(): entry for entry in entries_of(text, capital=what == "public figures")}
            counts.update(named.keys())
            spelling = named | spelling
            said = said or text
        if len(counts) >= length:
            break
    return Named([spelling[key] for key, _ in counts.most_common()], said)


def entries_of(text: str, capital: bool = False) -> list[str]:
    """The entries of an answer that is a list: bullets or numbers, one a line, or three and more in a sentence.

    An entry is one to four words of letters, of at most 40 characters; `capital`: beginning with a capital letter.
    What explains it, after a colon, comma, dash or in brackets, is left out, and so is what introduces the list.
    """
    found: list[str] = []
    for line in text.splitlines():
        bullet = _BULLET.match(line)
        if bullet:
            found.append(_AFTER_NAME.sub("", line[bullet.end() :]))
        else:
            parts = [part for part in _BETWEEN.split(line.rpartition(":")[2]) if part]
            found += parts if len(parts) >= 3 else []
    entries = [entry.strip(" .*_\"'") for entry in found]
    return [
        entry
        for entry in entries
        if _NAME.fullmatch(entry) and len(entry) <= 40 and (entry[0].isupper() or not capital)
    ]
