"""The stages of versions 1 to N, each a `llama2-pl` command with what it reads and makes (Llama 2 §3.2.3).

A version: ratings on answers of the current and the previous version, both reward models anew on all ratings so far,
the best temperature, K samples per prompt, the pool, fine-tuning, PPO in the last versions, the choice of checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama2_pl.rlhf.settings import TRAINED, Loop
from llama2_pl.rlhf.stages import Stage

KINDS = ("helpfulness", "safety")


def plan(loop: Loop) -> list[Stage]:
    """All stages in order."""
    stages = [
        Stage(
            "held_out",
            "held-out prompts in two halves, to choose by and to report on",
            tool("rlhf held-out", prompts=loop.files.held_out, out=str(loop.out / "held_out")),
            (loop.files.held_out,),
            (loop.half("select"), loop.half("test")),
            5,
        )
    ]
    for version in range(1, loop.versions + 1):
        if loop.teacher is None:
            stages += [collect_stage(loop, version)] if loop.ratings.folder is None else []
            stages += [reward_stage(loop, version, kind) for kind in KINDS]
            stages += [
                judges_stage(loop, version),
                temperature_stage(loop, version),
                sampling_stage(loop, version),
                pool_stage(loop, version),
            ]
        stages.append(fine_tune_stage(loop, version))
        stages += [ppo_stage(loop, version)] if version >= loop.ppo_from else []
        stages.append(choice_stage(loop, version))
    return [*stages, compare_stage(loop), report_stage(loop)]


def tool(command: str, **options: Any) -> tuple[str, ...]:
    """A tool command's words; None is left to its default."""
    words = (f"--{key}={_word(value)}" for key, value in options.items() if value is not None)
    return (*command.split(), *words)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def training(
    loop: Loop, version: int, name: str, *, reads: Sequence[str], makes: Sequence[str], **words: Any
) -> Stage:
    """A Trainer command: the configs of the stage, those of the version, then the options."""
    own = [loop.at(version, f"configs/{name}.yaml"), *words.get("configs", ())]
    files = [*(config_file(loop, entry) for entry in loop.configs[name]), *own]
    options = {**loop.options.get(name, {}), **({"ckpt_path": "last"} if TRAINED[name] == "fit" else {})}
    command = (TRAINED[name], *(f"--config={file}" for file in files), *tool("", **options))
    return Stage(
        f"v{version}/{name}", words["about"], command, (*reads, *files), tuple(makes), words["share"]
    )


def collect_stage(loop: Loop, version: int) -> Stage:
    """Two model variants answer: the current version and the one before (§3.2.1)."""
    policies = [loop.policy(number) for number in (version - 1, version - 2) if number >= 0]
    ratings, out = loop.ratings, loop.at(version, "ratings")
    command = tool(
        "collect",
        policies=policies,
        tokenizer=loop.files.tokenizer,
        prompts=loop.files.prompts,
        out=out,
        temperatures=ratings.temperatures,
        max_new_tokens=loop.sampling.max_new_tokens,
        rounds=ratings.rounds,
        noise=ratings.noise,
        limit=ratings.limit,
        batch=ratings.first_batch + version - 1,
        seed=loop.seed_of(version),
    )
    inputs = (*policies, loop.files.tokenizer, loop.files.prompts)
    about = f"batch {version} of ratings, on answers of the current and the previous version"
    return Stage(f"v{version}/ratings", about, command, inputs, (out,), 20)


def reward_stage(loop: Loop, version: int, kind: str) -> Stage:
    """From the current chat model, on all ratings so far (§3.2.2)."""
    pairs = [path for files in loop.pairs(version, kind).values() for path in files]
    held_out = loop.files.helpful_val if kind == "helpfulness" else loop.files.safety_val
    return training(
        loop,
        version,
        f"reward_{kind}",
        reads=(*pairs, *held_out, loop.policy(version - 1), loop.files.tokenizer),
        makes=(loop.judges(version)[f"{kind}_reward"],),
        about=f"{kind} reward model on {version} batches of ratings",
        share=50,
    )


