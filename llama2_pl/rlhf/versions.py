"""What each version of RLHF decides by measuring: its temperature, its checkpoint, and how far it has come."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.dialogues import opening
from llama2_pl.data.readers import PromptRow, prompt_to_row, read_prompts, write_jsonl
from llama2_pl.data.sampling import is_held_out
from llama2_pl.evaluation.best_of_n import best_temperature
from llama2_pl.evaluation.intervals import percents
from llama2_pl.evaluation.judges import Judges
from llama2_pl.evaluation.win_rate import win_rate
from llama2_pl.files import write_json
from llama2_pl.objectives.reward import SAFETY_THRESHOLD
from llama2_pl.rlhf.evaluate import best_of_n, few, prompts_that_fit, sample_dialogues
from llama2_pl.rlhf.fingerprints import fingerprint
from llama2_pl.rlhf.judges import reward_models
from llama2_pl.rlhf.reuse import link
from llama2_pl.rlhf.scores import (
    Heard,
    Speaker,
    forgetting,
    gold_by_kind,
    goodhart_gap,
    judged,
    listen,
    load_judges,
    means,
)


def split_held_out(prompts: str, out: str) -> None:
    """Write out/select.jsonl, which temperatures and checkpoints are chosen on, and out/test.jsonl for the report.

    Our choice: halves by a hash of the first user message, so that what is reported was never chosen by. Not the hash
    that held the prompts out of a training set: by that one they would all be in one half.

    Args:
        prompts: file of prompts that nothing trains on.
        out: folder of the two files.
    """
    rows = list(read_prompts(prompts, tasks="optional"))
    for name, half in (("select", True), ("test", False)):
        kept = [row for row in rows if is_held_out(f"half {opening(row.prompt)}", 0.5) is half]
        if not kept:
            raise ValueError(f"{prompts}: {len(rows)} prompts are too few for two halves; give more")
        write_jsonl(Path(out) / f"{name}.jsonl", map(prompt_to_row, kept))


def tune_temperature(
    policy: str,
    tokenizer: str,
    prompts: str,
    helpfulness_reward: str,
    safety_reward: str,
    out: str,
    temperatures: Sequence[float] = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
    samples: int = 20,
    limit: int | None = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    safety_threshold: float = SAFETY_THRESHOLD,
    hardware: Hardware = HARDWARE,
) -> None:
    """Pick the temperature at which what rejection sampling takes of N samples has the highest reward.

    Llama 2 §3.2.3, fig. 8; it moves with each version. Writes out/sweep.json (for each temperature max and median of
    all samples against N, as in the figure, and the reward of the best that ended by themselves, which decides) and
    out/config.yaml, a config for `llama2-pl predict` with that temperature.

    Args:
        policy: checkpoint of the model that will be sampled from.
        tokenizer: tokenizer.model of all models.
        prompts: held-out prompts.
        helpfulness_reward: checkpoint of the newest helpfulness reward model.
        safety_reward: checkpoint of the newest safety reward model.
        out: folder of the two files.
        temperatures: to try; by default those of the figure.
        samples: N, as many as rejection sampling will draw.
        limit: use only the first prompts.
        max_new_tokens: longest answer.
        seed: of the samples.
        safety_threshold: below this safety score an answer counts as unsafe.
        hardware: device and precision.
    """
    judges = load_judges(helpfulness_reward, safety_reward, tokenizer, hardware, safety_threshold)
    model = hardware.load(policy)
    asked = prompts_that_fit([prompts], limit, judges, model, max_new_tokens)
    speak = Speaker(judges.tokenizer, max_new_tokens, seed)
    found = best_of_n(model, asked, judges, speak, temperatures, samples)["best_of_n"]
    best = best_temperature(found["reward_of_taken"])
    write_json(Path(out) / "sweep.json", {"temperature": best, "samples": samples, **found})
    write_json(Path(out) / "config.yaml", {"model": {"init_args": {"temperatures": [best]}}})  # JSON is YAML
    print(f"temperature {best:g}: highest reward of the best of {samples} that ended by themselves")


def choose_checkpoint(
    candidates: Sequence[str],
    previous: str,
    tokenizer: str,
    prompts: str,
    helpfulness_reward: str,
    safety_reward: str,
    out: str,
    answers_per_prompt: int = 1,
    limit: int | None = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    safety_threshold: float = SAFETY_THRESHOLD,
    hardware: Hardware = HARDWARE,
) -> None:
    """Pick the checkpoint with the highest mean reward and compare it with the version before.

    Llama 2 §3.4.1: "the latest reward models" choose. Writes out/choice.json and out/policy.ckpt, a link to the
    chosen file where the disk can, else a copy.

    Args:
        candidates: checkpoints, or folders of several.
        previous: checkpoint of the version before.
        tokenizer: tokenizer.model of all models.
        prompts: held-out prompts; where all have a `task`, gold scores are given too. They choose nothing.
        helpfulness_reward: checkpoint of the newest helpfulness reward model.
        safety_reward: checkpoint of the newest safety reward model.
        out: folder of the two files.
        answers_per_prompt: of each candidate; more of them, less noise.
        limit: use only the first prompts.
        max_new_tokens: longest answer.
        seed: of the answers.
        safety_threshold: below this safety score an answer counts as unsafe.
        hardware: device and precision.
    """
    judges = load_judges(helpfulness_reward, safety_reward, tokenizer, hardware, safety_threshold)
    before = hardware.load(previous)
    asked = prompts_that_fit([prompts], limit, judges, before, max_new_tokens)
    speak = Speaker(judges.tokenizer, max_new_tokens, seed)
    paths = [path for given in candidates for path in checkpoints_in(given)]
    heard = {path: listen(hardware.load(path), asked, judges, speak, answers_per_prompt) for path in paths}
    rival = listen(before, asked, judges, speak, answers_per_prompt)
    best = max(paths, key=lambda path: heard[path].reward.mean().item())
    result: dict[str, Any] = {
        "chosen": best,
        "sha256": fingerprint(best),
        "candidates": {path: means(found) for path, found in heard.items()},
        "previous": means(rival),
        "win_rate_on": "the prompts that chose the checkpoint, so too high; see results.json for others",
        "win_rate": {"reward": win_rate(heard[best].reward, rival.reward)},
    }
    if (gold := heard[best].gold) is not None and rival.gold is not None:
        result["win_rate"]["gold"] = win_rate(gold, rival.gold)
    link(Path(best), Path(out) / "policy.ckpt")
    write_json(Path(out) / "choice.json", result)
    for judge, row in result["win_rate"].items():
        print(f"{best}: preferred by the {judge} {percents(row)}")
    print("(on the prompts that chose it, so too high)")


def compare_versions(
    run: str,
    policies: dict[str, str],
    tokenizer: str,
    prompts: Sequence[str],
    helpfulness_reward: str,
    safety_reward: str,
    out: str,
    helpful_pairs: Sequence[str] = (),
    safety_pairs: Sequence[str] = (),
    steps: dict[str, str] | None = None,
    answers_per_prompt: int = 4,
    limit: int | None = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    about: str | None = None,
    safety_threshold: float = SAFETY_THRESHOLD,
    hardware: Hardware = HARDWARE,
) -> None:
    """All versions on held-out prompts, by one pair of reward models and by the gold score where it is known.

    Llama 2 §3.4.1 and figs. 11 and 20: each version against the one before, rewards that move right, and the gap
    between reward and quality.

    Args:
        run: folder whose `<version>/pool` and `<version>/temperature` are put into the results.
        policies: checkpoints by version, in order; the first is the start.
        tokenizer: tokenizer.model of all models.
        prompts: files of held-out prompts that nothing was chosen by.
        helpfulness_reward: checkpoint of the newest helpfulness reward model.
        safety_reward: checkpoint of the newest safety reward model.
        out: the result file, for `llama2-pl report`.
        helpful_pairs: held-out preference files for the helpfulness model.
        safety_pairs: held-out preference files for the safety model.
        steps: checkpoints inside the last version, in order: without and with PPO, as in fig. 11.
        answers_per_prompt: of each version; more of them, less noise.
        limit: use only the first prompts of each file.
        max_new_tokens: longest answer.
        seed: of the answers.
        about: a sentence for the report's head.
        safety_threshold: below this safety score an answer counts as unsafe.
        hardware: device and precision.
    """
    judges = load_judges(helpfulness_reward, safety_reward, tokenizer, hardware, safety_threshold)
    speak, steps = Speaker(judges.tokenizer, max_new_tokens, seed), steps or {}
    first = hardware.load(next(iter(policies.values())))
    parameters = first.config.num_parameters()
    asked = prompts_that_fit(prompts, limit, judges, first, max_new_tokens)
    del first
    heard, said = _in_turn({**policies, **steps}, hardware, asked, judges, speak, answers_per_prompt)
    pairs = [*_each_and_the_one_before(policies), *_each_and_the_one_before(steps)]
    results = {"about": about, "parameters": parameters, **judged(heard, pairs)}
    heard = {name: heard[name] for name in policies}
    kinds = gold_by_kind(asked, heard)
    results |= {"gold_by_kind": kinds} if kinds else {}
    results["versions"] = rows = _version_rows(Path(run), heard, kinds)
    results |= reward_models(judges, helpful_pairs, safety_pairs)
    results["samples"] = sample_dialogues(asked, said)
    write_json(Path(out), results)
    _say(rows)


def _each_and_the_one_before(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(after, before) for before, after in itertools.pairwise(names)]


def _say(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        parts = [f"{key} {row[key]['mean']:.3f}" for key in ("reward", "gold", "gap") if row[key]]
        print(f"{row['version']}: {', '.join(parts)}")


def _in_turn(
    policies: dict[str, str],
    hardware: Hardware,
    asked: Sequence[PromptRow],
    judges: Judges,
    speak: Speaker,
    each: int,
) -> tuple[dict[str, Heard], dict[str, list[str]]]:
    """What each policy said, scored, and its answers for the report, with one of them in memory at a time.

    Six of 7B beside two judges are about 110 GB in bf16.
    """
    heard, said = {}, {}
    for name, path in policies.items():
        model = hardware.load(path)
        heard[name], said[name] = listen(model, asked, judges, speak, each), speak(model, few(asked), 0.7)
        del model  # before the next one comes
    return heard, said


def checkpoints_in(path: str) -> list[str]:
    """The checkpoints of a folder, or the path itself where it is one."""
    found = sorted(map(str, Path(path).glob("*.ckpt"))) if Path(path).is_dir() else []
    return found or [path]


def _version_rows(
    run: Path, heard: dict[str, Heard], kinds: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    forgotten = forgetting(list(kinds.values())) or [None] * len(heard)
    return [
        {**_version_row(run, name, heard), "forgetting": lost}
        for name, lost in zip(heard, forgotten, strict=True)
    ]


def _version_row(run: Path, name: str, heard: dict[str, Heard]) -> dict[str, Any]:
    """A version's line of the report; what it has not (the start has no pool) is None."""
    start, mine = next(iter(heard)), heard[name]
    return {
        "version": name,
        "gold": None,
        **means(mine),
        "gap": None if name == start else goodhart_gap(mine, heard[start]),
        "temperature": _read(run / name / "temperature/sweep.json").get("temperature"),
        "sweep": _read(run / name / "temperature/sweep.json").get("by_temperature"),
        "pool": _read(run / name / "pool/lineage.json") or None,
        "choice": _read(run / name / "choice/choice.json") or None,
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
