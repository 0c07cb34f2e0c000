"""Documents to pretrain on: the small world in several styles, and the text and code that every CPython carries."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from llama2_pl.data.default.tasks import arithmetic_task, fact_task, helpful_task, reading_task, repeat_task
from llama2_pl.data.default.world import Person, World, a

CODE_CHARACTERS = 1_500_000
DOC_CHARACTERS = 600_000
ENCYCLOPAEDIA = {
    "city": ("{n} lives in {v}.", "The home of {n} is {v}.", "{n} is from {v}."),
    "job": ("{n} works as {av}.", "{n} is {av}.", "The job of {n} is {v}."),
    "pet": ("{n} has {av}.", "The pet of {n} is {av}.", "{n} lives with {av}."),
    "food": ("{n} likes {v}.", "The favourite food of {n} is {v}.", "{n} eats {v} every day."),
}


def world_documents(world: World, seed: int, count: int) -> Iterator[str]:
    """`count` short documents in changing styles, in an order that is a function of the seed."""
    rng = random.Random(f"corpus {seed}")
    styles: list[tuple[int, Callable[[World, random.Random], str]]] = [
        (5, _entry),
        (2, _story),
        (6, _forum),
        (1, _price_list),
        (2, _sums),
        (3, _reading),
    ]
    writers, weights = [w for _, w in styles], [n for n, _ in styles]
    for _ in range(count):
        yield rng.choices(writers, weights)[0](world, rng)


def facts(person: Person, rng: random.Random) -> list[str]:
    """Every fact of a person, each in one of its wordings, in random order."""
    lines = []
    for relation, wordings in ENCYCLOPAEDIA.items():
        value = getattr(person, relation)
        lines.append(rng.choice(wordings).format(n=person.name, v=value, av=a(value)))
    rng.shuffle(lines)
    return lines


def _entry(world: World, rng: random.Random) -> str:
    people = rng.sample(world.people, 3)
    return "\n".join(" ".join(facts(person, rng)) for person in people)


def _story(world: World, rng: random.Random) -> str:
    one, two = rng.sample(world.people, 2)
    return (
        f"One day {one.name} went to see {two.name} in {two.city}. {one.name} gave {two.name} some {two.food}. "
        f"{two.name} was happy, for {two.name} likes {two.food}. "
        f"They played with the {two.pet} of {two.name}. Then {one.name} went home to {one.city}."
    )


def _forum(world: World, rng: random.Random) -> str:
    """Questions with right answers; held-out people are never asked about."""
    tasks = [helpful_task(world, rng) for _ in range(3)]
    return "\n".join(f"Question: {task['question']}\nAnswer: {task['answers'][0]}" for task in tasks)


def _price_list(world: World, rng: random.Random) -> str:
    goods = list(world.prices.items())
    rng.shuffle(goods)
    return "\n".join(f"The {good} costs {price} coins." for good, price in goods)


def _sums(world: World, rng: random.Random) -> str:
    return "\n".join(arithmetic_task(rng)["answers"][0] for _ in range(6))


def _reading(world: World, rng: random.Random) -> str:
    makers = [lambda: reading_task(world, rng), lambda: repeat_task(rng)]
    tasks = [rng.choice(makers)() for _ in range(3)]
    return "\n".join(f"{task['question']} {task['answers'][0]}" for task in tasks)


def prose_documents() -> list[str]:
    """The topics of Python's own help, about half a megabyte; empty where a build leaves them out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [text for _, text in sorted(topics.items())]


def source_files() -> list[Path]:
    """The standard library's modules in name order, tests and packages of others left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.glob("*.py") if path.is_file())


def code_documents(limit: int = CODE_CHARACTERS) -> Iterator[str]:
    """Source files of the standard library, up to `limit` characters."""
    total = 0
    for path in source_files():
        text = path.read_text(encoding="utf-8", errors="strict")
        if total + len(text) <= limit:
            total += len(text)
            yield text


def docstring_documents(limit: int = DOC_CHARACTERS) -> Iterator[str]:
    """The docstrings of each standard-library module as one document, up to `limit` characters."""
    total = 0
    for path in source_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(doc for doc in found if doc)
        if text and total + len(text) <= limit:
            total += len(text)
            yield text


__all__ = [
    "code_documents",
    "docstring_documents",
    "fact_task",
    "facts",
    "prose_documents",
    "world_documents",
]
