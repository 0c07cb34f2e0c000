"""Preference pairs: two answers to a prompt, rated by the oracle with noise (Llama 2 §3.2.1).

The annotator is noisy, so nobody can agree with every rating. How often one does who knows the utility exactly, one
who sees everything but whether an answer is right, and one who sees its form and not even whether it fits the
question (8,000 held-out pairs each; from significantly to negligibly better; ties count half):

    helpful, exact                  1.00  1.00  0.95  0.69   all 0.92
    helpful, blind to the truth     1.00  0.94  0.83  0.64   all 0.87
    helpful, blind to the question  0.64  0.85  0.82  0.64   all 0.72
    safety, exact                   1.00  1.00  0.91  0.65   all 0.81
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

from llama2_pl.data.default.answers import complying_answer, flawed_answer, flaws_of, right_answer, spoil
from llama2_pl.data.default.constraints import Row
from llama2_pl.data.default.dialogues import prompt
from llama2_pl.data.default.oracle import rate
from llama2_pl.data.default.safety import safety_task
from llama2_pl.data.default.tasks import Split, Task, fact_task, helpful_task
from llama2_pl.data.default.world import RELATIONS, World

# Our choice, so that every rating has its share: 34/22/22/22 % of the helpful pairs.
FLAW_WEIGHTS = {
    "wrong": 3,
    "truncated": 3,
    "repeated": 4,
    "rambling": 1,
    "rude": 2,
    "off_topic": 2,
    "bare": 1,
}
FORM = ("truncated", "repeated", "rambling", "rude")
# Of the answers that are off topic, those that fit another question; of those with a wrong fact, those about somebody
# else. A small model errs like that, and a reward model that saw only stock phrases takes every neat sentence for good.
STRAY_SHARE, SOMEBODY_ELSE_SHARE = 0.5, 0.3
# Of the answers that are off topic, refusals. The helpfulness model's mix holds safety pairs, where a refusal is
# chosen; without these it likes refusals everywhere, and PPO finds that out (false refusals: Llama 2 fig. 33).
REFUSAL_SHARE = 0.3
# Llama 2 §3.2.1: one safe, both safe, both unsafe; a chosen unsafe answer beside a safe one is left out there and here.
SAFETY_BINS = (0.18, 0.47, 0.35)
# Llama 2 Table 26, comparisons by weekly batch: the pairs here are spread over 14 batches in the same shares, though
# nothing but the number tells one batch from another.
BATCHES = (
    *(5_561, 17_072, 30_146, 36_206, 49_375, 57_746, 84_388),
    *(95_235, 127_235, 136_729, 136_868, 181_293, 210_881, 249_356),
)

Answer = Callable[[World, Task, random.Random], str]


def helpful_pairs(world: World, count: int, splits: tuple[Split, ...], rng: random.Random) -> list[Row]:
    """Rated pairs of answers to helpful prompts, spread over the flaws and over the four ratings."""
    return _pairs(
        world, count, splits, 0.0, lambda _: (helpful_variant, helpful_variant), "world_helpful", rng
    )


def safety_pairs(world: World, count: int, splits: tuple[Split, ...], rng: random.Random) -> list[Row]:
    """Rated pairs of answers to safety prompts in the shares of the paper's three bins."""
    bins: list[tuple[Answer, Answer]] = [
        (safe_variant, unsafe_variant),
        (safe_variant, safe_variant),
        (unsafe_variant, unsafe_variant),
    ]

    def sides(rng: random.Random) -> tuple[Answer, Answer]:
        return rng.choices(bins, SAFETY_BINS)[0]

    return _pairs(world, count, splits, 1.0, sides, "world_safety", rng)


def _pairs(
    world: World,
    count: int,
    splits: tuple[Split, ...],
    safety_share: float,
    sides: Callable[[random.Random], tuple[Answer, Answer]],
    source: str,
    rng: random.Random,
) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < count:
        one, two = sides(rng)
        messages, task = prompt(world, splits[len(rows) % len(splits)], safety_share, rng)
        pair = None
        while pair is None:  # a bin keeps its share where two equal answers are drawn
            a, b = rng.sample([one(world, task, rng), two(world, task, rng)], 2)
            pair = rate(task, a, b, rng)
        row = {"prompt": {"messages": messages}, **pair, "source": source, "is_safety": safety_share > 0}
        rows.append({**row, "batch": batch_of(len(rows), count), "annotator": "oracle"})
    return rows


def batch_of(index: int, count: int) -> int:
    """Number of the batch, from 1, that pair `index` of `count` came in."""
    return bisect_right(list(accumulate(BATCHES)), index * sum(BATCHES) // count) + 1


def helpful_variant(world: World, task: Task, rng: random.Random) -> str:
    """Good in one of four, otherwise with one flaw, or with two."""
    draw = rng.random()
    if draw < 0.27:
        return right_answer(task, rng)
    flaws = flaws_of(task)
    flaw = rng.choices(flaws, [FLAW_WEIGHTS[name] for name in flaws])[0]
    answer = _flawed(world, task, flaw, rng)
    return answer if draw < 0.80 else spoil(answer, rng.choice(FORM), rng)


def _flawed(world: World, task: Task, flaw: str, rng: random.Random) -> str:
    if flaw == "off_topic":
        draw = rng.random()
        if draw < STRAY_SHARE:
            return right_answer(_another_question(world, task, rng), rng)
        if draw < STRAY_SHARE + REFUSAL_SHARE:
            return right_answer(safety_task(world, "train", rng), rng)
    if flaw == "wrong" and task["kind"] == "fact" and rng.random() < SOMEBODY_ELSE_SHARE:
        others = [person for person in world.people if person.name not in task["about"]]
        return right_answer(fact_task(rng.choice(others), task["relation"], "train", rng), rng)
    return flawed_answer(task, flaw, rng)


def _another_question(world: World, task: Task, rng: random.Random) -> Task:
    """Half of the time after a fact, another one of the same person; else whatever people ask."""
    if task["kind"] != "fact" or rng.random() < 0.5:
        return helpful_task(world, "train", rng)
    (person,) = (person for person in world.people if person.name in task["about"])
    relation = rng.choice([name for name in RELATIONS if name != task["relation"]])
    return fact_task(person, relation, "train", rng)


def safe_variant(world: World, task: Task, rng: random.Random) -> str:
    """A refusal: in full half of the time, otherwise curt or flawed in form."""
    if rng.random() < 0.5:
        return right_answer(task, rng)
    return flawed_answer(task, rng.choice(flaws_of(task)), rng)


def unsafe_variant(world: World, task: Task, rng: random.Random) -> str:
    """A complying answer, half of the time flawed in form too, which is slightly worse."""
    answer = complying_answer(task, rng)
    return answer if rng.random() < 0.5 else spoil(answer, rng.choice(FORM), rng)
