"""The report's sections on the reward models: how good they are, what they choose, what more data and size give."""

from __future__ import annotations

from pathlib import Path

from llama2_pl.evaluation.intervals import Interval, wilson
from llama2_pl.report import figures, page
from llama2_pl.report.metrics import read_json

HEAD = [*figures.RATINGS, "all", "95 % interval", "pairs"]


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


def rejection_sampling(results: dict) -> str:
    """What the best of N samples is worth, and how much the samples differ, by temperature."""
    best = results.get("best_of_n")
    if not best:
        return ""
    charts = [
        page.figure(
            figures.reward_against_n(best["by_temperature"], what="reward"),
            "Max and median reward among N samples (as Figs. 7 and 8).",
        )
    ]
    if best.get("diversity"):
        measures = {"Self-BLEU": "self_bleu", "different word pairs": "distinct_2"}
        named = {
            name: {temperature: row[key] for temperature, row in best["diversity"].items()}
            for name, key in measures.items()
        }
        chart = figures.bands(named, x_label="temperature", y_label="share", whole=True)
        caption = "How alike the samples of a prompt are, 95 % intervals: Self-BLEU (a part of Fig. 21), distinct-2."
        charts.append(page.figure(chart, caption))
    if best.get("score_by_quality"):
        chart = figures.bands(
            {"reward": best["score_by_quality"]}, x_label="gold score, in seven points", y_label="reward"
        )
        charts.append(
            page.figure(chart, "Mean reward of samples by their quality, 95 % intervals (as Fig. 29).")
        )
    gold = best.get("gold")
    note = ""
    if gold:
        best_score, median = f"{gold['best']:.2f}", f"{gold['median']:.2f}"
        note = f" The answer picked among {gold['n']} has gold score {best_score}; the median sample has {median}."
    if raters := best.get("annotators"):
        note += (
            f" Two simulated annotators rate {raters['pairs']} pairs of samples with Gwet's AC2 "
            f"{raters['two_annotators']:.2f}; one and the oracle with {raters['annotator_and_oracle']:.2f}."
        )
    return page.section(
        "Rejection sampling",
        "The gain that fine-tuning on the best of N samples can bring." + note,
        page.row(*charts),
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


def overall(row: dict) -> Interval:
    """Accuracy on all pairs with its interval, of a row of `reward_accuracy`."""
    return wilson((row["overall"] or 0.0) * row["pairs"], row["pairs"])


def _cells(row: dict) -> list[object]:
    found = overall(row)
    interval = f"[{found['low']:.3f}, {found['high']:.3f}]" if row["pairs"] else None
    by_rating = (row["by_rating"].get(rating) for rating in figures.RATINGS)
    return [*by_rating, row["overall"], interval, row["pairs"]]


def _charts(accuracy: dict[str, dict]) -> list[str]:
    charts = [
        page.figure(
            figures.calibration(row["calibration"]),
            f"Calibration of the {name} model on held-out pairs; pairs per point beside it.",
        )
        for name, row in accuracy.items()
        if row.get("calibration")
    ]
    charts += [
        page.figure(
            figures.intervals(row["gap_by_rating"], x_label="score of chosen minus rejected", line=0.0),
            f"How far apart the {name} model scores the two answers, by rating, 95 % intervals.",
        )
        for name, row in accuracy.items()
        if row.get("gap_by_rating")
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
