"""Ghost Attention's dialogues, as functions of dialogues, constraints and something that answers (Llama 2 §3.3)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from llama2_pl.callbacks.rewards import Reward
from llama2_pl.data.readers.prompts import PromptRow
from llama2_pl.text.chat import Dialog, Message
from llama2_pl.text.constraints import Constraint, checkable, constraint_kept
from llama2_pl.text.tags import neutralise_control_tags

History = Literal["original", "resampled"]
Place = Literal["system", "user"]
Sample = Callable[[Sequence[Dialog]], list[list[str]]]
"""Dialogues that end with a user message -> some answers to each; none where none is fit to be learned."""


class GattPlan(NamedTuple):
    """What one dialogue is made of: its constraints, (user message, original answer) per turn, shortened or not."""

    constraints: tuple[Constraint, ...]
    turns: tuple[tuple[str, str], ...]
    shortened: bool

    @property
    def instruction(self) -> str:
        """inst, as the model is given it to answer by."""
        return " ".join(constraint.text for constraint in self.constraints)

    @property
    def lesson_instruction(self) -> str:
        """inst, as the model is given it to learn from: the short form half of the time."""
        return " ".join(
            constraint.short if self.shortened else constraint.text for constraint in self.constraints
        )


def turns_of(dialog: Dialog) -> list[tuple[str, str]]:
    """The (user, answer) pairs of a dialogue that ends with an answer, control tags made harmless.

    A system message is left out (our choice): inst takes its place.
    """
    texts = [neutralise_control_tags(m.content) for m in dialog.messages if m.role != "system"]
    return list(zip(texts[::2], texts[1::2], strict=True))


def draw_plan(
    sources: Sequence[Sequence[tuple[str, str]]],
    constraints: Sequence[Constraint],
    most_turns: int,
    most_constraints: int,
    shorten_probability: float,
    rng: random.Random,
) -> GattPlan:
    """A dialogue of 2 to `most_turns` turns and 1 to `most_constraints` constraints that may stand together.

    Our choice: a source with fewer turns is followed by another, so that sources of single turns serve too.
    """
    length = rng.randint(2, most_turns)
    turns: list[tuple[str, str]] = []
    while len(turns) < length:
        turns += rng.choice(sources)
    shuffled = rng.sample(constraints, len(constraints))
    by_group = {constraint.group: constraint for constraint in reversed(shuffled)}  # the first of each group
    groups = list(dict.fromkeys(constraint.group for constraint in shuffled))
    count = rng.randint(1, min(most_constraints, len(groups)))
    chosen = tuple(by_group[group] for group in groups[:count])
    return GattPlan(chosen, tuple(turns[:length]), rng.random() < shorten_probability)


def question(plan: GattPlan, answers: Sequence[str], place: Place) -> Dialog:
    """What the model is asked for the answer after `answers`: inst stands with EVERY user message. §3.3.

    In the first it stands where it will be learned, in the others before their text.
    """
    users = [user for user, _ in plan.turns[: len(answers) + 1]]
    later = [f"{plan.instruction} {user}" for user in users[1:]]
    return _dialog(plan.instruction, [users[0], *later], answers, place)


def lesson(plan: GattPlan, answers: Sequence[str], place: Place) -> Dialog:
    """What is learned: inst with the FIRST user message alone. §3.3; only the last answer is to be trained on."""
    return _dialog(plan.lesson_instruction, [user for user, _ in plan.turns], answers, place)


def _dialog(instruction: str, users: Sequence[str], answers: Sequence[str], place: Place) -> Dialog:
    head = (Message("system", instruction),) if place == "system" else ()
    first = users[0] if place == "system" else f"{instruction} {users[0]}"
    texts = [first, *users[1:]]
    messages: list[Message] = []
    for number, user in enumerate(texts):
        messages.append(Message("user", user))
        if number < len(answers):
            messages.append(Message("assistant", answers[number]))
    return Dialog((*head, *messages))


def build_dialogues(
    plans: Sequence[GattPlan],
    sample: Sample,
    history: History = "original",
    place: Place = "system",
    check: bool = True,
    reward: Reward | None = None,
) -> list[Dialog]:
    """The lessons of those plans to which the model gave an answer worth learning.

    Llama 2 §3.3 leaves two readings. "original": the earlier answers are those of the source (the paper speaks of a
    mismatch that the zero loss on them makes harmless), and only the last is sampled. "resampled": each is, in turn.

    Args:
        plans: what to build.
        sample: the current chat model.
        history: where earlier answers come from.
        place: inst is the system message, or the start of the first user message. In the released format the one is
            folded into the other.
        check: only answers that keep every constraint which a program can check.
        reward: of several such answers take the best ("as in rejection sampling"); None: the first.
    """
    answers = [[text for _, text in plan.turns[:-1]] if history == "original" else [] for plan in plans]
    pending = list(range(len(plans)))
    finished: list[int] = []
    while pending:
        asked = [question(plans[i], answers[i], place) for i in pending]
        found = choose([plans[i] for i in pending], asked, sample(asked), check, reward)
        for i, text in zip(pending, found, strict=True):
            if text is not None:
                answers[i].append(text)
        alive = [i for i, text in zip(pending, found, strict=True) if text is not None]
        finished += [i for i in alive if len(answers[i]) == len(plans[i].turns)]
        pending = [i for i in alive if len(answers[i]) < len(plans[i].turns)]
    return [lesson(plans[i], answers[i], place) for i in sorted(finished)]


def choose(
    plans: Sequence[GattPlan],
    asked: Sequence[Dialog],
    answers: Sequence[Sequence[str]],
    check: bool,
    reward: Reward | None,
) -> list[str | None]:
    """One answer for each plan, None where none will do."""
    fit = [
        [text for text in texts if not check or keeps_all(plan.constraints, text)]
        for plan, texts in zip(plans, answers, strict=True)
    ]
    if reward is None:
        return [texts[0] if texts else None for texts in fit]
    rows = [PromptRow(dialog) for dialog, texts in zip(asked, fit, strict=True) for _ in texts]
    flat = [text for texts in fit for text in texts]
    scores = iter(reward(rows, flat) if flat else [])
    chosen: list[str | None] = []
    for texts in fit:
        scored = [(next(scores), text) for text in texts]
        chosen.append(max(scored, key=lambda one: one[0])[1] if scored else None)
    return chosen


def keeps_all(constraints: Sequence[Constraint], answer: str) -> bool:
    """Does the answer keep every constraint that a program can check?"""
    return all(constraint_kept(constraint, answer) for constraint in checkable(constraints))
