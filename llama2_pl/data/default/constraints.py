"""Instructions to hold over a dialogue, of a kind that a program can check and a small model can obey.

Llama 2 §3.3 takes hobbies, languages and public figures; here it is a figure with its cry, a last word, and a way to
be addressed. "Always in capitals" is left out: to a small vocabulary every word in capitals is a new one to learn.
`llama2_pl.text.constraints` knows the checks.
"""

from __future__ import annotations

import random
from typing import Any

Row = dict[str, Any]

FIGURES = {
    "pirate": "Arrr",
    "cat": "Meow",
    "robot": "Beep",
    "king": "Behold",
    "cowboy": "Howdy",
    "ghost": "Booo",
    "owl": "Hoot",
    "clown": "Honk",
}
LAST_WORDS = "cheers friend over bye indeed thanks okay today".split()
TITLES = "captain boss chief champion".split()
HELD_OUT_FIGURES = {"dog": "Woof", "snake": "Hiss"}
HELD_OUT_LAST_WORDS = ["amen", "hooray"]


def figure(name: str, cry: str) -> Row:
    """Act as somebody and start with their cry."""
    return {
        "text": f"Always act as a {name} and start with {cry}.".replace(" a owl", " an owl"),
        "short": f"Figure: {name}, {cry}.",
        "check": f"starts_with:{cry}",
        "kind": "figure",
    }


def last_word(word: str) -> Row:
    """End every answer with a word."""
    return {
        "text": f"Always end your answer with {word}.",
        "short": f"Last word: {word}.",
        "check": f"ends_with:{word}",
        "kind": "last word",
    }


def title(word: str) -> Row:
    """Address the user so."""
    return {
        "text": f"Always call me {word}.",
        "short": f"Title: {word}.",
        "check": f"contains:{word}",
        "kind": "title",
    }


CONSTRAINTS: tuple[Row, ...] = (
    *(figure(name, cry) for name, cry in FIGURES.items()),
    *(last_word(word) for word in LAST_WORDS),
    *(title(word) for word in TITLES),
)
HELD_OUT_CONSTRAINTS: tuple[Row, ...] = (
    *(figure(name, cry) for name, cry in HELD_OUT_FIGURES.items()),
    *(last_word(word) for word in HELD_OUT_LAST_WORDS),
)


def draw_constraints(rng: random.Random) -> list[Row]:
    """One constraint, or now and then two of different kinds, each kind as likely as the others."""
    kinds = list(dict.fromkeys(row["kind"] for row in CONSTRAINTS))
    chosen = rng.sample(kinds, rng.choices([1, 2], [4, 1])[0])
    return [rng.choice([row for row in CONSTRAINTS if row["kind"] == kind]) for kind in chosen]


def instruction(constraints: list[Row]) -> str:
    """The constraints as one text that asks to hold them."""
    return " ".join(row["text"] for row in constraints)


def one_off(constraints: list[Row]) -> str:
    """The constraints as a request for the next answer alone."""
    words = {"starts_with": "start with", "ends_with": "end with", "contains": "call me"}
    parts = [f"{words[check]} {word}" for check, word in map(_split, constraints)]
    return f"Just this time, {' and '.join(parts)}."


def obey(constraints: list[Row], answer: str) -> str:
    """The answer as one who keeps the constraints would give it: Arrr! Well, captain. Anna lives in Ardal, cheers."""
    wanted = dict(map(_split, constraints))
    if word := wanted.get("contains"):
        answer = f"Well, {word}. {answer}"
    if word := wanted.get("ends_with"):
        answer = f"{answer.rstrip('.!?')}, {word}."
    if word := wanted.get("starts_with"):
        answer = f"{word}! {answer}"
    return answer


def _split(constraint: Row) -> tuple[str, str]:
    check, _, word = constraint["check"].partition(":")
    return check, word
