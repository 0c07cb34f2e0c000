"""What another run already made with the same command and the same inputs is linked, not made again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from llama2_pl.files import write_json
from llama2_pl.rlhf.fingerprints import fingerprint
from llama2_pl.rlhf.stages import Stage, is_done, manifest_path, record_of, started_path


def take_over(run: Path, stage: Stage, others: Sequence[Path]) -> Path | None:
    """Link a stage's outputs from the first other run that made just this, and write its manifest; that run, or None.

    The same: version, command and the bytes of every input, where the run's own folder stands for the other's (its name
    is in the commands and in the configs of each version). Nothing of the other may have changed since its manifest was
    written. A stage that was begun here goes on instead.
    """
    if manifest_path(run, stage).exists() or started_path(run, stage).exists():
        return None
    for other in others:
        twin = _twin(stage, run, other)
        if other == run or not is_done(other, twin) or not _same_inputs(run, stage, other, twin):
            continue
        for theirs, ours in zip(twin.outputs, stage.outputs, strict=True):
            _link_all(theirs, ours)
        _copy_curves(other / stage.name, run / stage.name)
        made = json.loads(manifest_path(other, twin).read_text(encoding="utf-8"))
        now = record_of(stage, inputs=stage.inputs, outputs=stage.outputs)
        spent = {"made_in": str(other), "energy": None}  # spent, and counted, there
        write_json(manifest_path(run, stage), {**made, **now, **spent})
        return other
    return None


def moved(text: str, run: Path, to: Path) -> str:
    """A text that names files of one run, as the other would have it."""
    return text.replace(f"{run}/", f"{to}/")


def _twin(stage: Stage, run: Path, other: Path) -> Stage:
    """The stage as the other run would have it."""
    words = {
        key: tuple(moved(word, run, other) for word in getattr(stage, key))
        for key in ("command", "inputs", "outputs")
    }
    return stage._replace(**words)


def _same_inputs(run: Path, stage: Stage, other: Path, twin: Stage) -> bool:
    return all(
        fingerprint(ours) == fingerprint(theirs) or _same_config(run, Path(ours), other, Path(theirs))
        for ours, theirs in zip(stage.inputs, twin.inputs, strict=True)
    )


def _same_config(run: Path, ours: Path, other: Path, theirs: Path) -> bool:
    """The version's own configs hold the run's paths."""
    if not (ours.suffix == ".yaml" and ours.is_file() and theirs.is_file()):
        return False
    return moved(theirs.read_text(encoding="utf-8"), other, run) == ours.read_text(encoding="utf-8")


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
