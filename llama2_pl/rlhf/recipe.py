"""Run a whole recipe: a YAML list of stages with its stage configs beside it.

`$RUN` in the recipe and in its configs stands for the run's folder, `$DATA` for a data folder and `$SEED` for a number
that the user gives, `$STDLIB` for Python's own source, `$CONFIGS` for the folder with the filled-in configs. Those are
written to `<run>/configs`: the run keeps what made it, and every command can be typed again as it stands.
"""

from __future__ import annotations

import itertools
import os
import shlex
import sysconfig
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.rlhf.runner import holding, run_stages
from llama2_pl.rlhf.stages import Stage, manifest_path, refuse_wide_outputs, remove, up_to

WITH_HARDWARE = {
    *("collect", "distill", "evaluate", "gatt", "gatt study", "rlhf", "rlhf study"),
    *("benchmark", "refusals measure", "safety scores"),
    *(f"rlhf {name}" for name in ("judges", "temperature", "pool", "choose", "compare")),
}
KEYS = {"name", "about", "command", "inputs", "outputs", "share", "always"}


def configs_folder(name: str) -> Path:
    """A folder of the packaged configs: from a checkout or from an installed wheel alike."""
    root = Path(__file__).parents[1]
    for folder in (root.parent / "configs" / name, root / "configs" / name):
        if folder.is_dir():
            return folder
    raise ValueError(
        f"no configs/{name} beside the package {root}; reinstall llama2-pl or give the recipe's path"
    )


def read_recipe(path: Path, variables: dict[str, str]) -> list[Stage]:
    """The stages of a recipe file with its variables filled in."""
    text = _fill(path, variables)
    rows = (yaml.safe_load(text) or {}).get("stages")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: no 'stages'; a recipe is a list of stages with {', '.join(sorted(KEYS))}")
    return [_stage(path, number, row) for number, row in enumerate(rows, 1)]


def _stage(path: Path, number: int, row: dict) -> Stage:
    unknown, missing = set(row) - KEYS, {"name", "command", "outputs"} - set(row)
    if unknown or missing:
        what = f"unknown key {min(unknown)!r}" if unknown else f"missing key {min(missing)!r}"
        raise ValueError(f"{path}: stage {number}: {what}; a stage has {', '.join(sorted(KEYS))}")
    return Stage(
        name=row["name"],
        about=row.get("about", row["name"]),
        command=tuple(shlex.split(row["command"])),
        inputs=tuple(row.get("inputs", ())),
        outputs=tuple(row["outputs"]),
        share=float(row.get("share", 1.0)),
        always=row.get("always", False),
    )


def _fill(path: Path, variables: dict[str, str]) -> str:
    try:
        return Template(path.read_text(encoding="utf-8")).substitute(variables)
    except KeyError as error:
        raise ValueError(f"{path}: ${error.args[0]} is not set; it needs --{error.args[0].lower()}") from None


def filled_configs(source: Path, variables: dict[str, str], target: Path) -> dict[Path, str]:
    """The text of each YAML of a recipe's folder with its variables filled in, by its path in the target folder."""
    return {target / path.name: _fill(path, variables) for path in sorted(source.glob("*.yaml"))}


