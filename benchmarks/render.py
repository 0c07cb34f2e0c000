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
        *(
            (f"gold score, {name}", f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
            for name, row in results["gold"].items()
        ),
        *((f"preferred by the gold score, {name}", share(row)) for name, row in results["win_rate"].items()),
        *((f"instruction kept at turn 4, {name} Ghost Attention", share(row)) for name, row in held.items()),
    ]
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"`make demo`, from [docs/runs/demo](docs/runs/demo) (95 % intervals):\n\n| | |\n|---|---|\n{lines}\n"
    )


def benchmark_table() -> str:
    """Ratios of benchmarks/results/*.json."""
    lines = [
        f"| {name} | {row['ratio']:.2f} |"
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
        for name, row in json.loads(path.read_text(encoding="utf-8")).get("figures", {}).items()
    ]
    if not lines:
        return ""
    head = "`make bench`, tokens per second as a ratio to transformers in the same run:"
    return "\n".join(["", head, "", "| | ratio |", "|---|---|", *lines, ""])


def main() -> None:
    run = ROOT / "docs" / "runs" / "demo"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    seconds = sum(json.loads((run / "seconds.json").read_text(encoding="utf-8")).values())
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    body = f"{MARKS[0]}\n\n{demo_table(results, seconds)}{benchmark_table()}\n{MARKS[1]}"
    pattern = re.escape(MARKS[0]) + r"(.*?" + re.escape(MARKS[1]) + ")?"
    readme.write_text(re.sub(pattern, lambda _: body, text, count=1, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
