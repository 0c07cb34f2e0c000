"""The report's sections on safety data and on refusals: figures 15 and 33 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llama2_pl.evaluation.intervals import decimals, percents
from llama2_pl.report import figures, page
from llama2_pl.report.metrics import read_json

SHARE = "safety data used (%)"
LISTED = 20  # of a model's answers that a person should look at; the result file has all


def safety_data(run: Path, name: Callable[[str], str]) -> str:
    """Scores of `llama2-pl safety scores`, by share of the safety data where the models' names are numbers."""
    study = read_json(run / "safety.json")
    if not study:
        return ""
    models = study["models"]
    axes = {axis: {n: row[axis] for n, row in models.items()} for axis in ("safety", "helpfulness")}
    charts = _charts(axes, "mean score of the reward model", name)
    caption = "Mean safety score on safety prompts and helpfulness score on the others, 95 % intervals (as Fig. 15)."
    below = f"score below {study['threshold']:g}"
    spread = figures.histogram(
        {name(n): row["histogram"] for n, row in models.items()}, x_label="safety score"
    )
    tail = f"Safety scores of single answers; the left tail, {below}, is in the table (as Fig. 15, right)."
    keys = ("safety", "low_tail", "helpfulness", "gold_safety", "gold_helpfulness")
    head = ["model", "safety", below, "helpfulness", "gold score, safety", "gold score, helpfulness"]
    lines = [
        [name(n), *(decimals(row[key]) if key in row else None for key in keys)] for n, row in models.items()
    ]
    lead = "What more safety data does to both axes; helpfulness should stay where it is. Gold: the oracle's judgement."
    drawn = [page.figure(chart, caption) for chart in charts]
    return page.section(
        "Safety data", lead, page.row(*drawn, page.figure(spread, tail)), page.table(head, lines)
    )


def refusals(run: Path, name: Callable[[str], str]) -> str:
    """Rates of `llama2-pl refusals measure`, with the answers that a person should look at."""
    found = read_json(run / "refusals.json")
    if not found:
        return ""
    models = found["models"]
    sets = list(next(iter(models.values()))["refused"])
    false = {s: {n: row["refused"][s] for n, row in models.items()} for s in sets if s != "safety"}
    caption = "False refusals on helpfulness and borderline prompts, 95 % intervals (as Fig. 33)."
    drawn = [page.figure(chart, caption) for chart in _charts(false, "share refused", name)]
    head = ["model", *(f"{s} prompts refused" for s in sets)]
    lines = [[name(n), *(percents(row["refused"][s]) for s in sets)] for n, row in models.items()]
    lead = (
        "Answers that a classifier takes for refusals. Helpfulness prompts, and borderline ones, which only sound "
        "unsafe, ought to be answered; safety prompts refused."
    )
    listed = [_looked_at(name(n), row) for n, row in models.items()]
    return page.section("Refusals", lead, page.row(*drawn), page.table(head, lines), *listed)


def _charts(lines: Mapping[str, Mapping[str, dict]], label: str, name: Callable[[str], str]) -> list[str]:
    """One chart over the share where every model is named by a number, else one with a dot per model for each line."""
    named = {line: dict(by_model) for line, by_model in lines.items() if by_model}
    if not named:
        return []
    if all(_is_number(model) for by_model in named.values() for model in by_model):
        return [figures.bands(named, x_label=SHARE, y_label=label)]
    return [
        figures.intervals({name(m): row for m, row in by_model.items()}, x_label=f"{line}: {label}")
        for line, by_model in named.items()
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _looked_at(model: str, row: dict) -> str:
    parts = []
    for key, title in (
        ("false_refusals", "{m}: {n} prompts refused that ought to be answered"),
        ("safety_answered", "{m}: {n} safety prompts answered"),
    ):
        if rows := row[key]:
            talks = [
                page.talk([*((m["role"], m["content"]) for m in one["messages"]), (_who(one), one["answer"])])
                for one in rows[:LISTED]
            ]
            rest = len(rows) - len(talks)
            more = [page.note(f"and {rest} more, in refusals.json")] if rest else []
            parts.append(page.folded(title.format(m=model, n=len(rows)), *talks, *more))
    return "".join(parts)


def _who(one: dict) -> str:
    return f"answer to a {one['set']} prompt, a refusal with probability {one['probability']:.2f}"
