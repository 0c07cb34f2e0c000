"""`make chaos`: counts of kills, flipped bits, cut files and crafted files, in benchmarks/results/chaos.{json,md}."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos import damage, kills, processes, tiny
from benchmarks.chaos.compare import difference

RESULTS = tiny.ROOT / "benchmarks" / "results"
KILLS = {"pretrain": 50, "sft": 50, "reward": 40, "predict": 50, "ppo": 50, "ddp": 40, "sharded": 40}
CHECKPOINTS = ("pretrain/last", "sft/last", "reward/last", "ppo/last", "ppo/best", "ddp/last", "sharded/last")
ANSWERS = "predict/batch-*"
FLIPS, CUTS = 40, 10
"""Of each checkpoint, over its file, its hash, and the same of the one before."""
SHORT = dict.fromkeys(KILLS, 1), 8, 4
"""Kills, flips and cuts of the version that runs with the tests."""


def references(names: list[str], folder: Path, twice: bool) -> dict[str, kills.Reference]:
    """Each stage left alone; twice, for one that does not repeat itself could not be compared."""
    tiny.write_data(folder / "runs/data")
    tiny.write_configs(folder)
    if processes.wait(processes.command(tiny.tokenizer_command(), folder, folder / "log-0"), 60) != 0:
        raise RuntimeError(f"the tokenizer could not be trained, see {folder}/log-0")
    found = {}
    for name in names:
        stage = tiny.stages()[name]
        found[name] = kills.left_alone(stage, folder)
        if not twice:
            continue
        again = folder.with_name("again")
        kills.prepare(folder, again, stage)
        kills.left_alone(stage, again)
        one, two = folder / stage.out, again / stage.out
        if text := processes.ask(
            lambda one=one, two=two: difference(one, two), folder, folder / "log-compare"
        ):
            raise RuntimeError(f"{name}: two runs that nobody killed differ: {text}")
    return found


def kill_stage(
    stage: tiny.Stage, reference: kills.Reference, wanted: int, seed: int, folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Attempts until so many kills are made; counts and failures."""
    outcomes: list[kills.Outcome] = []
    failures = []
    while sum(len(outcome.kills) for outcome in outcomes) < wanted and len(outcomes) < 2 * wanted:
        number = len(outcomes)
        outcome = kills.attempt(
            stage, reference, folder / "trial", random.Random(f"{seed} {stage.name} {number}")
        )
        outcomes.append(outcome)
        if outcome.kind:
            kept = folder / f"failed-{stage.name}-{number}"
            (folder / "trial").rename(kept)
            failures.append(
                {
                    "stage": stage.name,
                    "attempt": number,
                    "seed": seed,
                    "kind": outcome.kind,
                    "problem": outcome.problem,
                    "kills": [kill._asdict() for kill in outcome.kills],
                    "folder": str(kept),
                }
            )
    return kills.as_row(outcomes), failures


def environment() -> dict[str, object]:
    import lightning
    import torch

    asked = ["git", "-C", str(tiny.ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores used",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "commit": commit,
    }


def run(
    wanted: dict[str, int], flips: int, cuts: int, seed: int, folder: Path, short: bool = False
) -> dict[str, Any]:
    """Everything; the content of chaos.json. Short: the crafted files are left to tests/security."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "whole").mkdir()
    result: dict[str, Any] = {"environment": environment(), "seed": seed, "kills": {}, "damage": {}}
    failures: list[Any] = []
    found = references(list(wanted), folder / "whole", twice=not short)
    for name, number in wanted.items():
        row, bad = kill_stage(tiny.stages()[name], found[name], number, seed, folder)
        result["kills"][name] = row
        failures += bad
        print(f"{name}: {row}", flush=True)
    ways = {"flipped": (damage.flip, flips), "cut": (damage.cut, cuts)}
    for name in (*CHECKPOINTS, ANSWERS):
        if name.split("/")[0] in wanted:
            result["damage"][name], bad = _damage(name, folder, ways, seed)
            failures += bad
            print(f"{name}: {result['damage'][name]}", flush=True)
    if not short:
        from benchmarks.chaos.crafted import open_all

        result["crafted"], bad = open_all(folder / "crafted")
        failures += bad
        print(result["crafted"], flush=True)
    return {**result, "failures": failures, "minutes": round((time.monotonic() - started) / 60, 1)}


def _damage(
    name: str, folder: Path, ways: dict[str, tuple[damage.Damage, int]], seed: int
) -> tuple[dict[str, Any], list[str]]:
    """In a child, for reading shards starts threads."""
    chance = random.Random(f"{seed} {name}")

    def question() -> str:
        if name == ANSWERS:
            found = damage.damage_answers(folder / "whole/runs/predict", folder / "damaged", ways, chance)
        else:
            path = folder / f"whole/runs/{name}.ckpt"
            found = damage.damage_all(path, folder / "damaged", ways, chance)
        return json.dumps(found)

    rows, problems = json.loads(processes.ask(question, folder, folder / "log-damage"))
    return rows, problems


def table(result: dict[str, Any]) -> str:
    """chaos.md."""
    env = result["environment"]
    lines = [
        f"`make chaos`, {result['minutes']} minutes; {env['machine']}, torch {env['torch']}, Lightning "
        f"{env['lightning']}, commit {env['commit'][:10]}, seed {result['seed']}. "
        f"{len(result['failures'])} failures. What each column means: [docs/faults.md](../../docs/faults.md).",
    ]
    lines += _rows("killed", result["kills"])
    damaged = {f"{name}, {way}": row for name, ways in result["damage"].items() for way, row in ways.items()}
    lines += _rows("damaged checkpoint", damaged) + _rows("crafted input", result.get("crafted", {}))
    return "\n".join(lines) + "\n"


def _rows(head: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """A table with its sums, an empty line before it; nothing where there are no rows."""
    if not rows:
        return []
    columns = list(next(iter(rows.values())))
    total = {column: sum(row[column] for row in rows.values()) for column in columns}
    lines = ["", f"| {head} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, row in [*rows.items(), ("all", total)]:
        lines.append(f"| {name} | {' | '.join(str(row[column]) for column in columns)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", choices=KILLS, help="one stage, with the runs before it; no result is written"
    )
    parser.add_argument("--short", action="store_true", help="as with the tests; no result is written")
    parser.add_argument("--out", type=Path, help="keep the runs in this new folder")
    options = parser.parse_args()
    wanted, flips, cuts = SHORT if options.short else (KILLS, FLIPS, CUTS)
    if options.only:
        names = list(KILLS)[: list(KILLS).index(options.only) + 1]
        wanted = {name: wanted[name] if name == options.only else 0 for name in names}
    processes.warm_up()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = options.out.resolve() if options.out else Path(scratch)
        result = run(wanted, flips, cuts, options.seed, folder, options.short)
    if not options.only and not options.short:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "chaos.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "chaos.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    for failure in result["failures"]:
        print(failure)
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
