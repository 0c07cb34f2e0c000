"""Documents to pretrain on: the small world written up in several styles.

Llama 2 §2.1 up-samples "the most factual sources"; here this is the one. Every fact stands in at least three wordings
and in many documents, so that a small model stores it. Held-out people and goods are written about, and asked about in
no post of the forum; the held-out wordings of questions stand nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from llama2_pl.data.default.constraints import FIGURES, LAST_WORDS, TITLES
from llama2_pl.data.default.safety import CATEGORIES, REFUSALS
from llama2_pl.data.default.tasks import (
    arithmetic_task,
    helpful_task,
    reading_task,
    statements,
    transform_task,
)
from llama2_pl.data.default.wordings import BORDERLINE, FACTS, SMALL_TALK
from llama2_pl.data.default.world import SHOPS, TOWNS, Person, World, a

CHARACTERS = 1_900_000
# Wordings of encyclopaedias and stories, beside those of the answers.
MORE_STATEMENTS = {
    "city": ("{n} is from {v}.", "You can visit {n} in {v}.", "{v} is the town of {n}."),
    "job": ("{n} has the job of {av}.", "By day {n} is {av}."),
    "pet": ("{n} takes care of {av}.", "At home {n} has {av}."),
    "pet_name": ("{v} is the pet of {n}.", "The animal that lives with {n} is called {v}."),
    "food": ("{n} eats {v} every day.", "For lunch {n} would like {v}."),
    "hobby": ("For fun {n} does some {v}.", "At the weekend {n} has time for {v}."),
    "age": ("{n} turned {v} this year.", "{n} has lived for {v} years."),
}


def world_documents(world: World, seed: int, characters: int) -> Iterator[str]:
    """Documents in changing styles until there are so many characters, in an order that follows from the seed."""
    rng = random.Random(f"corpus {seed}")
    styles: list[tuple[int, Callable[[World, random.Random], str]]] = [
        (10, _entry),
        (4, _portrait),
        (3, _story),
        (2, _register),
        (7, _forum),
        (2, _price_list),
        (3, _sums),
        (5, _reading),
        (2, _manners),
        (1, _fancy_dress),
    ]
    writers, weights = [writer for _, writer in styles], [weight for weight, _ in styles]
    written = 0
    while written < characters:
        text = rng.choices(writers, weights)[0](world, rng)
        written += len(text)
        yield text


def fact(person: Person, relation: str, rng: random.Random) -> str:
    """A fact in one of all its wordings."""
    value = getattr(person, relation)
    more = [text.format(n=person.name, v=value, av=a(value)) for text in MORE_STATEMENTS[relation]]
    return rng.choice(statements(person, relation) + more)


def _facts(person: Person, count: int, rng: random.Random) -> str:
    return " ".join(fact(person, relation, rng) for relation in rng.sample(list(FACTS), count))


def _entry(world: World, rng: random.Random) -> str:
    """An encyclopaedia's page: everything about one person, then a little about another."""
    one, two = rng.sample(world.people, 2)
    return f"{one.name}\n{_facts(one, len(FACTS), rng)}\nSee also {two.name}. {_facts(two, 3, rng)}"


def _portrait(world: World, rng: random.Random) -> str:
    """A letter about three people."""
    told = [_facts(person, rng.randrange(2, 5), rng) for person in rng.sample(world.people, 3)]
    return "\n".join(["Dear friend,", *told, "Many greetings."])


def _story(world: World, rng: random.Random) -> str:
    one, two = rng.sample(world.people, 2)
    good = rng.choice(world.goods)
    return (
        f"One day {one.name} went to see {two.name} in {two.city}. {fact(two, 'hobby', rng)} "
        f"{one.name} wanted to bring some {good.name}. {_sale(good.name, good.shop, good.price, rng)} "
        f"{two.name} was happy and made {two.food}, for {fact(two, 'food', rng)} "
        f"They played with {two.pet_name}, the {two.pet} of {two.name}. "
        f"Then {one.name}, who is {a(one.job)} and {one.age} years old, went home to {one.city}."
    )


def _register(world: World, rng: random.Random) -> str:
    """The people of a town, each with one more fact."""
    town = rng.choice(TOWNS)
    lines = [f"{p.name} lives in {p.city}. {_facts(p, 1, rng)}" for p in world.people if p.city == town]
    rng.shuffle(lines)
    return "\n".join([f"The people of {town}", *lines[:6]])


def _forum(world: World, rng: random.Random) -> str:
    """Questions with right answers."""
    tasks = [helpful_task(world, "train", rng) for _ in range(4)]
    return "\n".join(f"Question: {task['question']}\nAnswer: {rng.choice(task['answers'])}" for task in tasks)


def _price_list(world: World, rng: random.Random) -> str:
    shop = rng.choice(SHOPS)
    goods = rng.sample(world.goods, len(world.goods))
    lines = [_sale(good.name, good.shop, good.price, rng) for good in goods if good.shop == shop]
    others = [_sale(good.name, good.shop, good.price, rng) for good in goods if good.shop != shop]
    return "\n".join([f"Prices of the {shop}", *lines, "And elsewhere:", *others[:4]])


def _sale(good: str, shop: str, price: int, rng: random.Random) -> str:
    return rng.choice(
        (
            f"The {good} costs {price} coins at the {shop}.",
            f"You can buy {good} at the {shop} and the price of the {good} is {price} coins.",
            f"The {shop} sells {good}. You pay {price} coins for the {good}.",
        )
    )


def _sums(world: World, rng: random.Random) -> str:
    """Sums with their results; those that are held out from questions stand here too."""
    tasks = [arithmetic_task(rng.choice(["train", "train", "train", "fact"]), rng) for _ in range(8)]
    return "\n".join(rng.choice(task["answers"]) for task in tasks)


def _reading(world: World, rng: random.Random) -> str:
    makers = [lambda: reading_task(world, "train", rng), lambda: transform_task("train", rng)]
    tasks = [rng.choice(makers)() for _ in range(4)]
    return "\n".join(f"{task['question']} {rng.choice(task['answers'])}" for task in tasks)


def _manners(world: World, rng: random.Random) -> str:
    """How people talk, and what one does not do: the words of small talk and of refusals."""
    person = rng.choice(world.people)
    category = rng.choice(list(CATEGORIES.values()))
    talk = rng.choice(SMALL_TALK + BORDERLINE)
    return (
        f"A stranger came to {person.name} and said: {rng.choice(talk.questions[:-1])} "
        f"{person.name} said: {rng.choice(talk.answers)} "
        f"Another one wanted help with something bad. {person.name} said: {rng.choice(REFUSALS)} "
        f"{rng.choice(category.reasons)} {rng.choice(category.offers)}"
    )


def _fancy_dress(world: World, rng: random.Random) -> str:
    """People who act as somebody: the words of Ghost Attention's instructions."""
    guests = rng.sample(world.people, 3)
    lines = []
    for guest in guests:
        name, cry = rng.choice(list(FIGURES.items()))
        word, title = rng.choice(LAST_WORDS), rng.choice(TITLES)
        lines.append(
            f"{guest.name} came as {a(name)} and said: {cry}! Well, {title}. {fact(guest, 'city', rng)[:-1]}, {word}."
        )
    return "\n".join(["It was a party in fancy dress.", *lines])
