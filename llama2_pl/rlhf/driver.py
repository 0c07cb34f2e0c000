"""`llama2-pl rlhf`: versions 1 to N of the loop, over the stage runner (Llama 2 §3.2.3).

What the stages are is in `plan.py`. Every one is a `llama2-pl` command that can be typed as its manifest has it; its
configs, with the version's paths in them, lie in `<out>/<version>/configs`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.readers import read_prompts
from llama2_pl.rlhf.plan import KINDS, fine_tune_init, plan
from llama2_pl.rlhf.recipe import (
    configs_folder,
    execute,
    filled_configs,
    is_made,
    on_hardware,
    recipe,
    refuse_secret_options,
)
from llama2_pl.rlhf.reuse import take_over
from llama2_pl.rlhf.runner import holding, make_again, run_stages
from llama2_pl.rlhf.settings import TRAINED, Every, Files, Loop, Ratings, Sampling, Start
from llama2_pl.rlhf.stages import Stage, depending, index_of, up_to


def rlhf(
    out: str,
    files: Files,
    configs: dict[str, list[str]],
    options: dict[str, dict[str, bool | int | float | str]] | None = None,
    ratings: Ratings = Ratings(),  # noqa: B008 (frozen)
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    every: Every = Every(),  # noqa: B008 (frozen)
    start: Start | None = None,
    versions: int = 5,
    ppo_from: int = 5,
    fine_tune_from: Literal["base", "previous"] = "base",
    teacher: str | None = None,
    answers_per_prompt: int = 4,
    seed: int = 0,
    until: str | None = None,
    redo: str | None = None,
    share: list[str] | None = None,
    hardware: Hardware = HARDWARE,
) -> None:
    """Run versions 1 to N; what is done is skipped, what no longer matches is refused, a killed stage goes on.

    Args:
        out: the run's folder.
        files: checkpoints, prompts and preferences to start from.
        configs: by training stage (reward_helpfulness, reward_safety, best_of_k, fine_tune, ppo) its config files,
            packaged ones by their path below `configs/`; the paths of a version come after them.
        options: by training stage, what wins over its configs: {ppo: {model.beta: 0.02}}.
        ratings: how preferences are collected.
        sampling: rejection sampling and its pool.
        every: how often checkpoints are saved and held-out prompts answered.
        start: a folder to start from.
        versions: how many; more can be added later.
        ppo_from: first version with PPO on top of rejection sampling; the paper's first four had none.
        fine_tune_from: "base", as the paper; "previous": the version before.
        teacher: folder of a bigger model's finished run, whose samples and reward models are used: none are made.
            The paper sampled with its largest model alone (§3.2.3).
        answers_per_prompt: answers to a held-out prompt where checkpoints are chosen and versions compared.
        seed: of everything random; a version adds its number.
        until: name of the last stage to run, for example v2/pool.
        redo: name of a stage to make again, with all that depends on it.
        share: folders of other runs; what one of them made with the same command and inputs is linked from there.
        hardware: device and precision of all that is no training; training's are Trainer options in `options`.
    """
    over = None if teacher is None else Path(teacher)
    given = filled(files, start and start.folder)
    parts = (Path(out), given, configs, options or {}, ratings, sampling, every)
    loop = Loop(*parts, versions, ppo_from, fine_tune_from, over, answers_per_prompt, seed)
    check(loop)
    _run(loop, start, until, redo, [Path(other) for other in share or []], hardware)


def _run(
    loop: Loop,
    start: Start | None,
    until: str | None,
    redo: str | None,
    share: list[Path],
    hardware: Hardware,
) -> None:
    everything = on_hardware(plan(loop), hardware)
    refuse_secret_options(everything)
    stages = up_to(everything, until)
    again = [] if redo is None else depending(everything, redo)
    prepare(start, hardware)
    require_files(loop.files, stages)
    texts = config_texts(loop)
    with holding(loop.out):
        make_again(loop.out, everything, again, texts)
        stages = without_ratings_to_come(loop, stages)
        take = partial(take_over, loop.out, others=share)
        run_stages(loop.out, stages, execute, refuse=True, take_over=take, configs=texts)


def prepare(start: Start | None, hardware: Hardware) -> None:
    """Run the recipe that makes the folder, where not all of its stages are finished there.

    A finished one is used as it is, whatever the recipe would make today: it may be the start of other runs.
    """
    if start is None or start.recipe is None:
        return
    if not is_made(start.recipe, start.folder, start.until):
        recipe(start.recipe, start.folder, until=start.until, hardware=hardware)


def require_files(files: Files, stages: Sequence[Stage]) -> None:
    """ValueError naming the option of a file that a stage reads and that is not there: no stage makes it."""
    read = {path for stage in stages for path in stage.inputs}
    for entry in fields(files):
        value = getattr(files, entry.name)
        for path in [value] if isinstance(value, str) else value:
            if path in read and not Path(path).exists():
                raise ValueError(f"files.{entry.name}: {path}: no such file; mend the path, or leave it out")


def filled(files: Files, start: str | None) -> Files:
    """The files with $START filled in."""

    def fill(path: str) -> str:
        if "$START" in path and start is None:
            raise ValueError(f"{path}: $START is not set; give --start.folder")
        return path.replace("$START", start or "")

    values = {entry.name: getattr(files, entry.name) for entry in fields(files)}
    known: dict[str, Any] = {
        name: fill(value) if isinstance(value, str) else [fill(path) for path in value]
        for name, value in values.items()
    }
    return Files(**known)


def check(loop: Loop) -> None:
    """Refuse what would otherwise fail, or be ignored, hours later."""
    if loop.versions < 1:
        raise ValueError(f"versions is {loop.versions}; give at least 1")
    used = set(TRAINED) if loop.teacher is None else {"fine_tune", "ppo"}
    used -= set() if loop.ppo_from <= loop.versions else {"ppo"}
    if missing := used - set(loop.configs):
        raise ValueError(
            f"configs: no config files for {min(missing)}; give a list, for example [stage/sft.yaml]"
        )
    if unknown := (set(loop.configs) | set(loop.options)) - set(TRAINED):
        raise ValueError(
            f"configs or options: no stage {min(unknown)!r}; the stages are {', '.join(TRAINED)}"
        )
    root = configs_folder("rlhf").parent
    if absent := [entry for entry in packaged(loop) if not (root / entry).is_file()]:
        raise ValueError(f"configs: {absent[0]} is no file, and there is no packaged {root / absent[0]}")


def packaged(loop: Loop) -> set[str]:
    """The configs in use that are no files of the user."""
    return {entry for entries in loop.configs.values() for entry in entries if not Path(entry).exists()}


def config_texts(loop: Loop) -> dict[Path, str]:
    """The configs that stand in the run, by path: copies of the packaged ones in use, and each version's own."""
    root = configs_folder("rlhf").parent
    used = packaged(loop)
    texts = {loop.out / "configs" / entry: (root / entry).read_text(encoding="utf-8") for entry in used}
    oracle = {"GOLD": gold_judge(loop.files.prompts)}  # reads all prompts, which are every version's
    for version in range(1, loop.versions + 1):
        folder = Path(loop.at(version, "configs"))
        texts |= filled_configs(root / "rlhf/stages", variables(loop, version) | oracle, folder)
    return texts


