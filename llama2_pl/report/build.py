"""`llama2-pl report --run runs/demo`: one page with every figure that the run's files allow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama2_pl.evaluation.curves import read_curve
from llama2_pl.files import write_text
from llama2_pl.report import figures, page
from llama2_pl.report.doctor import doctor
from llama2_pl.report.gatt import ghost_attention
from llama2_pl.report.metrics import read_json
from llama2_pl.report.rewards import overall, rejection_sampling, reward_models, scaling
from llama2_pl.report.safety import refusals, safety_data
from llama2_pl.report.versions import versions

NAMES = {
    "sft": "SFT",
    "gatt": "SFT + Ghost Attention",
    "rejection_sampling": "rejection sampling",
    "ppo": "PPO",
}


def build_report(run: str = "runs/demo", out: str | None = None) -> str:
    """Draw the report of a run; the path of the page.

    Args:
        run: folder with results.json (from `llama2-pl evaluate`), the stages' metrics, carbon.json and manifests.
        out: the page; `report.html` in the run's folder by default.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(
            f"{run}: no such run; give the folder that the recipe wrote, for example --run runs/demo"
        )
    results = read_json(folder / "results.json")
    sections = [
        _opening(folder, results),
        _training(folder),
        reward_models(results),
        scaling(folder),
        rejection_sampling(results),
        versions(folder, results),
        *(part for of, ppo in _ppo_folders(folder).items() for part in (_ppo(ppo, of), doctor(ppo, of))),
        _judged(results),
        _gold(results),
        safety_data(folder, _name),
        refusals(folder, _name),
        ghost_attention(results),
        _carbon(folder),
        _samples(results),
        _commands(folder),
    ]
    target = Path(out) if out else folder / "report.html"
    write_text(target, page.page(f"llama2_pl · {_run_name(folder)}", sections))
    print(f"report: {target}")
    return str(target)


def _run_name(run: Path) -> str:
    """Also of `.` and of a path that ends with `..`."""
    return run.resolve().name


def _opening(run: Path, results: dict) -> str:
    tiles = []
    manifests = list(_manifests(run).values())
    if seconds := sum(m.get("seconds", 0.0) for m in manifests):
        again = any(m.get("attempts", 1) > 1 for m in manifests)
        what = "whole recipe" + ", last attempts alone" * again
        tiles.append((what, f"{seconds / 60:.1f} min"))
    if "parameters" in results:
        tiles.append(("parameters", f"{results['parameters'] / 1e6:.1f} M"))
    if "helpfulness" in results.get("reward_accuracy", {}):
        helpful = overall(results["reward_accuracy"]["helpfulness"])
        tiles.append(_share("helpfulness reward accuracy", helpful))
    if "unsafe_recall" in results:
        tiles.append(_share("unsafe recall of the safety model", results["unsafe_recall"]))
    if "ppo vs sft" in results.get("win_rate", {}):
        tiles.append(_share("PPO preferred over SFT", results["win_rate"]["ppo vs sft"]))
    whole = (
        "The Llama 2 recipe, run from the tokenizer to PPO."
        if manifests
        else "What the files of this folder hold."
    )
    lead = results.get("about") or whole
    return page.heading(f"The recipe of Llama 2, {_run_name(run)}") + page.section(
        "In short", lead, page.tiles(tiles)
    )


