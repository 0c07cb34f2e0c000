"""Ghost Attention measured: with and without it, by turn (Llama 2 table 30) and in what is looked at (fig. 10)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.readers import read_dialogues, write_jsonl
from llama2_pl.data.readers.common import Raw, Reading, mapping, parse_rows, sequence, string
from llama2_pl.data.readers.files import json_rows
from llama2_pl.evaluation.attention_map import in_bins, look_at_system
from llama2_pl.evaluation.gatt import Case, persistence
from llama2_pl.evaluation.intervals import Interval, bootstrap, wilson
from llama2_pl.files import write_json
from llama2_pl.model.heads import LanguageModel
from llama2_pl.rlhf.recipe import execute, recipe
from llama2_pl.rlhf.study import over_seeds
from llama2_pl.text.chat import Dialog, system_tokens
from llama2_pl.text.constraints import Constraint, constraint_kept, read_constraints
from llama2_pl.text.tokenizer import Tokenizer

TABLE_30 = (2, 4, 6, 20)
ATTRIBUTES = {"hobby": "What is your hobby?", "figure": "Who are you?"}
LOOKED_AT = 16  # dialogues whose attention is measured
MAP_TURNS = 6  # of the first one, that the map shows; more would make its squares too coarse
BINS = 48  # of the map, along each axis


def ghost_attention(
    models: Mapping[str, str] | None,
    cases: str | None,
    turns: Sequence[int],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    limit: int | None = None,
    hardware: Hardware = HARDWARE,
) -> dict[str, Any]:
    """Share of answers that keep an instruction given once, by turn, and the attention to it.

    The attention is that of every model on the dialogues which the last one held, so that all read the same text.
    """
    if cases is None or not models:
        return {}
    held = read_cases(cases)[:limit]
    networks = {name: hardware.load(path, tokenizer) for name, path in models.items()}
    found = {
        name: persistence(model, tokenizer, held, turns=turns, max_new_tokens=max_new_tokens)
        for name, model in networks.items()
    }
    dialogs = found[list(models)[-1]].dialogs[:LOOKED_AT]
    return {
        "gatt": {name: row.by_turn for name, row in found.items()},
        "gatt_attention": attention(networks, dialogs, tokenizer),
    }


def attention(
    networks: Mapping[str, LanguageModel], dialogs: Sequence[Dialog], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Fig. 10: each model's map of the first dialogue, and the attention to the system message by turn of all."""
    start = Dialog(dialogs[0].messages[: 1 + 2 * MAP_TURNS])
    system = system_tokens(start, tokenizer, tags="neutralise")
    maps, by_turn, size = {}, {}, 1
    for name, model in networks.items():
        strongest = look_at_system(model, tokenizer, start).strongest
        size = math.ceil(len(strongest) / BINS)
        maps[name] = in_bins(strongest, size)
        rows = [look_at_system(model, tokenizer, dialog).by_turn for dialog in dialogs]
        by_turn[name] = {str(n): bootstrap(turn) for n, turn in enumerate(zip(*rows, strict=True), start=1)}
    return {
        "dialog": [message._asdict() for message in start.messages],
        "bin": size,
        "system": [system.start, system.stop],
        "maps": maps,
        "by_turn": by_turn,
    }


def measure_ghost_attention(
    models: dict[str, str],
    tokenizer: str,
    cases: str,
    out: str,
    turns: Sequence[int] = TABLE_30,
    limit: int | None = None,
    max_new_tokens: int = 64,
    hardware: Hardware = HARDWARE,
) -> None:
    """Ask each model turn after turn whether it keeps an instruction, and write what `llama2-pl report` draws.

    Args:
        models: checkpoints by name, those without Ghost Attention first.
        tokenizer: tokenizer.model of all of them.
        cases: conversations with an instruction and its check, such as `llama2-pl gatt cases` writes.
        out: the result file.
        turns: turns at which the instruction is checked; by default those of Llama 2 table 30.
        limit: use only the first cases.
        max_new_tokens: longest answer.
        hardware: device and precision.
    """
    found = ghost_attention(models, cases, turns, Tokenizer(tokenizer), max_new_tokens, limit, hardware)
    write_json(Path(out), found)
    print("\n".join(kept_by_turn(found["gatt"])))


