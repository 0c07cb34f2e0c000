"""What a stage counted: tokens from its metrics or answers, energy from its carbon ledger."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

TOKENS = ("train/tokens", "ppo/tokens")  # running totals


def spent(folder: Path) -> dict[str, Any]:
    """`tokens` and `energy` of the stage whose folder this is; None where nobody counted, never 0.

    Tokens are those trained on, or sampled, for the result: steps lost by a kill and taken again count once. Energy is
    that of every attempt, also of those that were killed: {"hours", "kwh", "co2e_kg", "source"} as `CarbonFootprint`
    wrote them.
    """
    return {"tokens": _trained(folder) or _sampled(folder), "energy": _energy(folder)}


def _trained(folder: Path) -> int | None:
    """The highest running total in any metrics file: a resumed run counts on from its checkpoint."""
    totals = []
    for path in folder.glob("metrics/**/metrics.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            totals += [float(row[key]) for row in csv.DictReader(file) for key in TOKENS if row.get(key)]
    return round(max(totals)) if totals else None


def _sampled(folder: Path) -> int | None:
    """Tokens of the answers that rejection sampling wrote."""
    paths = sorted(folder.glob("**/batch-*.json"))
    if not paths:
        return None
    rows = (row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))["rows"])
    return sum(len(sample["ids"]) for row in rows for sample in row["samples"])


def _energy(folder: Path) -> dict[str, Any] | None:
    path = folder / "carbon.json"
    if not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["stages"].values()
    kept = ("hours", "kwh", "co2e_kg")
    sums = {key: _sum([row[key] for row in rows]) for key in kept}
    return {**sums, "source": ", ".join(sorted({row["source"] for row in rows}))}


def _sum(values: list[float | None]) -> float | None:
    """One unknown part makes the sum unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