def _share(what: str, row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{what}, 95 % interval {row['low']:.1%} to {row['high']:.1%}", f"{row['mean']:.1%}"


def _training(run: Path) -> str:
    pretrain = read_curve(run / "pretrain", "train/loss", "train/tokens")
    parts = []
    if pretrain.y:
        named = {"pretraining": pretrain}
        validation = read_curve(run / "pretrain", "val/loss")
        parts.append(
            page.figure(
                figures.curves(named, x_label="tokens", y_label="loss", smoothing=0.9),
                "Pretraining loss against tokens (as Fig. 5).",
            )
        )
        if validation.y:
            parts.append(
                page.figure(
                    figures.curves(
                        {"held-out documents": validation},
                        x_label="step",
                        y_label="loss",
                        markers=("held-out documents",),
                    ),
                    "Loss on documents that were never trained on.",
                )
            )
    fine = {NAMES[n]: read_curve(run / n, "train/loss") for n in ("sft", "gatt", "rejection_sampling")}
    fine = {name: curve for name, curve in fine.items() if curve.y}
    if fine:
        parts.append(
            page.figure(
                figures.curves(fine, x_label="step", y_label="loss on answers", smoothing=0.8),
                "Fine-tuning losses, answers only.",
            )
        )
    rewards = {
        n.split("_")[1]: read_curve(run / n, "train/loss") for n in ("reward_helpfulness", "reward_safety")
    }
    rewards = {name: curve for name, curve in rewards.items() if curve.y}
    if rewards:
        parts.append(
            page.figure(
                figures.curves(rewards, x_label="step", y_label="ranking loss", smoothing=0.8),
                "Reward model losses.",
            )
        )
    return (
        page.section("Training", "Next-token loss from pretraining to fine-tuning.", page.row(*parts))
        if parts
        else ""
    )


def _ppo_folders(run: Path) -> dict[str, Path]:
    """The run's own and each version's, v2 before v10, by what stands behind "PPO" in their titles."""
    found = sorted(run.glob("v*/ppo"), key=lambda path: (len(path.parent.name), path.parent.name))
    return {"": run / "ppo", **{f" of {path.parent.name}": path for path in found}}


def _ppo(folder: Path, of: str) -> str:
    charts = []
    for title, keys in {
        "reward": {"combined reward": "ppo/reward", "helpfulness": "ppo/helpfulness", "safety": "ppo/safety"},
        "KL to the starting policy": {"KL (nats per answer)": "ppo/kl"},
    }.items():
        named = {name: read_curve(folder, key) for name, key in keys.items()}
        named = {name: curve for name, curve in named.items() if curve.y}
        if named:
            charts.append(
                page.figure(
                    figures.curves(named, x_label="iteration", y_label=title, smoothing=0.6),
                    f"PPO: {title}.",
                )
            )
    held = read_curve(folder, "held_out/reward")
    if held.y:
        charts.append(
            page.figure(
                figures.curves(
                    {"held-out prompts": held},
                    x_label="iteration",
                    y_label="reward",
                    markers=("held-out prompts",),
                ),
                "Reward on held-out prompts, which chooses the checkpoint.",
            )
        )
    return (
        page.section(f"PPO{of}", "Reward against distance from where it started.", page.row(*charts))
        if charts
        else ""
    )


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _versus(name: str) -> str:
    return " vs ".join(map(_name, name.split(" vs ")))


def _judged(results: dict) -> str:
    """Where nobody knows the truth: what the reward models think of each model (as Fig. 11)."""
    judged = results.get("judged")
    if not judged:
        return ""
    charts = [
        page.figure(
            figures.intervals({_name(n): row[axis] for n, row in judged.items()}, x_label=f"{axis} score"),
            f"Mean {axis} score of sampled answers on held-out prompts, 95 % intervals.",
        )
        for axis in ("helpfulness", "safety")
    ]
    wins = {_versus(name): row for name, row in results.get("judged_win_rate", {}).items()}
    if wins:
        x_label = "share preferred by the combined reward"
        caption = "Win rates by the reward models themselves, which is no proof of quality."
        charts.append(page.figure(figures.intervals(wins, x_label=x_label, line=0.5), caption))
    lead = "The reward models' own judgement, on both axes; training aimed at it, so it must rise."
    ended = [[_name(name), f"{share:.0%}"] for name, share in results.get("finished", {}).items()]
    table = page.table(["model", "answers that ended by themselves; others are judged as cut off"], ended)
    return page.section("Judged by the reward models", lead, page.row(*charts), table if ended else "")


def _gold(results: dict) -> str:
    gold = results.get("gold")
    if not gold:
        return ""
    charts = [
        page.figure(
            figures.intervals({_name(n): row for n, row in gold.items()}, x_label="gold score"),
            "Mean gold score of sampled answers on held-out prompts, 95 % intervals.",
        )
    ]
    wins = results.get("win_rate", {})
    if wins:
        named = {_versus(name): row for name, row in wins.items()}
        chart = figures.intervals(named, x_label="share preferred by the gold score", line=0.5)
        charts.append(page.figure(chart, "Win rates, ties counted half, 95 % intervals."))
    lead = (
        "The gold score is the oracle's judgement, which the reward models never saw except as noisy ratings."
    )
    kinds = results.get("gold_by_kind") or results.get("gold_by_prompt", {})
    names = sorted({kind for row in kinds.values() for kind in row})
    lines = [[_name(model), *(row.get(kind) for kind in names)] for model, row in kinds.items()]
    return page.section(
        "Gold score", lead, page.row(*charts), page.table(["model", *names], lines) if lines else ""
    )


def _carbon(run: Path) -> str:
    paths = [path for name in _manifests(run) for path in sorted((run / name).glob("**/carbon.json"))]
    rows = [row for path in paths for row in read_json(path).get("stages", {}).items()]
    if not rows:
        return ""

    def thousands(row: dict, key: str) -> float | None:
        return None if row.get(key) is None else row[key] * 1000

    head = ["stage", "hours", "Wh", "g CO2e", "how"]
    lines = [
        [name, row.get("hours"), thousands(row, "kwh"), thousands(row, "co2e_kg"), row.get("source", "")]
        for name, row in rows
    ]
    columns = ([line[i] for line in lines] for i in (1, 2, 3))
    totals = ["all", *(None if None in column else sum(column) for column in columns), ""]
    lead = "Energy and carbon of each trained stage (as Table 2); unknown is shown as –, never as 0."
    return page.section("Carbon", lead, page.table(head, [*lines, totals]))


def _samples(results: dict) -> str:
    talks = []
    for sample in results.get("samples", []):
        messages = [(m["role"], m["content"]) for m in sample["messages"]]
        talks.append(page.talk([*messages, *((_name(n), text) for n, text in sample["answers"].items())]))
    return (
        page.section("What the models say", "Held-out prompts, sampled once at temperature 0.7.", *talks)
        if talks
        else ""
    )


def _commands(run: Path) -> str:
    manifests = _manifests(run)
    if not manifests:
        return ""
    parts = [
        page.note(f"{name}, {manifest['seconds']:.0f} s{_attempts(manifest)}") + page.code(manifest["shell"])
        for name, manifest in manifests.items()
    ]
    return page.section("Commands", "Each stage, exactly as it can be typed again.", *parts)


def _attempts(manifest: dict) -> str:
    count = manifest.get("attempts", 1)
    return f" in the last of {count} attempts" if count > 1 else ""


def _manifests(run: Path) -> dict[str, dict]:
    """Manifests by stage, in the order in which they were written."""
    folder = run / "manifests"
    paths = sorted(folder.rglob("*.json"), key=lambda path: path.stat().st_mtime)
    return {str(path.relative_to(folder).with_suffix("")): read_json(path) for path in paths}
