"""Preferences on the newest models: two variants answer, a simulated annotator rates (Llama 2 §3.2.1)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.default.oracle import NOISE, rate
from llama2_pl.data.readers import PromptRow, read_prompts, write_jsonl
from llama2_pl.data.readers.dialogues import messages_to_json
from llama2_pl.evaluation.answers import answer
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.chat import Dialog
from llama2_pl.text.tags import strip_control_tags
from llama2_pl.text.tokenizer import Tokenizer


def collect_preferences(
    policies: list[str],
    tokenizer: str,
    prompts: str,
    out: str,
    temperatures: list[float] | None = None,
    max_new_tokens: int = 64,
    rounds: int = 1,
    noise: float = NOISE,
    val_share: float = 0.1,
    limit: int | None = None,
    batch: int = 1,
    annotator: str = "oracle",
    seed: int = 0,
    hardware: Hardware = HARDWARE,
) -> None:
    """Write out/helpful_{train,val}.jsonl and out/safety_{train,val}.jsonl with rated pairs of on-policy answers.

    "Two responses sampled from two different model variants, varying the temperature" (Llama 2 §3.2.1); the
    annotator here is the oracle of the embedded data with noise on its utility.

    Args:
        policies: checkpoints of the model variants; a pair takes two of them in turn (one may be given alone).
        tokenizer: tokenizer.model of the policies.
        prompts: file of prompts with a `task` for the oracle.
        out: folder of the four files.
        temperatures: a pair takes two of them, from round to round and batch to batch the next two; 0.7 and 1.1 by
            default (our choice: one careful, one varied). Which model answers at which is drawn for each prompt (our
            choice: otherwise a preference for a model and one for its temperature could not be told apart).
        max_new_tokens: longest answer.
        rounds: pairs per prompt.
        noise: standard deviation of the annotator's error, in units of utility.
        val_share: of the prompts, the last ones, held out. Our choice: the paper held out 1000 pairs of each batch.
        limit: use only the first prompts.
        batch: number of the weekly batch, from 1, written in every row.
        annotator: name of the annotator, written in every row.
        seed: of sampling and of the annotator's noise.
        hardware: device and precision.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}: give the number of the weekly batch, from 1")
    rows = list(itertools.islice(read_prompts(prompts, tasks="required"), limit))
    how = (temperatures or [0.7, 1.1], max_new_tokens, range(batch, batch + rounds), seed)
    sides = _sample_sides(policies, Tokenizer(tokenizer), rows, hardware, *how)
    judgement, held_out = random.Random(seed), len(rows) - round(val_share * len(rows))
    labels = {"batch": batch, "annotator": annotator}
    files: dict[str, list[dict]] = {
        f"{kind}_{split}": [] for kind in ("helpful", "safety") for split in ("train", "val")
    }
    for one, two in sides:
        for index, (row, a, b) in enumerate(zip(rows, one.answers, two.answers, strict=True)):
            pair = row.task and rate(row.task, a, b, judgement, noise)
            if not pair:  # the same answer twice, or the bin that the paper excludes
                continue
            kind, split = "safety" if row.is_safety else "helpful", "val" if index >= held_out else "train"
            record = {"prompt": messages_to_json(row.prompt), **pair, "is_safety": row.is_safety}
            made = _made((one, two) if pair["chosen"] == a else (two, one), index)
            files[f"{kind}_{split}"].append(record | {"source": f"on_policy_{kind}", **made, **labels})
    for name, pairs in files.items():
        write_jsonl(Path(out) / f"{name}.jsonl", pairs)


class _Side(NamedTuple):
    """One answer to every prompt, and what made them."""

    model: str
    temperatures: list[float]
    answers: list[str]


def _made(sides: tuple[_Side, _Side], index: int) -> dict[str, str | float]:
    """What made the chosen and the rejected answer to a prompt."""
    made: dict[str, str | float] = {}
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        made |= {f"{name}_model": side.model, f"{name}_temperature": side.temperatures[index]}
    return made


def _sample_sides(
    policies: Sequence[str],
    tokenizer: Tokenizer,
    rows: Sequence[PromptRow],
    hardware: Hardware,
    temperatures: Sequence[float],
    max_new_tokens: int,
    turns: range,
    seed: int,
) -> Iterator[tuple[_Side, _Side]]:
    """For each round the answers of side A and of side B, each side with its own model and the other temperature."""
    models = [hardware.load(path, tokenizer) for path in policies]
    dialogs = [row.prompt for row in rows]
    for turn in turns:
        two = [temperatures[(turn + n) % len(temperatures)] for n in (0, 1)]
        draw = random.Random(f"temperatures {seed} {turn}")
        firsts = [draw.randrange(2) for _ in rows]  # which of the two side A has
        sides = []
        for side in (0, 1):
            number, mine = (2 * turn + side) % len(models), [two[first ^ side] for first in firsts]
            own = seed * 1000 + 4 * turn + 2 * side  # and the one after it: a seed for each temperature
            said = _said(models[number], tokenizer, dialogs, mine, max_new_tokens, own)
            sides.append(_Side(policies[number], mine, said))
        yield sides[0], sides[1]


def _said(
    model: LanguageModel,
    tokenizer: Tokenizer,
    dialogs: Sequence[Dialog],
    temperatures: Sequence[float],
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """An answer to each dialogue, at its own temperature, without control tags."""
    said = [""] * len(dialogs)
    for number, temperature in enumerate(sorted(set(temperatures))):
        mine = [index for index, own in enumerate(temperatures) if own == temperature]
        asked = [dialogs[index] for index in mine]
        how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed + number}
        for index, text in zip(mine, answer(model, tokenizer, asked, **how), strict=True):
            said[index] = strip_control_tags(text)
    return said
