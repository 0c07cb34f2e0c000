"""Put the figures of committed result files into README.md, between its `results` marks: nobody types a number."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKS = ("<!-- results -->", "<!-- /results -->")


def share(row: dict) -> str:
    return f"{row['mean']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"


def demo_table(results: dict, seconds: float) -> str:
    """The demo's headline figures, from docs/runs/demo/results.json."""
    helpful = results["reward_accuracy"]["helpfulness"]
    by_rating = ", ".join(f"{name} {value:.2f}" for name, value in helpful["by_rating"].items())
    best = results["best_of_n"]["gold"]
    held = {name: by_turn["4"] for name, by_turn in results["gatt"].items()}
    rows = [
        ("all stages, two CPU cores", f"{seconds / 60:.1f} min"),
        ("helpfulness reward accuracy on held-out pairs", f"{helpful['overall']:.3f} ({by_rating})"),
        ("unsafe recall of the safety model", share(results["unsafe_recall"])),
        (
            f"gold score, best of {best['n']} against the median sample",
            f"{best['best']:.3f} / {best['median']:.3f}",
        ),
        *((f"gold score, {name}", interval(row)) for name, row in results["gold"].items()),
        *((f"preferred by the gold score, {name}", share(row)) for name, row in results["win_rate"].items()),
        *((f"instruction kept at turn 4, {name} Ghost Attention", share(row)) for name, row in held.items()),
    ]
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"`make demo`, from [docs/runs/demo](docs/runs/demo) (95 % intervals):\n\n| | |\n|---|---|\n{lines}\n"
    )


def study_table(study: dict) -> str:
    """V1 to V5 of `llama2-pl rlhf study`, over its seeds, from docs/runs/study/study.json."""
    keys = ("gold", "reward", "gap")
    lines = [
        f"| {row['version']} | " + " | ".join(interval(row[key]) if key in row else "" for key in keys) + " |"
        for row in study["rows"]
        if row["arm"] == "pool_all"
    ]
    head = (
        f"`llama2-pl rlhf study`, {len(study['seeds'])} seeds, from [docs/runs/study](docs/runs/study) (95 % intervals "
        "over seeds; rewards by the last version's models; gap: how much more the reward rose than the gold score, in "
        "standard deviations):"
    )
    columns = ["| version | gold score | reward | Goodhart gap |", "|---|---|---|---|"]
    return "\n".join(["", head, "", *columns, *lines, ""])


def reward_study_table(study: dict) -> str:
    """Margin and auxiliary loss on and off, seed by seed, from docs/runs/reward_study/study.json."""
    keys = ("helpfulness accuracy", "safety accuracy", "unsafe recall", "unsafe precision")
    lines = [
        f"| {row['arm']} | " + " | ".join(interval(row[key]) if key in row else "" for key in keys) + " |"
        for row in study["differences"]
    ]
    head = (
        f"The same for reward models alone, {len(study['seeds'])} seeds, from [docs/runs/reward_study]"
        "(docs/runs/reward_study): the first minus the second, seed by seed (Tables 28 and 29):"
    )
    columns = [f"| | {' | '.join(keys)} |", "|---|" + "---|" * len(keys)]
    return "\n".join(["", head, "", *columns, *lines, ""])


def interval(row: dict) -> str:
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def gatt_table(results: dict) -> str:
    """`llama2-pl gatt study`, from docs/runs/gatt/results.json."""
    turns = list(results["gatt"]["with"])
    lines = [
        f"| {name} | " + " | ".join(share(results["gatt"][name][turn]) for turn in turns) + " |"
        for name in ("without", "with")
    ]
    head = (
        "`llama2-pl gatt study`, the instruction of turn 1 still kept, from [docs/runs/gatt](docs/runs/gatt):"
    )
    columns = " | ".join(f"turn {turn}" for turn in turns)
    return "\n".join(
        ["", head, "", f"| Ghost Attention | {columns} |", "|---|" + "---|" * len(turns), *lines, ""]
    )


def benchmark_table(folder: Path) -> str:
    """A row for each case and a column for each machine, a folder of result files each."""
    found = [(name, results) for name in sorted(folder.iterdir()) if (results := pieces(name))]
    if not found:
        return ""
    cases = dict.fromkeys(
        row["case"] for _, results in found for piece in results for row in piece["figures"]
    )
    cells = [
        {row["case"]: cell(row) for piece in results for row in piece["figures"]} for _, results in found
    ]
    lines = [f"| {case} | " + " | ".join(column.get(case, "") for column in cells) + " |" for case in cases]
    head = (
        "`make bench`, each side in a process of its own, in turn: our median, and how many times better it is than "
        f"that of each other side. Every figure: {', '.join(link(name) for name, _ in found)}."
    )
    columns = [
        "| | " + " | ".join(machine(results) for _, results in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    return "\n".join(["", head, "", *columns, *lines, ""])


def pieces(folder: Path) -> list[dict]:
    """The result files in a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def link(folder: Path) -> str:
    return f"[{folder.name}](benchmarks/results/{folder.name})"


def machine(results: list[dict]) -> str:
    """Its name and the fastest matrix products measured on it."""
    environment = results[0]["environment"]
    names = {
        key.removesuffix("_flops"): key for piece in results for key in piece["limits"] if "flops" in key
    }
    peaks = (
        f"{name} {max(piece['limits'].get(key, 0) for piece in results) / 1e12:.2f}"
        for name, key in names.items()
    )
    return f"{environment['gpu'] or environment['machine']}; matrix products: {', '.join(peaks)} TFLOP/s"


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


def main() -> None:
    run = ROOT / "docs" / "runs" / "demo"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    seconds = sum(json.loads((run / "seconds.json").read_text(encoding="utf-8")).values())
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    runs = ROOT / "docs" / "runs"
    study = json.loads((runs / "study" / "study.json").read_text(encoding="utf-8"))
    rewards = json.loads((runs / "reward_study" / "study.json").read_text(encoding="utf-8"))
    gatt = json.loads((runs / "gatt" / "results.json").read_text(encoding="utf-8"))
    tables = [
        demo_table(results, seconds),
        study_table(study),
        reward_study_table(rewards),
        gatt_table(gatt),
        benchmark_table(ROOT / "benchmarks" / "results"),
    ]
    body = f"{MARKS[0]}\n\n{''.join(tables)}\n{MARKS[1]}"
    pattern = re.escape(MARKS[0]) + r"(.*?" + re.escape(MARKS[1]) + ")?"
    readme.write_text(re.sub(pattern, lambda _: body, text, count=1, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
