"""The report's section on V1 to VN of `llama2-pl rlhf`: rewards, gold scores, the gap between them, the pool."""

from __future__ import annotations

from pathlib import Path

from llama2_pl.evaluation.curves import Curve, read_curve
from llama2_pl.evaluation.intervals import decimals, percents
from llama2_pl.report import figures, page
from llama2_pl.report.metrics import read_json


def versions(run: Path, results: dict) -> str:
    """Each version against the one before, and what its pool, temperature and reward models were."""
    rows = results.get("versions")
    if not rows:
        return ""
    lead = (
        "All versions on held-out prompts that nothing was chosen by, judged by the last reward models. Gap: how much "
        "more the reward rose since the start than the gold score, both in standard deviations of the start's answers. "
        "Forgetting: how far a version is below the best earlier one, the mean over kinds of tasks; noise alone makes "
        "it positive, so compare it with that of another arm and not with 0."
    )
    parts = [
        _table(results, rows),
        page.row(*_score_charts(rows), *_accuracy_charts(run, rows)),
        _judges(run, rows),
    ]
    return page.section("Versions", lead, *parts, _lineage(rows), *_sweep(rows))


def _table(results: dict, rows: list[dict]) -> str:
    head = [
        "version",
        "temperature",
        "reward",
        "gold score",
        "gap",
        "forgetting",
        "preferred by reward",
        "by gold",
        "checkpoint",
    ]
    lines = []
    for before, row in zip([None, *rows], rows, strict=False):
        pair = f"{row['version']} vs {before['version']}" if before else ""
        wins = [results.get(key, {}).get(pair) for key in ("judged_win_rate", "win_rate")]
        shares = [won and percents(won) for won in wins]
        scores = [row[key] and decimals(row[key]) for key in ("reward", "gold", "gap")]
        sha = (row["choice"] or {}).get("sha256")
        chosen = Path(row["choice"]["chosen"]).name if row["choice"] else "start"
        mark = chosen if sha is None else f"{chosen}, {sha[:12]}"
        lines.append([row["version"], row["temperature"], *scores, row["forgetting"], *shares, mark])
    return page.table(head, lines)


def _score_charts(rows: list[dict]) -> list[str]:
    charts = []
    for key, label, caption, line in (
        ("gold", "gold score", "Gold score by version, 95 % intervals.", None),
        ("reward", "mean reward", "Mean reward by version: it should move right (as Fig. 20).", None),
        ("gap", "standard deviations", "Goodhart gap: above 0 the reward rose more than the quality.", 0.0),
    ):
        named = {row["version"]: row[key] for row in rows if row[key]}
        if named:
            charts.append(page.figure(figures.intervals(named, x_label=label, line=line), caption))
    return charts


def _accuracy_charts(run: Path, rows: list[dict]) -> list[str]:
    """Accuracy of each version's reward models on one held-out set (as Fig. 6, which has batches of ratings)."""
    named = {}
    for kind in ("helpfulness", "safety"):
        points = []
        for number, row in enumerate(rows):
            curve = read_curve(run / row["version"] / f"reward_{kind}", "val/accuracy")
            points += [(float(number), curve.y[-1])] if curve.y else []
        if points:
            named[kind] = Curve([x for x, _ in points], [y for _, y in points])
    if not named:
        return []
    chart = figures.curves(named, x_label="batches of ratings", y_label="accuracy", markers=tuple(named))
    return [page.figure(chart, "Reward models on the same held-out pairs, by version (as Fig. 6).")]


def _judges(run: Path, rows: list[dict]) -> str:
    """What each batch of ratings taught the reward models (§3.2.1), on pairs of the batch that were held out."""
    head = [
        "version",
        "reward model",
        "held-out pairs",
        "its batch, before",
        "its batch, after",
        "pairs of the batch",
    ]
    lines = []
    for row in rows:
        found = read_json(run / row["version"] / "judges.json")
        batch = found.get("batch", {})
        for name, mine in found.get("reward_accuracy", {}).items():
            old, new = (batch.get(when, {}).get(name, {}) for when in ("before", "after"))
            shares = (mine["overall"], old.get("overall"), new.get("overall"))
            lines.append([row["version"], name, *shares, new.get("pairs")])
    return page.table(head, lines) if lines else ""


def _lineage(rows: list[dict]) -> str:
    head = ["fine-tuned", "pool", "answers of", "sampled from", "at T", "in the pool", "taken", "mean reward"]
    lines = [
        [
            row["version"],
            row["pool"]["take"],
            f"v{part['version']}",
            part["sampler"][:12],
            ", ".join(f"{t:g}" for t in part["temperatures"]),
            part["entries"],
            part["taken"],
            part["score"],
        ]
        for row in rows
        if row["pool"]
        for part in row["pool"]["versions"]
    ]
    return page.table(head, lines) if lines else ""


def _sweep(rows: list[dict]) -> list[str]:
    swept = [row for row in rows if row["sweep"]]
    if not swept:
        return []
    last = swept[-1]
    caption = f"Max and median reward among N samples of the policy that {last['version']} sampled (as Figs. 7 and 8)."
    return [page.row(page.figure(figures.reward_against_n(last["sweep"]), caption))]
