"""`llama2-pl rlhf study`: one loop with overrides, several seeds each, one table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llama2_pl.files import write_json
from llama2_pl.rlhf.recipe import configs_folder, execute

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the normal's.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def study(out: str, loop: str, arms: dict[str, Any], seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Run each arm with each seed, as `llama2-pl rlhf` on its own folder, and write out/study.json and out/study.md.

    A second call skips what is done, and what an earlier arm made with the same command and inputs is linked. Each
    run can be gone on with by the command in the table.

    Args:
        out: the study's folder; runs lie in out/<arm>/seed<n>.
        loop: config of `llama2-pl rlhf` that all arms share; packaged ones by their path below `configs/`.
        arms: overrides by name, nested as the config is: {beta_0: {options: {ppo: {model.beta: 0.0}}}}.
        seeds: of every arm.
    """
    path = Path(loop) if Path(loop).exists() else configs_folder("rlhf").parent / loop
    if not path.exists():
        raise ValueError(f"loop: {loop} is no file, and there is no packaged {path}")
    base = yaml.safe_load(path.read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = {}
    for arm, overrides in arms.items():
        for seed in seeds:
            run = Path(out) / arm / f"seed{seed}"
            # JSON is YAML
            write_json(run / "rlhf.yaml", merged(base, {**(overrides or {}), "seed": seed}))
            print(f"{arm}, seed {seed}: {run}")
            share = json.dumps([str(Path(out) / earlier / f"seed{seed}") for earlier in found])
            execute(["rlhf", f"--config={run / 'rlhf.yaml'}", f"--out={run}", f"--share={share}"])
            results = json.loads((run / "results.json").read_text(encoding="utf-8"))
            found.setdefault(arm, []).append(results)
    write_json(Path(out) / "study.json", {"seeds": list(seeds), "arms": arms, "rows": rows_of(found)})
    text = table(rows_of(found), seeds, out)
    (Path(out) / "study.md").write_text(text, encoding="utf-8")
    print(text)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the overrides put over it, mapping by mapping; lists and values are replaced."""
    both = {
        key: merged(base[key], value)
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        else value
        for key, value in over.items()
    }
    return {**base, **both}


def over_seeds(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean and 95 % interval by Student's t over runs, which are what varies; no interval from one run."""
    mean, count = sum(values) / len(values), len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "count": count}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = (T_95[count - 2] if count - 2 < len(T_95) else 1.96) * deviation / math.sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": count}


def rows_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row per arm and version: reward, gold score, gap and forgetting over the seeds; the last one's judges too."""
    rows = []
    for arm, runs in found.items():
        for number, version in enumerate(runs[0]["versions"]):
            measured = {key: [_mean_of(run["versions"][number][key]) for run in runs] for key in MEASURES}
            if number == len(runs[0]["versions"]) - 1:
                measured |= {name: [read(run) for run in runs] for name, read in JUDGES.items()}
            known = {
                key: over_seeds([v for v in values if v is not None])
                for key, values in measured.items()
                if None not in values
            }
            rows.append({"arm": arm, "version": version["version"], **known})
    return rows


MEASURES = ("gold", "reward", "gap", "forgetting")
JUDGES = {
    "helpfulness accuracy": lambda run: _accuracy(run, "helpfulness"),
    "significantly better": lambda run: _accuracy(run, "helpfulness", "significantly better"),
    "slightly better": lambda run: _accuracy(run, "helpfulness", "slightly better"),
    "negligibly better": lambda run: _accuracy(run, "helpfulness", "negligibly better"),
    "safety accuracy": lambda run: _accuracy(run, "safety"),
    "unsafe recall": lambda run: run.get("unsafe_recall", {}).get("mean"),
}


def _accuracy(run: Mapping[str, Any], kind: str, rating: str | None = None) -> float | None:
    """Of a reward model over all held-out pairs, or those of one rating (Table 8)."""
    found = run["reward_accuracy"].get(kind, {})
    return found.get("overall") if rating is None else found.get("by_rating", {}).get(rating)


def _mean_of(found: Any) -> float | None:
    return found["mean"] if isinstance(found, dict) else found


def table(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], out: str) -> str:
    """The rows as Markdown."""
    columns = [*MEASURES, *JUDGES]
    lines = [
        f"Means over {len(seeds)} seeds with 95 % intervals (Student's t over the seeds).",
        "",
        f"| arm | version | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    lines += [
        f"| {row['arm']} | {row['version']} | {' | '.join(_cell(row.get(key)) for key in columns)} |"
        for row in rows
    ]
    lines += ["", f"One run: `llama2-pl rlhf --config {out}/ARM/seedN/rlhf.yaml --out {out}/ARM/seedN`", ""]
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['mean']:.3f}{interval}"
