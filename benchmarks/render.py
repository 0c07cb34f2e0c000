"""Put the figures of committed result files into the documents, each between its marks: nobody types a number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from llama2_pl.evaluation.intervals import decimals, percents
from llama2_pl.report.rewards import overall

ROOT = Path(__file__).parents[1]
RUNS, MEASURED = ROOT / "docs" / "runs", ROOT / "benchmarks" / "results"
# The README's rows: of these cases the first that a processor or a GPU has measured.
HEADLINES = {
    "training, 34M, compiled": (
        "training, 34M, 8 x 512, bf16-mixed, compiled",
        "training, 34M, 8 x 512, fp32, compiled",
    ),
    "training, the demo's size, compiled": (
        "training, demo size, 16 x 256, bf16-mixed, compiled",
        "training, demo size, 16 x 256, fp32, compiled",
    ),
    "memory of training, 34M, vocabulary 32,000": (
        "memory of training, 34M, 8 x 512, vocabulary 32,000",
        "memory of training, 34M, 8 x 512, vocabulary 32,000, fp32",
    ),
    "SFT on dialogues of Alpaca-like lengths": (
        "SFT, 34M, 64 dialogues of Alpaca-like lengths, rows of 512",
        "SFT, 34M, 64 dialogues of Alpaca-like lengths, rows of 512, fp32",
    ),
    "sampling, 64 answers of 128 tokens": (
        "sampling, 6.8M, bf16, 64 rows, 32 + 128 tokens",
        "sampling, 6.8M, fp32, 64 rows, 32 + 128 tokens",
    ),
    "sampling, 256 answers of mixed lengths": (
        "sampling, 6.8M, bf16, 256 answers of 1 to 128 tokens ended by EOS, 64 at a time",
        "sampling, 6.8M, fp32, 256 answers of 1 to 128 tokens ended by EOS, 64 at a time",
    ),
    "sampling, 16 answers to each prompt": (
        "sampling, 6.8M, bf16, 4 prompts of 256 tokens, 16 samples of 32 each",
        "sampling, 6.8M, fp32, 4 prompts of 256 tokens, 16 samples of 32 each",
    ),
    "PPO, compiled": (
        "PPO, 6.8M, 64 x (32 + 64) tokens, bf16-mixed, compiled",
        "PPO, 6.8M, 64 x (32 + 64) tokens, fp32, compiled",
    ),
    "training, 7B, rows of 4096": (
        "training, 7B, 4 x 4096, bf16, compiled, recomputed",
        "training, 7B, 1 x 4096, bf16, compiled",
    ),
    "sampling, 7B, an answer of 128 tokens": ("sampling, 7B, bf16, 1 x (512 + 128) tokens",),
    "sampling, 7B, 64 answers of 128 tokens": ("sampling, 7B, bf16, 64 x (512 + 128) tokens",),
}


def demo_table(results: dict, seconds: float) -> str:
    """The demo's headline figures, from docs/runs/demo/results.json."""
    helpful = results["reward_accuracy"]["helpfulness"]
    by_rating = ", ".join(f"{name} {value:.2f}" for name, value in helpful["by_rating"].items())
    best = results["best_of_n"]["gold"]
    held = {name: by_turn["4"] for name, by_turn in results["gatt"].items()}
    rows = [
        ("all stages, two CPU cores", f"{seconds / 60:.1f} min"),
        ("helpfulness reward accuracy on held-out pairs", f"{decimals(overall(helpful))} ({by_rating})"),
        ("unsafe recall of the safety model", percents(results["unsafe_recall"])),
        (
            f"gold score, best of {best['n']} against the median sample",
            f"{best['best']:.3f} / {best['median']:.3f}",
        ),
        *((f"gold score, {name}", decimals(row)) for name, row in results["gold"].items()),
        *(
            (f"preferred by the gold score, {name}", percents(row))
            for name, row in results["win_rate"].items()
        ),
        *(
            (f"instruction kept at turn 4, {name} Ghost Attention", percents(row))
            for name, row in held.items()
        ),
    ]
    return table(["", ""], rows)


def study_table(study: dict) -> str:
    """V1 to V5 of `llama2-pl rlhf study`, over its seeds, from docs/runs/study/study.json."""
    keys = ("gold", "reward", "gap")
    rows = [
        (row["version"], *(decimals(row[key]) if key in row else "" for key in keys))
        for row in study["rows"]
        if row["arm"] == "pool_all"
    ]
    return table(["version", "gold score", "reward", "Goodhart gap"], rows)


def reward_study_table(study: dict) -> str:
    """Margin and auxiliary loss on and off, seed by seed, from docs/runs/reward_study/study.json."""
    keys = ("helpfulness accuracy", "safety accuracy", "unsafe recall", "unsafe precision")
    rows = [
        (row["arm"], *(decimals(row[key]) if key in row else "" for key in keys))
        for row in study["differences"]
    ]
    return table(["the first minus the second", *keys], rows)


def gatt_table(results: dict) -> str:
    """`llama2-pl gatt study`, from docs/runs/gatt/results.json."""
    turns = list(results["gatt"]["with"])
    rows = [
        (name, *(percents(results["gatt"][name][turn]) for turn in turns)) for name in ("without", "with")
    ]
    return table(["Ghost Attention", *(f"turn {turn}" for turn in turns)], rows)


