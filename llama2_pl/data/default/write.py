"""Write the embedded default data set to a folder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llama2_pl.data.default import corpus, dialogues
from llama2_pl.data.default.world import build_world
from llama2_pl.data.readers.common import write_jsonl

VERSION = 1

README = """# The embedded default data

Written by `llama2-pl data default`, from nothing but a seed and the Python that runs it.

| files | what |
|---|---|
| corpus/world.jsonl | a small generated world in several styles |
| corpus/prose.jsonl, code.jsonl, docs.jsonl | Python's own help topics, standard-library source and docstrings |
| sft/train.jsonl, val.jsonl | dialogues; about 30 % of the training answers are flawed on purpose, none of the validation ones |
| preferences/{helpful,safety}_{train,val}.jsonl | pairs that the oracle rated, with noise |
| prompts/train.jsonl, val.jsonl | prompts with the task that the oracle judges answers by |
| gatt/{constraints,dialogues,eval}.jsonl | instructions to hold, dialogues to hold them in, conversations to test it with |

Every fifth person is held out: written about in the corpus, never asked about except in half of the validation prompts.
Pairs, prompts and dialogues of training and validation come from separate draws.
"""


def write_default_data(out: str, seed: int = 0, scale: float = 1.0) -> None:
    """Write the whole data set below `out`; does nothing where the same version and seed are already there.

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
    for name, rows in _files(seed, scale).items():
        count = write_jsonl(folder / f"{name}.jsonl", rows)
        print(f"{folder / name}.jsonl: {count} rows")
    (folder / "gatt" / "constraints.json").write_text(
        json.dumps(dialogues.CONSTRAINTS, indent=1), encoding="utf-8"
    )
    (folder / "README.md").write_text(README, encoding="utf-8")
    marker.write_text(json.dumps(stamp), encoding="utf-8")


def _files(seed: int, scale: float) -> dict[str, Iterable[Mapping[str, Any]]]:
    """Every jsonl of the set by name. Each has its own generator, so that one's size does not change another."""
    world = build_world(seed)

    def draw(name: str) -> random.Random:
        return random.Random(f"{name} {seed}")

    def some(count: int) -> int:
        return max(8, round(count * scale))

    return {
        "corpus/world": _texts(corpus.world_documents(world, seed, some(12_000))),
        "corpus/prose": _texts(corpus.prose_documents()),
        "corpus/code": _texts(corpus.code_documents()),
        "corpus/docs": _texts(corpus.docstring_documents()),
        "sft/train": dialogues.sft_dialogues(world, draw("sft train"), some(3000)),
        "sft/val": dialogues.sft_dialogues(world, draw("sft val"), some(200), clean=True),
        "preferences/helpful_train": dialogues.helpful_pairs(world, draw("helpful train"), some(3000)),
        "preferences/helpful_val": dialogues.helpful_pairs(world, draw("helpful val"), some(500)),
        "preferences/safety_train": dialogues.safety_pairs(world, draw("safety train"), some(1200)),
        "preferences/safety_val": dialogues.safety_pairs(world, draw("safety val"), some(300)),
        "prompts/train": dialogues.prompt_rows(
            world, draw("prompts train"), some(1200), "train", held_out=False
        ),
        "prompts/val": dialogues.prompt_rows(world, draw("prompts val"), some(240), "val", held_out=True),
        "gatt/constraints": dialogues.CONSTRAINTS,
        "gatt/dialogues": dialogues.gatt_dialogues(world, draw("gatt"), some(600)),
        "gatt/eval": dialogues.gatt_cases(world, draw("gatt eval"), some(64)),
    }


def _texts(documents: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    return ({"text": text} for text in documents)
