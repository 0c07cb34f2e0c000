"""The report's sections on the reward models: how good they are, and what more data and larger models give."""

from __future__ import annotations

from pathlib import Path

from llama2_pl.report import figures, page
from llama2_pl.report.metrics import read_json

HEAD = [*figures.RATINGS, "all", "pairs"]


def reward_models(results: dict) -> str:
    """Accuracy by rating and source, calibration and scores on held-out pairs."""
    accuracy = results.get("reward_accuracy")
    if not accuracy:
        return ""
    own = [[name, *_cells(row)] for name, row in accuracy.items()]
    crossed = [
        [name, source, *_cells(row)]
        for name, by_source in results.get("reward_accuracy_by_source", {}).items()
        for source, row in by_source.items()
    ]
    recall = results.get("unsafe_recall")
    note = (
        f" The safety model finds {recall['mean']:.1%} of the unsafe answers at score 0.5." if recall else ""
    )
    lead = (
        "Accuracy on held-out pairs by the annotator's rating (as Table 8): it should fall from left to right."
        + note
    )
    return page.section(
        "Reward models",
        lead,
        page.table(["reward model", *HEAD], own),
        page.row(*_charts(accuracy)),
        page.table(["reward model", "source of the pairs", *HEAD], crossed) if crossed else "",
    )


def scaling(run: Path) -> str:
    """Accuracy against the batch number, a line per model size (`llama2-pl reward-scaling`)."""
    study = read_json(run / "scaling.json")
    if not study:
        return ""
    charts = [
        page.figure(
            figures.bands(named, x_label="weekly batch", y_label="accuracy"),
            f"Accuracy of the {study['kind']} model on {title}, 95 % intervals.",
        )
        for key, title in (
            ("overall", "all held-out pairs"),
            ("significantly better", "those rated significantly better"),
        )
        if (named := _lines(study["cells"], key))
    ]
    lead = "Reward models trained on all batches up to each number, by the size of the model (as Fig. 6)."
    return page.section("Scaling of the reward model", lead, page.row(*charts))


def _cells(row: dict) -> list[object]:
    return [*(row["by_rating"].get(rating) for rating in figures.RATINGS), row["overall"], row["pairs"]]


def _charts(accuracy: dict[str, dict]) -> list[str]:
    charts = [
        page.figure(
            figures.calibration(row["calibration"]),
            f"Calibration of the {name} model on held-out pairs; pairs per point beside it.",
        )
        for name, row in accuracy.items()
        if row.get("calibration")
    ]
    named = {name: row["histograms"]["sigmoid"] for name, row in accuracy.items() if row.get("histograms")}
    if named:
        chart = figures.histogram(named, x_label="score")
        charts.append(page.figure(chart, "Scores of the answers of held-out pairs (as Fig. 27)."))
    return charts


def _lines(cells: list[dict], key: str) -> dict[str, dict[str, dict]]:
    """Intervals by batch number, by size, of the cells that have this accuracy."""
    named: dict[str, dict[str, dict]] = {}
    for cell in cells:
        if key in cell["accuracy"]:
            named.setdefault(cell["size"], {})[str(cell["batch"])] = cell["accuracy"][key]
    return named
