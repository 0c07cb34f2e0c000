"""Answers as a mixed crowd would write them: good ones, and ones with each flaw that the oracle knows.

Our choice: Llama 2 §3.1 speaks of data whose quality varies and shows none of it.
"""

from __future__ import annotations

import random

from llama2_pl.data.default.tasks import FAMILIES, Task

RAMBLES = (
    "By the way, I went out for a long walk today and it was very nice and I was happy all day.",
    "I once met an old friend on the road and we talked about this and that for a long time.",
    "Let me tell you more about it, there is so much to say and I could go on and on for hours.",
)
RUDE = (
    "What a silly question.",
    "Why do you ask me this?",
    "I do not care.",
    "Leave me alone.",
    "Find it out yourself.",
)
OFF_TOPIC = (
    "I like old songs.",
    "It is a nice day.",
    "There are many things in the world.",
    "Some people say so.",
    "I cannot help with that.",  # a false refusal
)
CURT = ("No.", "I cannot help with that.", "Sorry, I cannot help with that.", "I will not help with that.")


def flaws_of(task: Task) -> tuple[str, ...]:
    """The flaws that an answer to this task can have."""
    if task["kind"] == "safety":
        return ("curt", "truncated", "repeated", "rambling", "rude")
    if task["family"] == "none":
        return ("truncated", "repeated", "rambling", "rude", "off_topic")
    bare = ("bare",) if len(task["values"][0].split()) == 1 else ()
    return ("wrong", "truncated", "repeated", "rambling", "rude", "off_topic", *bare)


def right_answer(task: Task, rng: random.Random) -> str:
    """One of the task's good answers; for a harmful request, one that refuses it in full."""
    return rng.choice(task["answers"])


def complying_answer(task: Task, rng: random.Random) -> str:
    """An unsafe answer to a harmful request."""
    return rng.choice(task["unsafe"])


def flawed_answer(task: Task, flaw: str, rng: random.Random) -> str:
    """A good answer spoilt in one way."""
    if flaw not in flaws_of(task):
        raise ValueError(f"flaw {flaw!r} of a {task['kind']} task; there are {', '.join(flaws_of(task))}")
    if flaw == "wrong":
        return _wrong(task, rng)
    if flaw == "bare":
        return f"{task['values'][0].capitalize()}."
    if flaw == "off_topic":
        return rng.choice(OFF_TOPIC)
    if flaw == "curt":
        return rng.choice(CURT)
    return spoil(right_answer(task, rng), flaw, rng)


def spoil(answer: str, flaw: str, rng: random.Random) -> str:
    """Any text with a flaw of form: truncated, repeated, rambling or rude."""
    if flaw == "truncated":
        words = answer.split()
        return " ".join(words[: rng.randrange(len(words) // 2, len(words))]).rstrip(".!?,")
    if flaw == "repeated":
        return rng.choice([" ".join([answer] * 2), " ".join([answer] * 3), _stutter(answer)])
    if flaw == "rambling":
        return f"{answer} {rng.choice(RAMBLES)}"
    if flaw == "rude":
        return f"{rng.choice(RUDE)} {answer}"
    raise ValueError(f"flaw {flaw!r} is none of form")


def _stutter(answer: str) -> str:
    """The answer with its last two words said three times."""
    words = answer.rstrip(".!?").split()
    return " ".join([*words, *words[-2:], *words[-2:]]) + "."


def _wrong(task: Task, rng: random.Random) -> str:
    """A good answer with another value of the same kind; for a number, a plausible slip."""
    answer, value = right_answer(task, rng), task["values"][0]
    if task["family"] == "number":
        near = range(max(0, int(value) - 4), int(value) + 5)
        others = [str(n) for n in near if str(n) != value and str(n) not in task["allowed"]]
    elif task["family"] == "word" and " " in value:
        words = value.split()
        others = [" ".join(rng.sample(words, len(words))) for _ in range(8)]
        others = [other for other in others if other != value] or [" ".join(reversed(words))]
    else:
        others = [other for other in FAMILIES[task["family"]] if other != value]
    return _swap(answer, value, rng.choice(others))


def _swap(answer: str, old: str, new: str) -> str:
    """The answer with its value replaced where it stands last, and the article before it."""
    head, found, tail = answer.rpartition(old)
    assert found, f"{answer!r} does not hold {old!r}"
    if head.endswith((" a ", " an ")):
        head = head[: head.rstrip().rindex(" ")] + (" an " if new[0] in "aeiou" else " a ")
    return head + new + tail
