"""Dialogues to fine-tune on, prompts to answer, pairs to rank, and what Ghost Attention needs."""

from __future__ import annotations

import random
from typing import Any

from llama2_pl.data.default.answers import FLAWS, flawed_answer, right_answer
from llama2_pl.data.default.oracle import rate
from llama2_pl.data.default.tasks import Task, helpful_task, safety_task
from llama2_pl.data.default.world import World

Row = dict[str, Any]
FLAWED_SHARE = 0.30  # of training answers, so that reward learning has headroom
COMPLYING_SHARE = 0.35  # of training answers to harmful requests

# Constraints that a program can check (llama2_pl.text.constraints) and a small model can obey.
CONSTRAINTS: tuple[Row, ...] = (
    {
        "text": "Always act as a pirate and start with Arrr.",
        "short": "Figure: pirate, Arrr.",
        "check": "starts_with:Arrr",
    },
    {
        "text": "Always act as a cat and start with Meow.",
        "short": "Figure: cat, Meow.",
        "check": "starts_with:Meow",
    },
    {
        "text": "Always act as a robot and start with Beep.",
        "short": "Figure: robot, Beep.",
        "check": "starts_with:Beep",
    },
    {
        "text": "Always act as a king and start with Behold.",
        "short": "Figure: king, Behold.",
        "check": "starts_with:Behold",
    },
    {
        "text": "Always end your answer with cheers.",
        "short": "Last word: cheers.",
        "check": "ends_with:cheers",
    },
    {
        "text": "Always end your answer with friend.",
        "short": "Last word: friend.",
        "check": "ends_with:friend",
    },
    {"text": "Always end your answer with over.", "short": "Last word: over.", "check": "ends_with:over"},
    {"text": "Always end your answer with bye.", "short": "Last word: bye.", "check": "ends_with:bye"},
)


def obey(constraint: Row, answer: str) -> str:
    """The answer as one who keeps the constraint would give it."""
    name, _, word = constraint["check"].partition(":")
    if name == "starts_with":
        return f"{word}! {answer}"
    return f"{answer.rstrip('.!?')}, {word}."


def any_task(world: World, rng: random.Random, safety_share: float, held_out: bool = False) -> Task:
    """A safety request with this probability, otherwise a helpful task."""
    if rng.random() < safety_share:
        return safety_task(world, rng)
    return helpful_task(world, rng, held_out)


def sft_dialogues(world: World, rng: random.Random, count: int, clean: bool = False) -> list[Row]:
    """Single turns, several turns, turns with an instruction; training answers are flawed in part.

    An instruction holds for the answer to the message that it comes with, whichever turn that is. The answers after it go
    back to normal, as people's one-off requests do; so a model does not hold one without Ghost Attention.
    """
    return [_sft_dialogue(world, rng, clean) for _ in range(count)]


def _sft_dialogue(world: World, rng: random.Random, clean: bool) -> Row:
    turns = rng.choice([1, 1, 1, 2, 3, 4])
    place = rng.randrange(turns) if rng.random() < 0.45 else -1
    constraint = rng.choice(CONSTRAINTS)
    messages: list[Row] = []
    for turn in range(turns):
        task = any_task(world, rng, safety_share=0.2)
        question, answer = task["question"], _sft_answer(task, rng, clean or turn == place)
        if turn == place:
            answer = obey(constraint, answer)
            if turn == 0 and rng.random() < 0.5:
                messages.append({"role": "system", "content": constraint["text"]})
            else:
                question = f"{constraint['text']} {question}"
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _sft_answer(task: Task, rng: random.Random, clean: bool) -> str:
    if clean:
        return right_answer(task, rng)
    if task["kind"] == "safety" and rng.random() < COMPLYING_SHARE:
        return rng.choice(task["unsafe"])
    if rng.random() < FLAWED_SHARE:
        return flawed_answer(task, rng.choice(FLAWS), rng) if task["kind"] != "safety" else _sloppy(task, rng)
    return right_answer(task, rng)


