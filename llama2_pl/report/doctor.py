"""The report's section on what the PPO doctor found (docs/doctor.md)."""

from __future__ import annotations

import json
from pathlib import Path

from llama2_pl.evaluation.curves import Curve
from llama2_pl.report import figures, page

GAPS = {"goodhart_gold": "over the gold score", "goodhart_general": "over the general reward model"}
HEALTH = {
    "eos_rate": "answers that end",
    "entropy_share": "entropy, of the start's",
    "branch_unsafe": "scored as unsafe",
}


def read_doctor(folder: Path) -> list[dict]:
    """The lines of doctor.jsonl by iteration; a resumed run's win, and what a kill left half written is no line."""
    path = folder / "doctor.jsonl"
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["iteration"]] = row
    return [rows[number] for number in sorted(rows)]


def doctor(folder: Path, of: str) -> str:
    """A table of findings, the Goodhart gap and the run's health by iteration; `of` what, for the title."""
    rows = read_doctor(folder)
    if not rows:
        return ""
    named: dict[str, list[tuple[int, dict]]] = {}
    for row in rows:
        for finding in row["findings"]:
            named.setdefault(finding["name"], []).append((row["iteration"], finding))
    lines = [
        [name, seen[0][1]["severity"], len(seen), seen[0][0], seen[-1][1]["words"]]
        for name, seen in named.items()
    ]
    head = ["finding", "severity", "iterations", "first", "in words"]
    table = page.table(head, lines) if lines else ""
    charts = [
        page.figure(figures.curves(found, x_label="iteration", y_label=y_label), caption)
        for keys, y_label, caption in (
            (
                GAPS,
                "standard deviations",
                "Goodhart gap: how much more the reward rose than the judge's score.",
            ),
            (HEALTH, "share", "Health of the answers by iteration."),
        )
        if (found := _curves(rows, keys))
    ]
    lead = f"{len(rows)} iterations examined, {len(named)} kinds of finding" + (
        "." if named else ": all is well."
    )
    return page.section(f"PPO doctor{of}", lead, table, page.row(*charts))


def _curves(rows: list[dict], keys: dict[str, str]) -> dict[str, Curve]:
    found = {}
    for key, name in keys.items():
        points = [
            (row["iteration"], row["numbers"][key]) for row in rows if row["numbers"].get(key) is not None
        ]
        if points:
            found[name] = Curve([float(x) for x, _ in points], [y for _, y in points])
    return found
