"""A recipe is a list of stages; a stage is a `llama2-pl` command with declared inputs and outputs.

A finished stage leaves a manifest `<run>/manifests/<stage>.json` with the command, the hash of every input and output,
and the seconds it took. A second run skips each stage whose manifest still matches.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llama2_pl import __version__
from llama2_pl.files import write_json


class Stage(NamedTuple):
    """One step of a recipe.

    Attributes:
        name: also the name of its manifest.
        about: one line for the person who watches.
        command: arguments of `llama2-pl`, exactly as they can be typed.
        inputs: files or folders that the stage reads; a change of any runs it again.
        outputs: files or folders that must exist afterwards.
        share: expected part of the whole recipe's time, any unit; only for the time left that is shown.
    """

    name: str
    about: str
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    share: float = 1.0

    @property
    def shell(self) -> str:
        return shlex.join(["llama2-pl", *self.command])


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and hashes of the files below a folder. Missing: an empty string."""
    path = Path(path)
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    if not path.is_dir():
        return ""
    names = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    listing = "\n".join(f"{name} {fingerprint(path / name)}" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def manifest_path(run: Path, stage: Stage) -> Path:
    return run / "manifests" / f"{stage.name}.json"


def is_done(run: Path, stage: Stage) -> bool:
    """True when the stage's manifest names the same command, the same inputs and the outputs that are on disk."""
    path = manifest_path(run, stage)
    if not path.exists():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return (
        manifest.get("command") == list(stage.command)
        and manifest.get("version") == __version__
        and manifest.get("inputs") == {name: fingerprint(name) for name in stage.inputs}
        and manifest.get("outputs") == {name: fingerprint(name) for name in stage.outputs}
    )


def run_stage(run: Path, stage: Stage, execute: Callable[[list[str]], None]) -> float:
    """Run one stage, check its outputs, write its manifest; the seconds it took."""
    missing = [name for name in stage.inputs if not Path(name).exists()]
    if missing:
        raise ValueError(
            f"stage {stage.name}: input {missing[0]} is missing; run the stage that makes it first"
        )
    inputs = {name: fingerprint(name) for name in stage.inputs}
    started = time.monotonic()
    execute(list(stage.command))
    seconds = time.monotonic() - started
    outputs = {name: fingerprint(name) for name in stage.outputs}
    absent = [name for name, digest in outputs.items() if not digest]
    if absent:
        raise ValueError(
            f"stage {stage.name} ended without writing {absent[0]}; its command was: {stage.shell}"
        )
    manifest = {
        "stage": stage.name,
        "version": __version__,
        "command": list(stage.command),
        "shell": stage.shell,
        "inputs": inputs,
        "outputs": outputs,
        "seconds": seconds,
    }
    write_json(manifest_path(run, stage), manifest)
    return seconds


def run_stages(
    run: str | Path,
    stages: Sequence[Stage],
    execute: Callable[[list[str]], None],
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Run the stages in order, skipping what is done; seconds by stage (0 for a skipped one).

    Args:
        run: the run's folder; manifests go below it.
        execute: runs one command's arguments, `llama2_pl.cli.main` in use.
        say: where progress lines go.
    """
    run, seconds, pace = Path(run), {}, None
    left = sum(stage.share for stage in stages)
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if is_done(run, stage):
            say(f"{title}: done before, skipped")
            seconds[stage.name] = 0.0
            left -= stage.share
            continue
        eta = f" · about {_minutes(left * pace)} left" if pace else ""
        say(f"{title}: {stage.about}{eta}\n    $ {stage.shell}")
        seconds[stage.name] = run_stage(run, stage, execute)
        left -= stage.share
        ran = [s for s in stages[:number] if seconds[s.name] > 0]
        pace = sum(seconds[s.name] for s in ran) / max(sum(s.share for s in ran), 1e-9)
        say(f"    {stage.name} took {seconds[stage.name]:.0f} s")
    return seconds


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