def judges_stage(loop: Loop, version: int) -> Stage:
    """The newest reward models on held-out pairs, and what the version's own batch of ratings taught them (§3.2.1)."""
    out = loop.at(version, "judges.json")
    pairs = {"helpful_pairs": loop.files.helpful_val, "safety_pairs": loop.files.safety_val}
    batch = {kind: path for kind in KINDS if (path := loop.held_out_batch(version, kind)) is not None}
    before = {kind: loop.judges(version - 1)[f"{kind}_reward"] for kind in KINDS} if version > 1 else None
    command = tool(
        "rlhf judges",
        **loop.judges(version),
        tokenizer=loop.files.tokenizer,
        out=out,
        **pairs,
        batch=batch or None,
        before=before if batch else None,
    )
    inputs = (
        *loop.judges(version).values(),
        *loop.files.helpful_val,
        *loop.files.safety_val,
        *batch.values(),
        *((before or {}).values() if batch else ()),
        loop.files.tokenizer,
    )
    about = "the reward models on held-out pairs and on those of the newest batch"
    return Stage(f"v{version}/judges", about, command, inputs, (out,), 5)


def temperature_stage(loop: Loop, version: int) -> Stage:
    out = loop.at(version, "temperature")
    command = tool(
        "rlhf temperature",
        policy=loop.policy(version - 1),
        tokenizer=loop.files.tokenizer,
        prompts=loop.half("select"),
        **loop.judges(version),
        out=out,
        temperatures=loop.sampling.temperatures,
        samples=loop.sampling.samples_per_prompt,
        limit=loop.sampling.sweep_prompts,
        max_new_tokens=loop.sampling.max_new_tokens,
        seed=loop.seed_of(version),
    )
    inputs = (
        loop.policy(version - 1),
        loop.files.tokenizer,
        loop.half("select"),
        *loop.judges(version).values(),
    )
    about = "the temperature with the best of K samples (fig. 8)"
    return Stage(f"v{version}/temperature", about, command, inputs, (out,), 20)


def sampling_stage(loop: Loop, version: int) -> Stage:
    config = loop.at(version, "temperature/config.yaml")
    return training(
        loop,
        version,
        "best_of_k",
        configs=(config,),
        reads=(
            loop.policy(version - 1),
            loop.files.prompts,
            loop.files.tokenizer,
            *loop.judges(version).values(),
        ),
        makes=(loop.at(version, "best_of_k/answers"),),
        about="K answers to each prompt, scored by the newest reward models",
        share=60,
    )


def pool_stage(loop: Loop, version: int) -> Stage:
    samples, out = loop.at(version, "best_of_k/answers"), loop.pool(version)
    earlier = loop.pool(version - 1) if version > 1 else None
    command = tool(
        "rlhf pool",
        samples=samples,
        version=version,
        policy=loop.policy(version - 1),
        **loop.judges(version),
        tokenizer=loop.files.tokenizer,
        out=out,
        earlier=earlier,
        take=loop.sampling.take(version),
        keep=loop.sampling.keep,
        per_prompt=loop.sampling.per_prompt,
    )
    inputs = (
        samples,
        loop.policy(version - 1),
        loop.files.tokenizer,
        *loop.judges(version).values(),
        *([earlier] if earlier else []),
    )
    about = "the best answers of all versions, scored anew, and what to fine-tune on"
    return Stage(f"v{version}/pool", about, command, inputs, (out,), 5)


def fine_tune_stage(loop: Loop, version: int) -> Stage:
    return training(
        loop,
        version,
        "fine_tune",
        reads=(f"{loop.pool(version)}/train.jsonl", fine_tune_init(loop, version), loop.files.tokenizer),
        makes=(loop.at(version, "fine_tune/checkpoints"),),
        about="fine-tuning on the pool's answers",
        share=20,
    )


