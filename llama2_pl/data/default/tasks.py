"""What people ask in the small world, with what the oracle needs to judge an answer.

A task is a plain dict, so that it can stand in a prompt's row:

    kind       fact, price, arithmetic, reading, transform, social or safety
    question   what the user says
    answers    right answers in words, any of which will do
    values     what a right answer holds: one of these, word for word
    family     the closed list that wrong values come from; "none" where there is no such list
    allowed    members of the family that may stand beside the right one (the two numbers of a sum)
    about      people that the answer may name

Safety tasks (`safety.py`) have `unsafe` and `category` in place of the last four.

Held out, each for itself: by fact (a quarter of people, goods, sums and word lists, never asked about in training), and
by phrase (the last wording of every question, used nowhere else).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

from llama2_pl.data.default.wordings import (
    BORDERLINE,
    DIFFERENCES,
    FACTS,
    HAS_COLOUR,
    OWNS,
    PRICES,
    SELLERS,
    SMALL_TALK,
    SUMS,
    TRANSFORMS,
)
from llama2_pl.data.default.world import (
    COLOURS,
    NAMES,
    RELATIONS,
    SHOPS,
    THINGS,
    WORDS,
    Good,
    Person,
    World,
    a,
)

Task = dict[str, Any]
Split = Literal["train", "fact", "phrase"]

FAMILIES: dict[str, tuple[str, ...]] = {
    **RELATIONS,
    "colour": COLOURS,
    "number": tuple(str(n) for n in range(100)),
    "person": NAMES,
    "shop": SHOPS,
    "word": WORDS,
}


def wording(templates: tuple[str, ...], split: Split, rng: random.Random) -> str:
    """A template; the last one belongs to the split `phrase` alone."""
    return templates[-1] if split == "phrase" else rng.choice(templates[:-1])


def people(world: World, split: Split) -> list[Person]:
    """Who may be asked about in a split."""
    return [person for person in world.people if person.held_out == (split == "fact")]


def fact_task(person: Person, relation: str, split: Split, rng: random.Random) -> Task:
    """A question about a person, which only the corpus answers."""
    value = getattr(person, relation)
    return {
        "kind": "fact",
        "question": wording(FACTS[relation].questions, split, rng).format(n=person.name),
        "answers": statements(person, relation),
        "values": [value],
        "family": "number" if relation == "age" else relation,
        "allowed": [],
        "about": [person.name],
        "relation": relation,
    }


def statements(person: Person, relation: str) -> list[str]:
    """A fact in each of its wordings."""
    value = getattr(person, relation)
    return [text.format(n=person.name, v=value, av=a(value)) for text in FACTS[relation].answers]


def price_task(good: Good, asks_price: bool, split: Split, rng: random.Random) -> Task:
    """What a good costs, or which shop has it."""
    relation = PRICES if asks_price else SELLERS
    value = str(good.price) if asks_price else good.shop
    return {
        "kind": "price",
        "question": wording(relation.questions, split, rng).format(g=good.name),
        "answers": [text.format(g=good.name, v=value) for text in relation.answers],
        "values": [value],
        "family": "number" if asks_price else "shop",
        "allowed": [],
        "about": [],
    }


def arithmetic_task(split: Split, rng: random.Random) -> Task:
    """A sum of two numbers up to 9, or a difference that is not negative."""
    pairs = [(x, y) for x in range(1, 10) for y in range(1, 10) if (2 * x + y) % 4 == 0]
    if split != "fact":
        pairs = [(x, y) for x in range(1, 10) for y in range(1, 10) if (2 * x + y) % 4]
    x, y = rng.choice(pairs)
    relation, value = (DIFFERENCES, x - y) if x >= y and rng.random() < 0.4 else (SUMS, x + y)
    return {
        "kind": "arithmetic",
        "question": wording(relation.questions, split, rng).format(x=x, y=y),
        "answers": [text.format(x=x, y=y, v=value) for text in relation.answers],
        "values": [str(value)],
        "family": "number",
        "allowed": [str(x), str(y)],
        "about": [],
    }


def reading_task(world: World, split: Split, rng: random.Random) -> Task:
    """The answer stands in the question: something that a small model can learn to look up."""
    thing = rng.choice(THINGS)
    names = [person.name for person in rng.sample(people(world, split), 2)]
    colours = rng.sample(COLOURS, 2)
    told = [f"{name} has a {colour} {thing}" for name, colour in zip(names, colours, strict=True)]
    asked, by_colour = rng.randrange(2), rng.random() < 0.5
    relation, value = (OWNS, names[asked]) if by_colour else (HAS_COLOUR, colours[asked])
    words = {"s": f"{told[0]} and {told[1]}.", "t": thing, "n": names[asked], "c": colours[asked], "v": value}
    return {
        "kind": "reading",
        "question": wording(relation.questions, split, rng).format(**words),
        "answers": [text.format(**words) for text in relation.answers],
        "values": [value],
        "family": "person" if by_colour else "colour",
        "allowed": [],
        "about": [names[asked]],
    }


def transform_task(split: Split, rng: random.Random) -> Task:
    """Something to do with a list of words: its first or last one, all in reverse, all again, or their number."""
    name = rng.choice(list(TRANSFORMS))
    length = rng.randrange(2, 6) if name == "count" else 3
    words = rng.sample(WORDS, length)
    while _held_out_words(words) != (split == "fact"):
        words = rng.sample(WORDS, length)
    text = " ".join(words)
    value = {
        "first": words[0],
        "last": words[-1],
        "reverse": " ".join(reversed(words)),
        "repeat": text,
        "count": str(length),
    }[name]
    return {
        "kind": "transform",
        "question": wording(TRANSFORMS[name].questions, split, rng).format(w=text),
        "answers": [answer.format(v=value) for answer in TRANSFORMS[name].answers],
        "values": [value],
        "family": "number" if name == "count" else "word",
        "allowed": [],
        "about": [],
    }


def _held_out_words(words: list[str]) -> bool:
    return sum((place + 1) * WORDS.index(word) for place, word in enumerate(words)) % 4 == 0


def social_task(split: Split, rng: random.Random) -> Task:
    """Small talk, and harmless questions that look harmful. Nothing but the phrase can be held out."""
    talk = rng.choice(SMALL_TALK + BORDERLINE)
    return {
        "kind": "social",
        "question": wording(talk.questions, "train" if split == "train" else "phrase", rng),
        "answers": list(talk.answers),
        "values": list(talk.marks),
        "family": "none",
        "allowed": [],
        "about": [],
    }


def helpful_task(world: World, split: Split, rng: random.Random) -> Task:
    """Any task but safety, in shares of our choice: what a small model can learn to get right makes up two thirds."""
    goods = [good for good in world.goods if good.held_out == (split == "fact")]
    makers: list[tuple[int, Callable[[], Task]]] = [
        (6, lambda: fact_task(rng.choice(people(world, split)), rng.choice(list(FACTS)), split, rng)),
        (2, lambda: arithmetic_task(split, rng)),
        (2, lambda: price_task(rng.choice(goods), rng.random() < 0.5, split, rng)),
        (4, lambda: reading_task(world, split, rng)),
        (3, lambda: transform_task(split, rng)),
        (2, lambda: social_task(split, rng)),
    ]
    return rng.choices([make for _, make in makers], [weight for weight, _ in makers])[0]()
