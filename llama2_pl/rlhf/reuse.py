"""What another run already made with the same command and the same inputs is linked, not made again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama2_pl.files import write_json
from llama2_pl.rlhf.stages import Stage, fingerprint, manifest_path, record_of, started_path


def take_over(run: Path, stage: Stage, others: Sequence[Path]) -> Path | None:
    """Link a stage's outputs from the first other run that made just this, and write its manifest; that run, or None.

    The same: the same command and the same bytes of every input, where the run's own folder stands for the other's
    (its name is in the commands and in the configs of each version). A stage that was begun here goes on instead.
    """
    if manifest_path(run, stage).exists() or started_path(run, stage).exists():
        return None
    for other in others:
        theirs = manifest_path(other, stage)
        if other == run or not theirs.exists():
            continue
        here = json.loads(moved(theirs.read_text(encoding="utf-8"), other, run))
        if here["command"] == list(stage.command) and _same_inputs(stage, here, run, other):
            for path in stage.outputs:
                _link_all(moved(path, run, other), path)
            _copy_curves(other / stage.name, run / stage.name)
            now = record_of(stage, inputs=stage.inputs, outputs=stage.outputs)
            made = {"made_in": str(other), "energy": None}  # spent, and counted, there
            write_json(manifest_path(run, stage), {**here, **now, **made})
            return other
    return None


def moved(text: str, run: Path, to: Path) -> str:
    """A text that names files of one run, as the other would have it."""
    return text.replace(f"{run}/", f"{to}/")


def _same_inputs(stage: Stage, theirs: dict[str, Any], run: Path, other: Path) -> bool:
    return set(theirs["inputs"]) == set(stage.inputs) and all(
        fingerprint(path) == theirs["inputs"][path] or _same_config(Path(path), run, other)
        for path in stage.inputs
    )


def _same_config(path: Path, run: Path, other: Path) -> bool:
    """The version's own configs hold the run's paths."""
    twin = Path(moved(str(path), run, other))
    if path.suffix != ".yaml" or twin == path or not (path.is_file() and twin.is_file()):
        return False
    return moved(twin.read_text(encoding="utf-8"), other, run) == path.read_text(encoding="utf-8")


def _link_all(source: str, target: str) -> None:
    """An output and what lies beside it under its name (a checkpoint's hash)."""
    for path in (Path(source), *Path(source).parent.glob(f"{Path(source).name}.*")):
        link(path, Path(target).parent / path.name)


def _copy_curves(source: Path, target: Path) -> None:
    """What the report draws of a stage. Copies: a stage made again here must not write into the other run's files.

    Not the carbon ledger: the energy was spent there.
    """
    if (source / "metrics").is_dir():
        shutil.copytree(source / "metrics", target / "metrics", dirs_exist_ok=True)
    if (source / "doctor.jsonl").is_file():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / "doctor.jsonl", target / "doctor.jsonl")


def link(source: Path, target: Path) -> None:
    """The same file or folder under another name: hard links where the disk has them, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
