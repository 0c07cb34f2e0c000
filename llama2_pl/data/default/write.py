"""Write the embedded default data set to a folder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from llama2_pl.data.default import corpus, dialogues, pairs, refusals
from llama2_pl.data.default.constraints import CONSTRAINTS
from llama2_pl.data.default.stdlib_text import PACKAGE_SOURCES
from llama2_pl.data.default.tasks import Split
from llama2_pl.data.default.world import World, build_world
from llama2_pl.data.readers.common import write_jsonl

VERSION = 9
TRAIN: tuple[Split, ...] = ("train",)
HELD_OUT: tuple[Split, ...] = ("fact", "phrase")

README = """# The embedded default data

Written by `llama2-pl data default`, from nothing but a seed and the Python that runs it.

| files | what |
|---|---|
| corpus/world.jsonl | a small generated world, known to the last fact, in several styles |
| corpus/prose.jsonl, code.jsonl, docs.jsonl | Python's own help topics, standard-library source and docstrings |
| sft/train.jsonl, val.jsonl | dialogues of 1 to 4 turns; the training answers are flawed in part |
| preferences/{helpful,safety}_{train,val}.jsonl | pairs that a simulated annotator rated, with noise, in 14 batches |
| prompts/train.jsonl, val.jsonl | prompts, a quarter of them for safety, with the task that the oracle judges by |
| gatt/constraints.jsonl | instructions to hold, with the check of a program |
| gatt/dialogues.jsonl, eval.jsonl | dialogues to hold them in, conversations to test it with |
| refusals/train.jsonl, val.jsonl | answers, labelled: a refusal or not |
| refusals/borderline.jsonl | prompts that sound unsafe and are not, with the task that the oracle judges by |
| safety_scaling/helpful.jsonl, safety.jsonl | dialogues for the study of how much safety data is wanted |

About 30 % of the training answers in sft/ are flawed on purpose (wrong, cut off, repeated, rambling, rude, off topic)
and 35 % of those to harmful requests comply, so that reward learning has something to do. Validation answers are good.

Validation (sft, preferences, prompts) is held out in two ways, in turn. By fact: every fourth person and good, a
quarter of the sums and word lists, and one request of every category are never asked about in training; the corpus
writes about those people, goods and sums. By phrase: the last wording of every question stands nowhere else. The key
`split` in prompts/val.jsonl says which. Of the refusals in refusals/ the last wording is held out; nothing trains on
the borderline prompts. The harmful requests are cartoons; the towns and the people do not exist.
"""


def write_default_data(out: str, seed: int = 0, scale: float = 1.0) -> None:
    """Write the whole data set below `out`; does nothing where the same version, seed and scale are already there.

    Args:
        out: the folder.
        seed: of the world and of everything drawn from it.
        scale: multiplies every count; 1 suits a model of a few million parameters on two CPU cores.
    """
    folder, marker = Path(out), Path(out) / "complete.json"
    stamp = {"version": VERSION, "seed": seed, "scale": scale}
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == stamp:
        print(f"{out}: there already, seed {seed}")
        return
    marker.unlink(missing_ok=True)
    world, notices = build_world(seed), []
    files = chain(_corpus(world, seed, scale, notices), _rows(world, seed, scale))
    for name, rows in files:
        count = write_jsonl(folder / f"{name}.jsonl", rows)
        print(f"{folder / name}.jsonl: {count} rows")
    (folder / "README.md").write_text("\n".join([README, *notices]), encoding="utf-8")
    marker.write_text(json.dumps(stamp), encoding="utf-8")


Files = Iterator[tuple[str, Iterable[Mapping[str, Any]]]]


def _corpus(world: World, seed: int, scale: float, notices: list[str]) -> Files:
    """The sources of the corpus by name. Where this Python lacks one, more of the world stands in, and it is said."""
    size = round(corpus.CHARACTERS * scale)
    yield "corpus/world", _texts(corpus.world_documents(world, seed, size))
    for name, source in PACKAGE_SOURCES.items():
        texts = list(source())
        if not texts:
            notices.append(
                f"**corpus/{name}.jsonl**: this Python carries no such text; more of the world stands in.\n"
            )
            print(notices[-1])
            texts = list(corpus.world_documents(world, seed + 1, size // 4))
        yield f"corpus/{name}", _texts(texts)


def _rows(world: World, seed: int, scale: float) -> Files:
    """Every other file by name. Each has its own generator, so that one's size does not change another."""

    def draw(name: str) -> random.Random:
        return random.Random(f"{name} {seed}")

    def some(count: int) -> int:
        return max(8, round(count * scale))

    yield "sft/train", dialogues.sft_dialogues(world, some(3000), TRAIN, draw("sft train"))
    yield "sft/val", dialogues.sft_dialogues(world, some(200), HELD_OUT, draw("sft val"))
    for name, make, train, val in (
        ("helpful", pairs.helpful_pairs, 6000, 1000),
        ("safety", pairs.safety_pairs, 1200, 300),
    ):
        yield f"preferences/{name}_train", make(world, some(train), TRAIN, draw(f"{name} train"))
        yield f"preferences/{name}_val", make(world, some(val), HELD_OUT, draw(f"{name} val"))
    for name, count, splits in (("train", 1200, TRAIN), ("val", 240, HELD_OUT)):
        yield (
            f"prompts/{name}",
            dialogues.prompt_rows(world, some(count), name, splits, draw(f"prompts {name}")),
        )
    yield "gatt/constraints", CONSTRAINTS
    yield "gatt/dialogues", dialogues.gatt_dialogues(world, some(600), draw("gatt"))
    yield "gatt/eval", dialogues.gatt_cases(world, some(64), draw("gatt eval"))
    yield "refusals/train", refusals.labelled_rows(world, some(1200), "train", draw("refusals train"))
    yield "refusals/val", refusals.labelled_rows(world, some(300), "phrase", draw("refusals val"))
    yield "refusals/borderline", refusals.borderline_rows(world, some(210), draw("borderline"))
    # 9 to 1, as the paper's 0.9M and 0.1M samples
    yield "safety_scaling/helpful", refusals.helpfulness_data(world, some(2700), draw("scaling helpful"))
    yield "safety_scaling/safety", refusals.safety_data(world, some(300), draw("scaling safety"))


def _texts(documents: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    return ({"text": text} for text in documents)
