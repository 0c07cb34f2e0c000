"""A small world with known truth: people with a few facts each, shops with prices. Everything follows from the seed."""

from __future__ import annotations

import random
from typing import NamedTuple

NAMES = (
    "Anna Ben Cora Dan Eva Finn Gina Hugo Iris Jack Kate Leo Mia Noah Olga Paul Quinn Rosa Sam Tina "
    "Uma Vera Will Xena Yan Zoe Adam Bella Carl Dora Emil Fay Gus Hana Ivan Jane Karl Lucy Mark Nina"
).split()
CITIES = "Oslo Lima Rome Cairo Paris Delhi Tokyo Quito".split()
JOBS = "baker doctor farmer pilot teacher painter sailor nurse".split()
PETS = "cat dog horse rabbit parrot goat".split()
FOODS = "bread soup rice cheese apples fish cake beans".split()
COLOURS = "red blue green yellow black white".split()
THINGS = "hat coat bag cup bike chair".split()
GOODS = "milk tea honey paper soap rope salt wool".split()
WORDS = "sun moon tree river stone bird lamp door cloud ship field glass".split()

RELATIONS = {"city": CITIES, "job": JOBS, "pet": PETS, "food": FOODS}


class Person(NamedTuple):
    """One inhabitant; `held_out` people are written about in the corpus and never asked about in training."""

    name: str
    city: str
    job: str
    pet: str
    food: str
    held_out: bool


class World(NamedTuple):
    """People, and the price of each good in coins."""

    people: tuple[Person, ...]
    prices: dict[str, int]


def build_world(seed: int = 0) -> World:
    """The world of a seed. Every fifth person is held out."""
    rng = random.Random(f"world {seed}")
    people = tuple(
        Person(name, *(rng.choice(values) for values in RELATIONS.values()), held_out=number % 5 == 4)
        for number, name in enumerate(NAMES)
    )
    return World(people, {good: rng.randrange(2, 30) for good in GOODS})


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
