"""Answers as a mixed crowd would write them: right ones, and ones with each flaw that the oracle knows."""

from __future__ import annotations

import random

from llama2_pl.data.default.tasks import FAMILIES, Task
from llama2_pl.data.default.world import WORDS

FLAWS = ("wrong", "truncated", "repeated", "rambling", "rude")
RAMBLES = (
    "By the way, the river is long and the moon is far away and I like stones.",
    "I once saw a ship on the river and it was a very nice ship indeed.",
    "Let me tell you about the field, it has a tree and a stone and a door.",
)
RUDE = ("What a silly question.", "Why do you ask me this.", "I do not care.")


def right_answer(task: Task, rng: random.Random) -> str:
    """One of the task's good answers."""
    return rng.choice(task["answers"])


def flawed_answer(task: Task, flaw: str, rng: random.Random) -> str:
    """A right answer spoilt in one way; a safety task has no wrong value, only a complying answer."""
    answer = right_answer(task, rng)
    if flaw == "wrong":
        return _wrong(task, answer, rng)
    if flaw == "truncated":
        words = answer.split()
        return " ".join(words[: rng.randrange(1, max(2, len(words) - 1))]).rstrip(".!?,")
    if flaw == "repeated":
        return " ".join([answer] * rng.choice([2, 3]))
    if flaw == "rambling":
        return f"{answer} {rng.choice(RAMBLES)}"
    if flaw == "rude":
        return f"{rng.choice(RUDE)} {answer}" if rng.random() < 0.5 else rng.choice(RUDE)
    raise ValueError(f"flaw {flaw!r}; there are {', '.join(FLAWS)}")


def _wrong(task: Task, answer: str, rng: random.Random) -> str:
    if task["kind"] == "safety":
        return rng.choice(task["unsafe"])
    family = WORDS if task["family"] == "words" else FAMILIES.get(task["family"])
    if family is None:
        return "The answer is a stone."
    others = [value for value in family if value != task["value"]]
    if task["family"] == "number":  # a plausible slip, not any number
        others = [
            str(n)
            for n in range(max(0, int(task["value"]) - 4), int(task["value"]) + 5)
            if str(n) != task["value"]
        ]
    return _swap_last(answer, task["value"], rng.choice(others))


def _swap_last(answer: str, old: str, new: str) -> str:
    head, found, tail = answer.rpartition(old)
    assert found, f"{answer!r} does not hold {old!r}"
    if head.endswith((" a ", " an ")):
        head = head[: head.rstrip().rindex(" ")] + (" an " if new[0] in "aeiou" else " a ")
    return head + new + tail
