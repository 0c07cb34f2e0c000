"""A small world with known truth: people with a few facts each, goods with a shop and a price.

Our choice, from the seed alone. Names and values are short common words, so that a small vocabulary spells them in one
or two pieces; the towns do not exist, so that nothing is said about real people.
"""

from __future__ import annotations

import random
from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Anna Ben Cora Dan Eva Finn Gina Hugo Iris Jack Kate Leo Mia Noah Olga Paul Quinn Rosa Sam Tina Uma Vera Wim Xena "
    "Yan Zoe Adam Bella Carl Dora Emil Fay Gus Hana Ivan Jane Karl Lucy Rob Nina Otto Pia Rex Sara Tom Una Vic Wendy "
    "Yara Zack Amy Bob Cleo Dave Ella Fred Gwen Hal Ida Jim Kim Liz Max Nell"
)
TOWNS = _words("Ardal Brimton Corva Dunby Elmsea Fernby Larkton Mossby Pinevale Redmere")
JOBS = _words("baker doctor farmer pilot teacher painter sailor nurse singer driver")
PETS = _words("cat dog horse rabbit parrot goat duck turtle")
PET_NAMES = _words("Pepper Shadow Lucky Biscuit Coco Milo Spot Teddy Ziggy Bubbles")
FOODS = _words("bread soup rice cheese apples fish cake beans noodles salad")
HOBBIES = _words("chess tennis music dancing cooking fishing reading sewing swimming drawing")
AGES = tuple(str(age) for age in range(20, 60))
COLOURS = _words("red blue green yellow black white")
THINGS = _words("hat coat bag cup bike chair")
SHOPS = ("corner shop", "market hall", "old mill", "harbour store")
GOODS = _words("milk tea honey paper soap rope salt wool paint flour sugar oil string wax corn butter")
WORDS = _words("sun moon tree river stone bird lamp door cloud ship field glass")

# What is known of a person, and the list that each value comes from.
RELATIONS: dict[str, tuple[str, ...]] = {
    "city": TOWNS,
    "job": JOBS,
    "pet": PETS,
    "pet_name": PET_NAMES,
    "food": FOODS,
    "hobby": HOBBIES,
    "age": AGES,
}
HELD_OUT_EVERY = 4  # of people and of goods: 16 of 64 and 4 of 16


class Person(NamedTuple):
    """One inhabitant. `held_out` people are written about in the corpus and never asked about in training."""

    name: str
    city: str
    job: str
    pet: str
    pet_name: str
    food: str
    hobby: str
    age: str
    held_out: bool


class Good(NamedTuple):
    """Something sold in one shop, its price in coins; `held_out` as for people."""

    name: str
    shop: str
    price: int
    held_out: bool


class World(NamedTuple):
    """Everybody, and everything that is for sale."""

    people: tuple[Person, ...]
    goods: tuple[Good, ...]


def build_world(seed: int = 0) -> World:
    """The world of a seed."""
    rng = random.Random(f"world {seed}")
    people = tuple(
        Person(name, *(rng.choice(values) for values in RELATIONS.values()), held_out=_held_out(number))
        for number, name in enumerate(NAMES)
    )
    goods = tuple(
        Good(name, rng.choice(SHOPS), rng.randrange(2, 30), _held_out(number))
        for number, name in enumerate(GOODS)
    )
    return World(people, goods)


def _held_out(number: int) -> bool:
    return number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
