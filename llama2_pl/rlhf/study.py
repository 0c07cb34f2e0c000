"""`llama2-pl rlhf study`: one loop with overrides, several seeds each, one table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.evaluation.curves import read_curve
from llama2_pl.files import write_json, write_text
from llama2_pl.rlhf.recipe import configs_folder, execute, refuse_secrets

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the normal's.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def study(
    out: str,
    loop: str,
    arms: dict[str, Any],
    seeds: Sequence[int] = (1, 2, 3),
    against: dict[str, str] | None = None,
    hardware: Hardware = HARDWARE,
) -> None:
    """Run each arm with each seed, as `llama2-pl rlhf` on its own folder, and write out/study.json and out/study.md.

    A second call skips what is done, and what an earlier arm made with the same command and inputs is linked. Each
    run can be gone on with by the command below the tables.

    Args:
        out: the study's folder; runs lie in out/<arm>/seed<n>.
        loop: config of `llama2-pl rlhf` that all arms share; packaged ones by their path below `configs/`.
        arms: overrides by name, nested as the config is: {beta_0: {options: {ppo: {model.beta: 0.0}}}}. With
            `until: v1/judges` an arm asks about reward models alone.
        seeds: of every arm.
        against: arms to compare, seed by seed: {beta_0: beta_0.05} reports beta_0 minus beta_0.05.
        hardware: device and precision of all that is no training.
    """
    if unknown := {name for pair in (against or {}).items() for name in pair} - set(arms):
        raise ValueError(f"against: no arm {min(unknown)!r}; the arms are {', '.join(arms)}")
    path = Path(loop) if Path(loop).exists() else configs_folder("rlhf").parent / loop
    if not path.exists():
        raise ValueError(f"loop: {loop} is no file, and there is no packaged {path}")
    base = yaml.safe_load(path.read_text(encoding="utf-8"))
    refuse_secrets({"loop": base, "arms": arms})
    own = {} if hardware == HARDWARE else {"hardware": asdict(hardware)}
    found: dict[str, list[Measured]] = {}
    for arm, overrides in arms.items():
        for seed in seeds:
            run = Path(out) / arm / f"seed{seed}"
            config = merged(base, {**(overrides or {}), **own, "seed": seed})
            print(f"{arm}, seed {seed}: {run}")
            share = json.dumps(
                [str(Path(out) / earlier / f"seed{seed}") for earlier in found if earlier != arm]
            )
            execute(["rlhf", f"--config={json.dumps(config)}", f"--out={run}", f"--share={share}"])
            write_json(run / "rlhf.yaml", config)  # JSON is YAML; not before: a run may be refused
            found.setdefault(arm, []).append(measured(run))
    rows, differences = rows_of(found), differences_of(found, against or {})
    about = {"seeds": list(seeds), "arms": arms, "against": against}
    write_json(Path(out) / "study.json", {**about, "rows": rows, "differences": differences})
    text = page(rows, differences, seeds, out)
    write_text(Path(out) / "study.md", text)
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


class Measured(NamedTuple):
    """What one finished run found.

    Attributes:
        versions: by version and name.
        judges: SHA-256 of the reward models that all its versions were judged by.
    """

    versions: dict[str, dict[str, float]]
    judges: list[str]


POLICY = ("gold", "reward", "gap", "forgetting")
JUDGES = {
    "helpfulness accuracy": ("helpfulness", None),
    "significantly better": ("helpfulness", "significantly better"),
    "slightly better": ("helpfulness", "slightly better"),
    "negligibly better": ("helpfulness", "negligibly better"),
    "safety accuracy": ("safety", None),
}
UNSAFE = ("unsafe recall", "unsafe precision")  # at a score of 0.5 (Table 29)
# Logged by PPO and its callbacks; the mean over the last looks.
PPO = {
    "PPO: KL": "ppo/kl",
    "PPO: reward of its samples": "ppo/reward",
    "PPO: gold of its samples": "doctor/gold_score",
    "PPO: entropy": "ppo/entropy",
    "PPO: held-out reward": "held_out/reward",
}
LAST = 5
BY_JUDGES = ("reward", "gap", "PPO: reward of its samples", "PPO: held-out reward")


def measured(run: Path) -> Measured:
    """What a finished run found: every version's answers, its PPO, and the last one's reward models.

    An arm with `until: vN/judges` has reward models alone.
    """
    if not (run / "results.json").exists():
        last = max(run.glob("v*/judges.json"), key=lambda path: int(path.parent.name[1:]))
        known = _judges(json.loads(last.read_text(encoding="utf-8")))
        return Measured({last.parent.name: _known(known)}, [])
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    manifest = json.loads((run / "manifests/compare.json").read_text(encoding="utf-8"))
    found = {}
    for row in results["versions"]:
        name = row["version"]
        known = {key: _mean_of(row[key]) for key in POLICY}
        for label, key in PPO.items():
            curve = read_curve(run / name / "ppo", key).y[-LAST:]
            known[label] = sum(curve) / len(curve) if curve else None
        if row is results["versions"][-1]:
            known |= _judges(results)
        found[name] = _known(known)
    return Measured(found, [sha for path, sha in manifest["inputs"].items() if "/reward_" in path])


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in found.items() if value is not None}


def _judges(results: Mapping[str, Any]) -> dict[str, float | None]:
    """How good the reward models are, by the table's columns."""
    detection = results.get("unsafe_detection", {}).get("0.5", {})
    unsafe = {label: detection.get(label.removeprefix("unsafe ")) for label in UNSAFE}
    return {label: _accuracy(results, *which) for label, which in JUDGES.items()} | unsafe