def fine_tune_init(loop: Loop, version: int) -> str:
    """ "Always starting from the base model on each new RLHF version" (§3.2.3), or from the version before."""
    return loop.files.base if loop.fine_tune_from == "base" else loop.policy(version - 1)


def ppo_stage(loop: Loop, version: int) -> Stage:
    tuned = loop.at(version, "fine_tune/checkpoints")
    return training(
        loop,
        version,
        "ppo",
        reads=(
            tuned,
            loop.files.prompts,
            loop.half("select"),
            loop.files.tokenizer,
            *loop.judges(version).values(),
        ),
        makes=(loop.at(version, "ppo/best.ckpt"), loop.at(version, "ppo/last.ckpt")),
        about="PPO on top of rejection sampling",
        share=90,
    )


def choice_stage(loop: Loop, version: int) -> Stage:
    candidates = [loop.at(version, "fine_tune/checkpoints")]
    candidates += [loop.at(version, "ppo/best.ckpt")] if version >= loop.ppo_from else []
    out = loop.at(version, "choice")
    command = tool(
        "rlhf choose",
        candidates=candidates,
        previous=loop.policy(version - 1),
        tokenizer=loop.files.tokenizer,
        prompts=loop.half("select"),
        **loop.judges(version),
        out=out,
        answers_per_prompt=loop.answers_per_prompt,
        max_new_tokens=loop.sampling.max_new_tokens,
        seed=loop.seed_of(version),
    )
    policies, judges = (*candidates, loop.policy(version - 1)), loop.judges(version).values()
    inputs = (*policies, loop.files.tokenizer, loop.half("select"), *judges)
    about = "the checkpoint with the highest reward, against the version before"
    return Stage(f"v{version}/choice", about, command, inputs, (out,), 15)


def compare_stage(loop: Loop) -> Stage:
    """Derived: more versions, and it is made again."""
    last, out = loop.versions, str(loop.out / "results.json")
    policies = {f"v{number}": loop.policy(number) for number in range(last + 1)}
    steps = ppo_steps(loop, last)
    pairs = {"helpful_pairs": loop.files.helpful_val, "safety_pairs": loop.files.safety_val}
    command = tool(
        "rlhf compare",
        run=str(loop.out),
        policies=policies,
        tokenizer=loop.files.tokenizer,
        prompts=[loop.half("test")],
        **loop.judges(last),
        out=out,
        **pairs,
        steps=steps or None,
        answers_per_prompt=loop.answers_per_prompt,
        max_new_tokens=loop.sampling.max_new_tokens,
        seed=loop.seed,
    )
    inputs = (
        *policies.values(),
        *steps.values(),
        loop.files.tokenizer,
        loop.half("test"),
        *loop.judges(last).values(),
        *loop.files.helpful_val,
        *loop.files.safety_val,
    )
    about = "all versions on prompts that nothing was chosen by"
    return Stage("compare", about, command, inputs, (out,), 20, derived=True)


def ppo_steps(loop: Loop, version: int) -> dict[str, str]:
    """What PPO began with and what it ended with, in a version that has it (fig. 11 shows both of V5)."""
    if version < loop.ppo_from:
        return {}
    return {
        f"v{version} without PPO": loop.tuned(version),
        f"v{version} with PPO": loop.at(version, "ppo/best.ckpt"),
    }


def report_stage(loop: Loop) -> Stage:
    """Drawn anew each time: it reads every stage's curves, judges, ledgers and manifests."""
    out = str(loop.out)
    made = (str(loop.out / "results.json"),), (str(loop.out / "report.html"),)
    return Stage("report", "draw the figures", tool("report", run=out), *made, 3, derived=True, always=True)


def config_file(loop: Loop, entry: str) -> str:
    """A config of the user where the path exists, else the run's copy of a packaged one."""
    return entry if Path(entry).exists() else str(loop.out / "configs" / entry)