def write_attribute_cases(
    constraints: str,
    dialogues: str,
    out: str,
    turns: Sequence[int] = TABLE_30,
    count: int = 100,
    seed: int = 0,
) -> None:
    """Write conversations that ask, at each of the turns, for the attribute that the instruction gave.

    Llama 2 A.3.5, table 30: public figures and hobbies alone. Our choice: how it is asked, and what the other turns
    say, which is user messages of the dialogues.

    Args:
        constraints: file with constraints of the kinds "hobby" and "figure", as GhostAttention leaves it beside its
            dialogues.
        dialogues: file of dialogues whose user messages fill the other turns.
        out: the cases, for `llama2-pl gatt` with the same turns.
        turns: at which the attribute is asked for.
        count: of conversations.
        seed: of the choice of constraints and messages.
    """
    named = [row for row in read_constraints(constraints) if row.kind in ATTRIBUTES]
    said = [m.content for dialog in read_dialogues(dialogues) for m in dialog.messages if m.role == "user"]
    if not named or not said:
        missing = (
            f"{dialogues}: no user message"
            if named
            else f"{constraints}: no constraint of the kinds hobby, figure"
        )
        raise ValueError(f"{missing}; give another file")
    rng, rows = random.Random(seed), []
    for _ in range(count):
        constraint = rng.choice(named)
        _, _, attribute = constraint.short.partition(": ")
        asked = [
            ATTRIBUTES[constraint.kind] if turn in turns else rng.choice(said)
            for turn in range(1, max(turns) + 1)
        ]
        check = f"contains:{attribute.removesuffix('.')}"
        rows.append(
            {"instruction": constraint.text, "user_turns": asked, "check": check, "short": constraint.short}
        )
    write_jsonl(Path(out), rows)


def gatt_study(
    out: str,
    data: str,
    plan: str = "gatt",
    seeds: Sequence[int] = (1, 2, 3),
    extra: list[str] | None = None,
    hardware: Hardware = HARDWARE,
) -> None:
    """Run a recipe with each seed, and write out/results.json and out/report.html over the seeds.

    A second call skips what is done. The attention, map and curve, is that of the first seed.

    Args:
        out: the study's folder; runs lie in out/seed<n>.
        data: what the recipe starts from: for the packaged one a run of `llama2-pl demo`.
        plan: the recipe, whose results.json holds what `llama2-pl gatt` writes.
        seeds: of training and of the sampled dialogues.
        extra: options added to every `fit` and `predict` command, for example --trainer.accelerator=gpu.
        hardware: device and precision of the other commands.
    """
    if len(seeds) < 2:
        raise ValueError(f"seeds is {list(seeds)}; an interval over runs needs two at least")
    runs = []
    for seed in seeds:
        recipe(plan, str(Path(out) / f"seed{seed}"), data, extra, seed=seed, hardware=hardware)
        runs.append(json.loads((Path(out) / f"seed{seed}" / "results.json").read_text(encoding="utf-8")))
    pooled = {
        name: {turn: pooled_share([run["gatt"][name][turn] for run in runs]) for turn in by_turn}
        for name, by_turn in runs[0]["gatt"].items()
    }
    write_json(Path(out) / "results.json", {"gatt": pooled, "gatt_attention": runs[0]["gatt_attention"]})
    print("\n".join(kept_by_turn(pooled)))
    execute(["report", f"--run={out}"])


def pooled_share(found: Sequence[Interval]) -> Interval:
    """A share over seeds that were measured on the same conversations; `count` is that of the seeds.

    Our choice: the ends that lie further out, of Student's t over the seeds and of Wilson's interval over the
    conversations. The first alone would be [0, 0] where every seed found nothing, the second blind to the seeds.
    """
    seeds = over_seeds([row["mean"] for row in found])
    mean, low, high = (seeds[key] for key in ("mean", "low", "high"))
    assert mean is not None and low is not None and high is not None
    cases = wilson(mean * found[0]["count"], found[0]["count"])
    return Interval(
        mean=mean,
        low=max(min(low, cases["low"]), 0.0),
        high=min(max(high, cases["high"]), 1.0),
        count=len(found),
    )


def kept_by_turn(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A line per model for the terminal."""
    return [
        f"instruction kept, {name}: "
        + ", ".join(f"turn {turn} {row['mean']:.0%}" for turn, row in by_turn.items())
        for name, by_turn in found.items()
    ]


def read_cases(path: str) -> list[Case]:
    """Conversations for the persistence check: {"instruction", "user_turns", "check"} a line."""

    def parse(raw: Raw) -> list[Case]:
        row = mapping(raw.value, "the row")
        turns = tuple(string({"user_turns": turn}, "user_turns") for turn in sequence(row, "user_turns"))
        instruction, check = string(row, "instruction"), string(row, "check")
        return [Case(instruction, turns, _check(row), check.split(":")[0])]

    how = Reading(path)
    return list(parse_rows(json_rows(Path(path), how), parse, how))


def _check(row: dict) -> Callable[[str], bool]:
    constraint = Constraint(
        text=row["instruction"], short=row.get("short", row["instruction"]), check=row["check"]
    )
    return lambda text: constraint_kept(constraint, text)