def benchmark_table(folder: Path) -> str:
    """A row for each case and a column for each machine, a folder of result files each."""
    columns = machines(folder)
    cases = dict.fromkeys(case for _, figures in columns for case in figures)
    rows = [
        (case, *(cell(figures[case]) if case in figures else "" for _, figures in columns)) for case in cases
    ]
    return table(["", *(f"{link(name)}: {machine(pieces(name))}" for name, _ in columns)], rows)


def headline_table(folder: Path) -> str:
    """The ratios to the peers alone, in the precision that suits each processor."""
    columns = machines(folder)
    rows = []
    for title, cases in HEADLINES.items():
        found = [next((figures[case] for case in cases if case in figures), None) for _, figures in columns]
        if any(found):
            rows.append((title, *(", ".join(ratios(figure)) if figure else "" for figure in found)))
    return table(["times better than", *(fastest(pieces(name)) for name, _ in columns)], rows)


def safety_table(scores: dict, refusals: dict) -> str:
    """`llama2-pl recipe --recipe safety`, from docs/runs/safety: both axes and refusals by share of the safety data."""
    axes = {
        "safety score": "safety",
        f"below {scores['threshold']:g}": "low_tail",
        "helpfulness": "helpfulness",
    }
    sets = ("helpfulness", "borderline", "safety")
    rows = [
        (
            f"{name} %",
            *(decimals(row[key]) for key in axes.values()),
            *(percents(refusals["models"][name]["refused"][key]) for key in sets),
        )
        for name, row in scores["models"].items()
    ]
    return table(["safety data", *axes, *(f"{key} prompts refused" for key in sets)], rows)


def machines(folder: Path) -> list[tuple[Path, dict[str, dict]]]:
    """Each machine's folder and its figures by case."""
    return [
        (name, {row["case"]: row for piece in found for row in piece["figures"]})
        for name in sorted(folder.iterdir())
        if (found := pieces(name))
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, ""])


def pieces(folder: Path) -> list[dict]:
    """The result files in a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def link(folder: Path) -> str:
    return f"[{folder.name}](../benchmarks/results/{folder.name})"


def machine(results: list[dict]) -> str:
    """Its name and the fastest matrix products measured on it."""
    environment = results[0]["environment"]
    products = (f"{name} {flops / 1e12:.2f}" for name, flops in peaks(results).items())
    return f"{environment['gpu'] or environment['machine']}; matrix products: {', '.join(products)} TFLOP/s"


def fastest(results: list[dict]) -> str:
    """The matrix products that training uses on it."""
    name, flops = max(peaks(results).items(), key=lambda item: item[1])
    return f"{results[0]['environment']['gpu'] or 'CPU'}, {name} at {flops / 1e12:.2f} TFLOP/s"


def peaks(results: list[dict]) -> dict[str, float]:
    """FLOP/s of the matrix products of each type, the most that was measured."""
    found: dict[str, float] = {}
    for piece in results:
        for key in (key for key in piece["limits"] if key.endswith("_flops")):
            name = key.removesuffix("_flops")
            found[name] = max(found.get(name, 0.0), piece["limits"][key])
    return found


def cell(figure: dict) -> str:
    """Our figure, its share of the limit, and the ratios to the others."""
    value = next(iter(figure["medians"].values()))
    told = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{told} {figure['unit']}" + "".join([limit(figure), *(f"; {words}" for words in ratios(figure))])


def limit(figure: dict) -> str:
    """The first side's part of what the machine can do."""
    for key, of in (
        ("share_of_peak", f"{figure.get('peak', 'bf16')} peak"),
        ("share_of_bandwidth", "memory bandwidth"),
    ):
        if key in figure:
            return f", {next(iter(figure[key].values())):.0%} of the {of}"
    return ""


def ratios(figure: dict) -> list[str]:
    return [f"{ratio:.2f} × {name}" for name, ratio in figure["times_better"].items()]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def put(document: Path, name: str, rendered: str) -> None:
    """Replace what stands between the marks of that name."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = document.read_text(encoding="utf-8")
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document}: has no {start} … {end} to put the table between")
    document.write_text(f"{before}{start}\n\n{rendered}\n{end}{after}", encoding="utf-8")


def main() -> None:
    seconds = sum(read(RUNS / "demo" / "seconds.json").values())
    put(ROOT / "README.md", "demo", demo_table(read(RUNS / "demo" / "results.json"), seconds))
    put(ROOT / "README.md", "speed", headline_table(MEASURED))
    put(ROOT / "docs" / "speed.md", "figures", benchmark_table(MEASURED))
    put(RUNS / "README.md", "study", study_table(read(RUNS / "study" / "study.json")))
    put(RUNS / "README.md", "reward_study", reward_study_table(read(RUNS / "reward_study" / "study.json")))
    put(RUNS / "README.md", "gatt", gatt_table(read(RUNS / "gatt" / "results.json")))
    safety = safety_table(*(read(RUNS / "safety" / f"{name}.json") for name in ("safety", "refusals")))
    put(RUNS / "README.md", "safety", safety)


if __name__ == "__main__":
    main()