def variables(loop: Loop, version: int) -> dict[str, str]:
    """What the $NAMES of configs/rlhf/stages/ stand for in a version, but $GOLD, which is the same in all."""
    judges, files = loop.judges(version), loop.files
    return {
        "V": loop.at(version),
        "NAME": f"v{version}",
        "SEED": str(loop.seed_of(version)),
        "CURRENT": loop.policy(version - 1),
        "FROM": fine_tune_init(loop, version),
        "TUNED": loop.tuned(version),
        "TOKENIZER": files.tokenizer,
        "PROMPTS": files.prompts,
        "SELECT": loop.half("select"),
        "POOL": f"{loop.pool(version)}/train.jsonl",
        **{
            f"{side.upper()}_FOR_{kind.upper()}": json.dumps(files)
            for kind in KINDS
            for side, files in loop.pairs(version, kind).items()
        },
        "HELPFUL_VAL": json.dumps(files.helpful_val),
        "SAFETY_VAL": json.dumps(files.safety_val),
        "HELPFULNESS_REWARD": judges["helpfulness_reward"],
        "SAFETY_REWARD": judges["safety_reward"],
        "VALUE_INIT": "policy" if loop.teacher else "helpfulness_reward",  # a teacher's is of its size
        "K": str(loop.sampling.samples_per_prompt),
        "MAX_NEW_TOKENS": str(loop.sampling.max_new_tokens),
        "SAVE_EVERY": str(loop.every.save),
        "CANDIDATE_EVERY": str(loop.every.candidate),
        "LOOK_EVERY": str(loop.every.look),
        "PATIENCE": str(loop.every.patience),
        "CACHE": str(loop.out / "cache"),
    }


def gold_judge(prompts: str) -> str:
    """The oracle for the PPO doctor, where the prompts have the tasks that it knows the truth about."""
    tasks = [row.task for row in read_prompts(prompts, tasks="optional")]
    known = bool(tasks) and None not in tasks
    oracle = {"class_path": "llama2_pl.callbacks.OracleReward", "init_args": {"prompts": [prompts]}}
    return json.dumps(oracle if known else None)


def without_ratings_to_come(loop: Loop, stages: list[Stage]) -> list[Stage]:
    """The stages before the first version that people have still to rate answers for; says what is waited for."""
    if loop.ratings.folder is None or loop.teacher is not None:
        return stages
    for version in range(1, loop.versions + 1):
        absent = [
            path for kind in ("helpful", "safety") if not Path(path := loop.batch(version, kind)).exists()
        ]
        first = f"v{version}/reward_helpfulness"
        if absent and first in [stage.name for stage in stages]:
            rated = " and ".join(loop.policy(number) for number in (version - 1, version - 2) if number >= 0)
            print(
                f"v{version} waits for ratings of answers of {rated}: put them in {', '.join(absent)}, run again"
            )
            return stages[: index_of(stages, first, "stage")]
    return stages