def execute(args: list[str]) -> None:
    """Run one command of `llama2-pl` in this process; of what is going on the stages tell themselves."""
    from llama2_pl.cli import main  # the CLI registers our commands: imported when one runs, not before

    os.environ.setdefault("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        # Every training of a recipe goes on where it stopped, and the first time there is nothing to go on from.
        warnings.filterwarnings("ignore", message=r"no last\.ckpt in ")
        main(args)


def refuse_secrets(config: Any) -> None:
    """As `fit` does, before anything of it is printed or written: ValueError without the value of a password or key."""
    from llama2_pl.cli import refuse_secrets as refuse

    refuse(config)


def refuse_secret_options(stages: Sequence[Stage]) -> None:
    """A stage's command is printed, and kept in its manifest."""
    for stage in stages:
        option = "command"
        for word in stage.command:
            if word.startswith("--"):
                option, _, word = word.removeprefix("--").partition("=")
            refuse_secrets({option: _parts(word)})


def _parts(word: str) -> Any:
    """The mapping or list that an option's value stands for, or the value as it is."""
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    return value if isinstance(value, (dict, list)) else word


def recipe(
    recipe: str,
    out: str,
    data: str | None = None,
    extra: list[str] | None = None,
    until: str | None = None,
    fresh: bool = False,
    seed: int = 1,
    hardware: Hardware = HARDWARE,
) -> None:
    """Run a recipe; finished stages are skipped, an interrupted one goes on.

    Args:
        recipe: a recipe YAML, or the name of a packaged one (demo, real, gatt, safety, study).
        out: the run's folder.
        data: folder that $DATA stands for.
        extra: options added to every `fit` and `predict` command, for example --trainer.max_steps=4.
        until: name of the last stage to run.
        fresh: remove all that is in the run's folder first.
        seed: what $SEED stands for.
        hardware: device and precision of the commands that are no training; training's are Trainer options in `extra`.
    """
    path, run = recipe_file(recipe), Path(out)
    variables = variables_of(run, data, seed)
    stages = on_hardware(_with_extra(read_recipe(path, variables), extra or []), hardware)
    stages = up_to(stages, until)
    refuse_secret_options(stages)
    refuse_wide_outputs(run, stages)
    configs = filled_configs(path.parent, variables, run / "configs")
    started = time.monotonic()
    with holding(run):
        if fresh and run.exists():
            for left in run.iterdir():  # and not the folder: it may be the working directory, or a link
                remove(left)
        run_stages(run, stages, execute, configs=configs)
    print(f"all {len(stages)} stages stand in {run} ({(time.monotonic() - started) / 60:.1f} min this time)")
    if any(run.glob("*/wandb/offline-run-*")):
        print(f"their W&B runs are offline: wandb sync {run}/*/wandb/offline-run-*")


def is_made(recipe: str, out: str, until: str | None = None) -> bool:
    """Whether every stage was finished in a run's folder, with whatever command and inputs."""
    run = Path(out)
    stages = up_to(read_recipe(recipe_file(recipe), variables_of(run)), until)
    return all(manifest_path(run, stage).exists() for stage in stages)


def recipe_file(recipe: str) -> Path:
    """The YAML file of a recipe that is given by its path or its name."""
    named = Path(recipe).suffix not in {".yaml", ".yml"}
    path = configs_folder(recipe) / "recipe.yaml" if named else Path(recipe)
    if not path.exists():
        raise ValueError(
            f"{recipe}: no such recipe; give a YAML file or the name of a packaged recipe: "
            "demo, real, gatt, safety, study"
        )
    return path


def variables_of(run: Path, data: str | None = None, seed: int = 1) -> dict[str, str]:
    """What the $NAMES of a recipe and its configs stand for."""
    stdlib = sysconfig.get_paths()["stdlib"]
    known = {"RUN": str(run), "CONFIGS": str(run / "configs"), "STDLIB": stdlib, "SEED": str(seed)}
    return known | ({"DATA": data} if data else {})


def _with_extra(stages: list[Stage], extra: list[str]) -> list[Stage]:
    return [
        s._replace(command=(*s.command, *extra)) if s.command[0] in {"fit", "predict"} else s for s in stages
    ]


def on_hardware(stages: Sequence[Stage], hardware: Hardware) -> list[Stage]:
    """The stages with the options of where models run, in the commands that take them."""

    def words(stage: Stage) -> list[str]:
        name = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), stage.command))
        return hardware.words() if name in WITH_HARDWARE else []

    return [stage._replace(command=(*stage.command, *words(stage))) for stage in stages]


def demo(
    out: str = "runs/demo",
    extra: list[str] | None = None,
    until: str | None = None,
    fresh: bool = False,
    hardware: Hardware = HARDWARE,
) -> None:
    """The whole recipe on the embedded data, about ten minutes on two cores; ends with <out>/report.html.

    Args:
        out: the run's folder; a second run goes on where the first stopped.
        extra: options added to every `fit` and `predict` command.
        until: name of the last stage to run.
        fresh: start over.
        hardware: device and precision of the other commands.
    """
    recipe("demo", out, extra=extra, until=until, fresh=fresh, hardware=hardware)
    print(f"report: {out}/report.html")
    print(
        f"talk to it: llama2-pl chat --checkpoint {out}/ppo/best.ckpt --tokenizer {out}/tokenizer/tokenizer.model"
    )
