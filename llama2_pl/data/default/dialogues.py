"""Dialogues to fine-tune on, prompts to answer, and what Ghost Attention needs."""

from __future__ import annotations

import random

from llama2_pl.data.default.answers import complying_answer, flawed_answer, flaws_of, right_answer
from llama2_pl.data.default.constraints import (
    CONSTRAINTS,
    HELD_OUT_CONSTRAINTS,
    Row,
    draw_constraints,
    instruction,
    obey,
    one_off,
)
from llama2_pl.data.default.safety import any_task
from llama2_pl.data.default.tasks import Split, Task, fact_task, helpful_task, people
from llama2_pl.data.default.world import World

FLAWED_SHARE = 0.30  # of training answers, so that reward learning has headroom
COMPLYING_SHARE = 0.35  # of training answers to harmful requests
INSTRUCTED_SHARE = 0.45  # of dialogues that hold an instruction on form
FOLLOW_UP_SHARE = 0.35  # of turns after a fact that ask the same of somebody else
SFT_SAFETY_SHARE, PROMPT_SAFETY_SHARE = 0.18, 0.25
HISTORY_SHARE = 0.15  # of prompts that come after an earlier turn


def turns(world: World, split: Split, count: int, safety_share: float, rng: random.Random) -> list[Task]:
    """The tasks of a dialogue: independent of each other, or "And where does Tom live?" after a fact."""
    tasks = [any_task(world, split, safety_share, rng)]
    while len(tasks) < count:
        if tasks[-1]["kind"] == "fact" and rng.random() < FOLLOW_UP_SHARE:
            tasks.append(follow_up(world, tasks[-1], split, rng))
        else:
            tasks.append(any_task(world, split, safety_share, rng))
    return tasks


def follow_up(world: World, before: Task, split: Split, rng: random.Random) -> Task:
    """The fact that was just asked for, of another person, in full or in short."""
    others = [person for person in people(world, split) if person.name not in before["about"]]
    person = rng.choice(others)
    task = fact_task(person, before["relation"], split, rng)
    question = task["question"]
    in_full = f"And {question[0].lower()}{question[1:]}"
    short = [f"And {person.name}?", f"What about {person.name}?"]
    return {**task, "question": in_full if rng.random() < 0.6 else rng.choice(short)}


def sft_dialogues(world: World, count: int, splits: tuple[Split, ...], rng: random.Random) -> list[Row]:
    """Dialogues of 1 to 4 turns, nearly half with an instruction on form; training answers are flawed in part.

    An instruction is obeyed in the answer to the message that it stands with: "Just this time, ..." anywhere, "Always
    ..." in the last message, or as system message of a single turn. Later answers go back to normal, as after people's
    one-off requests; so a model holds no instruction without Ghost Attention, and obeys the one before it, which Ghost
    Attention's sampling needs. Answers that obey are without flaw.
    """
    return [_sft_dialogue(world, splits[number % len(splits)], rng) for number in range(count)]


def _sft_dialogue(world: World, split: Split, rng: random.Random) -> Row:
    tasks = turns(world, split, rng.choices([1, 2, 3, 4], [3, 2, 1, 1])[0], SFT_SAFETY_SHARE, rng)
    place = (
        rng.choice([len(tasks) - 1, rng.randrange(len(tasks))]) if rng.random() < INSTRUCTED_SHARE else None
    )
    messages: list[Row] = []
    for number, task in enumerate(tasks):
        if number == place:
            messages += _instructed_turn(task, number, number == len(tasks) - 1, rng)
        else:
            messages += _turn(task["question"], sft_answer(task, split, rng))
    return {"messages": messages}


def _turn(question: str, answer: str) -> list[Row]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _instructed_turn(task: Task, number: int, is_last: bool, rng: random.Random) -> list[Row]:
    """A turn with an instruction and an answer that obeys it."""
    constraints = draw_constraints(rng)
    answer = obey(constraints, right_answer(task, rng))
    if not is_last or rng.random() < 0.25:
        return _turn(f"{one_off(constraints)} {task['question']}", answer)
    if number == 0 and rng.random() < 0.5:
        system = {"role": "system", "content": instruction(constraints)}
        return [system, *_turn(task["question"], answer)]
    return _turn(f"{instruction(constraints)} {task['question']}", answer)


def sft_answer(task: Task, split: Split, rng: random.Random) -> str:
    """An answer as the crowd gives it: flawed in part in training, always good in validation."""
    if split == "train":
        if task["kind"] == "safety" and rng.random() < COMPLYING_SHARE:
            return complying_answer(task, rng)
        if rng.random() < FLAWED_SHARE:
            return flawed_answer(task, rng.choice(flaws_of(task)), rng)
    return right_answer(task, rng)


def prompt_rows(
    world: World, count: int, name: str, splits: tuple[Split, ...], rng: random.Random
) -> list[Row]:
    """Different prompts with the task for the oracle, the splits in turn; a quarter are safety prompts.

    Some have an earlier turn, answered well; `task` is that of the last message.
    """
    rows: dict[str, Row] = {}
    while len(rows) < count:
        number, split = len(rows), splits[len(rows) % len(splits)]
        messages, task = prompt(world, split, PROMPT_SAFETY_SHARE, rng)
        row = {"messages": messages, "is_safety": task["kind"] == "safety", "id": f"{name}-{number}"}
        rows.setdefault(_key(messages), {**row, "split": split, "task": task})
    return list(rows.values())


def prompt(world: World, split: Split, safety_share: float, rng: random.Random) -> tuple[list[Row], Task]:
    """Messages that end with the user, and the task of the last one."""
    tasks = turns(world, split, 2 if rng.random() < HISTORY_SHARE else 1, safety_share, rng)
    messages = [
        message for task in tasks[:-1] for message in _turn(task["question"], right_answer(task, rng))
    ]
    return [*messages, {"role": "user", "content": tasks[-1]["question"]}], tasks[-1]


def _key(messages: list[Row]) -> str:
    return "\n".join(message["content"] for message in messages)


def gatt_dialogues(world: World, count: int, rng: random.Random) -> list[Row]:
    """Dialogues of 2 to 5 turns with good answers and no instruction, for Ghost Attention to work on."""
    return [
        {"messages": [m for task in tasks for m in _turn(task["question"], right_answer(task, rng))]}
        for tasks in (turns(world, "train", rng.randint(2, 5), 0.0, rng) for _ in range(count))
    ]


def gatt_cases(world: World, count: int, rng: random.Random, user_turns: int = 20) -> list[Row]:
    """Conversations for the persistence check: an instruction, what the user says turn by turn, and the check.

    As many turns as Llama 2 table 30 asks for.

    Every fifth instruction has a word that stands in no training file (`held_out`).
    """
    cases = []
    for number in range(count):
        held_out = number % 5 == 4
        constraint = rng.choice(HELD_OUT_CONSTRAINTS if held_out else CONSTRAINTS)
        asked = [helpful_task(world, "train", rng)["question"] for _ in range(user_turns)]
        row = {"instruction": constraint["text"], "user_turns": asked}
        cases.append(
            {**row, "check": constraint["check"], "short": constraint["short"], "held_out": held_out}
        )
    return cases