def _accuracy(results: Mapping[str, Any], kind: str, rating: str | None) -> float | None:
    """Of a reward model over all held-out pairs, or those of one rating (Table 8)."""
    found = results["reward_accuracy"].get(kind, {})
    return found.get("overall") if rating is None else found.get("by_rating", {}).get(rating)


def _mean_of(found: Any) -> float | None:
    return found["mean"] if isinstance(found, dict) else found


def rows_of(found: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """A row per arm and version: what all seeds know, as mean and interval over them."""
    return [
        {"arm": arm, "version": version, **_joined([run.versions[version] for run in runs])}
        for arm, runs in found.items()
        for version in runs[0].versions
    ]


def differences_of(
    found: Mapping[str, Sequence[Measured]], against: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row per pair of arms, at the last version that both have: the mean of the seeds' own differences.

    What reward models say is left out where the arms were not judged by the same ones: their scales differ.
    """
    rows = []
    for arm, other in against.items():
        runs = list(zip(found[arm], found[other], strict=True))
        version = [name for name in runs[0][0].versions if name in runs[0][1].versions][-1]
        skipped = () if all(mine.judges == its.judges for mine, its in runs) else BY_JUDGES
        pairs = [(mine.versions[version], its.versions[version]) for mine, its in runs]
        parts = [
            {key: mine[key] - its[key] for key in mine if key in its and key not in skipped}
            for mine, its in pairs
        ]
        rows.append({"arm": f"{arm} - {other}", "version": version, **_joined(parts)})
    return rows


def _joined(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {key: over_seeds([run[key] for run in runs]) for key in runs[0] if all(key in run for run in runs)}


def page(
    rows: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    out: str,
) -> str:
    """All tables as Markdown."""
    kinds = {"Policies": POLICY, "Reward models": (*JUDGES, *UNSAFE), "PPO": tuple(PPO)}
    parts = [f"Means over {len(seeds)} seeds with 95 % intervals (Student's t over the seeds)."]
    for title, columns in kinds.items():
        parts += [f"## {title}", table(rows, columns)]
    if differences:
        parts.append("## Differences, seed by seed")
        parts += [table(differences, columns) for columns in kinds.values()]
    parts.append(f"One run: `llama2-pl rlhf --config {out}/ARM/seedN/rlhf.yaml --out {out}/ARM/seedN`\n")
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The rows that know any of the columns; empty where none does."""
    known = [key for key in columns if any(key in row for row in rows)]
    lines = [f"| arm | version | {' | '.join(known)} |", "|---|---|" + "---|" * len(known)]
    lines += [
        f"| {row['arm']} | {row['version']} | {' | '.join(_cell(row.get(key)) for key in known)} |"
        for row in rows
        if any(key in row for key in known)
    ]
    return "\n".join(lines) if known else ""


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['mean']:.3f}{interval}"