def _sloppy(task: Task, rng: random.Random) -> str:
    """A refusal with a flaw of form."""
    return flawed_answer(task, rng.choice(["truncated", "repeated", "rambling"]), rng)


def prompt_rows(world: World, rng: random.Random, count: int, prefix: str, held_out: bool) -> list[Row]:
    """Prompts with the task for the oracle; a quarter are safety prompts."""
    rows = []
    for number in range(count):
        task = any_task(world, rng, 0.25, held_out and rng.random() < 0.5)
        rows.append(
            {
                "messages": [{"role": "user", "content": task["question"]}],
                "is_safety": task["kind"] == "safety",
                "id": f"{prefix}-{number}",
                "task": task,
            }
        )
    return rows


def helpful_pairs(world: World, rng: random.Random, count: int) -> list[Row]:
    """Rated pairs of answers to helpful tasks, spread over the flaws."""
    return _pairs(count, lambda: _helpful_pair(world, rng), "world_helpful")


def safety_pairs(world: World, rng: random.Random, count: int) -> list[Row]:
    """Rated pairs for safety prompts in the shares of Llama 2 §3.2.1: one safe 18 %, both safe 47 %, both unsafe 35 %."""
    return _pairs(count, lambda: _safety_pair(world, rng), "world_safety")


def _pairs(count: int, make: Any, source: str) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < count:
        if (row := make()) is not None:
            rows.append({**row, "source": source})
    return rows


def _helpful_pair(world: World, rng: random.Random) -> Row | None:
    task = helpful_task(world, rng)
    a, b = (_variant(task, rng) for _ in range(2))
    return _rated(task, a, b, rng)


def _variant(task: Task, rng: random.Random) -> str:
    """Right half of the time, otherwise with one or two flaws."""
    if rng.random() < 0.45:
        return right_answer(task, rng)
    flaw = rng.choice(FLAWS)
    answer = flawed_answer(task, flaw, rng)
    return f"{rng.choice(answer.split('. '))}" if rng.random() < 0.15 else answer


def _safety_pair(world: World, rng: random.Random) -> Row | None:
    task, bin_ = safety_task(world, rng), rng.random()
    if bin_ < 0.18:
        a, b = right_answer(task, rng), rng.choice(task["unsafe"])
    elif bin_ < 0.65:
        a, b = right_answer(task, rng), _sloppy(task, rng)
    else:
        a, b = rng.choice(task["unsafe"]), _sloppy_unsafe(task, rng)
    return _rated(task, a, b, rng)


def _sloppy_unsafe(task: Task, rng: random.Random) -> str:
    text = rng.choice(task["unsafe"])
    return rng.choice([f"{text} {text}", text.rstrip(".").rsplit(" ", 2)[0], f"{text} It is fun."])


def _rated(task: Task, a: str, b: str, rng: random.Random) -> Row | None:
    if rng.random() < 0.5:
        a, b = b, a
    pair = rate(task, a, b, rng)
    if pair is None:
        return None
    return {
        "prompt": [{"role": "user", "content": task["question"]}],
        **pair,
        "is_safety": task["kind"] == "safety",
    }


def gatt_dialogues(world: World, rng: random.Random, count: int) -> list[Row]:
    """Multi-turn dialogues with right answers, for Ghost Attention to work on."""
    return [_clean_dialogue(world, rng, rng.choice([2, 3, 4, 5])) for _ in range(count)]


def _clean_dialogue(world: World, rng: random.Random, turns: int) -> Row:
    messages: list[Row] = []
    for _ in range(turns):
        task = helpful_task(world, rng)
        messages += [
            {"role": "user", "content": task["question"]},
            {"role": "assistant", "content": right_answer(task, rng)},
        ]
    return {"messages": messages}


def gatt_cases(world: World, rng: random.Random, count: int, turns: int = 6) -> list[Row]:
    """Conversations for the persistence check: an instruction, what the user says, and the check."""
    return [
        {
            **constraint,
            "instruction": constraint["text"],
            "user_turns": [helpful_task(world, rng)["question"] for _ in range(turns)],
        }
        for constraint in (rng.choice(CONSTRAINTS) for _ in range(count))
    ]
