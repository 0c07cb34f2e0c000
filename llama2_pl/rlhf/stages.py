"""A recipe is a list of stages; a stage is a `llama2-pl` command with declared inputs and outputs.

A finished stage leaves a manifest `<run>/manifests/<stage>.json` with the command, the hash of every input and output,
the seconds of the last of its `attempts` (a killed one leaves none), the energy of all of them, and the tokens behind
its result: steps that a kill lost and a later attempt took again count once. A second run skips each stage whose
manifest still matches. One that no longer matches is made again from its start (a recipe), or refused with the file
that changed (`rlhf`).
"""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama2_pl import __version__
from llama2_pl.rlhf.fingerprints import digest, fingerprint, listing, remember, sha256, states

Texts = Mapping[Path, str]  # configs that are still to be written, by where they will stand


class Stage(NamedTuple):
    """One step of a recipe.

    Attributes:
        name: also the name of its manifest.
        about: one line for the person who watches.
        command: arguments of `llama2-pl`, exactly as they can be typed.
        inputs: files or folders that the stage reads; a change of any runs it again.
        outputs: files or folders that must exist afterwards, the checkpoint it would resume from among them: where the
            stage is made again they are removed first.
        share: expected part of the whole recipe's time, any unit; only for the time left that is shown.
        derived: nothing depends on it and it is cheap, so it is made again without asking where others are refused.
        always: it is never skipped: it takes seconds and reads the whole run, or its command itself skips what is done.
    """

    name: str
    about: str
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    share: float = 1.0
    derived: bool = False
    always: bool = False

    @property
    def shell(self) -> str:
        return shlex.join(["llama2-pl", *self.command])


def _listing(folder: Path, coming: Texts) -> dict[str, str]:
    """The hash of each file that is, or is to come, below a folder."""
    found = listing(folder)
    found |= {str(p.relative_to(folder)): sha256(text) for p, text in coming.items() if folder in p.parents}
    return dict(sorted(found.items()))


def _hashes(paths: Sequence[str], coming: Texts) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The hash of each path, and the hash of each file of those that are folders."""
    listings = {
        name: _listing(Path(name), coming)
        for name in paths
        if Path(name).is_dir() or any(Path(name) in path.parents for path in coming)
    }

    def hashed(name: str) -> str:
        if name in listings:
            return digest(listings[name])
        return sha256(coming[Path(name)]) if Path(name) in coming else fingerprint(name)

    return {name: hashed(name) for name in paths}, listings


def manifest_path(run: Path, stage: Stage) -> Path:
    return run / "manifests" / f"{stage.name}.json"


def started_path(run: Path, stage: Stage) -> Path:
    """What an unfinished stage was started with; gone once it is finished."""
    return manifest_path(run, stage).with_suffix(".started")


def record_of(stage: Stage, coming: Texts | None = None, **paths: Sequence[str]) -> dict[str, Any]:
    """The stage as it would be done now: command, and hashes under the given keys ("inputs", "outputs").

    The configs that are still to come count as if they were written. "states" are those of the files behind the hashes,
    taken before them.
    """
    record: dict[str, Any] = {
        "stage": stage.name,
        "version": __version__,
        "command": list(stage.command),
        "shell": stage.shell,
        "files": {},
        "states": states(itertools.chain(*paths.values())),
    }
    for key, names in paths.items():
        record[key], listings = _hashes(names, coming or {})
        record["files"] |= listings
    return record


def changes(run: Path, stage: Stage, coming: Texts | None = None) -> list[str]:
    """What differs from when the stage was done, or begun, in words; nothing where it was neither."""
    for path, keys in (
        (manifest_path(run, stage), ("inputs", "outputs")),
        (started_path(run, stage), ("inputs",)),
    ):
        if path.exists():
            then = json.loads(path.read_text(encoding="utf-8"))
            _remember(then)
            now = record_of(stage, coming, **{key: getattr(stage, key) for key in keys})
            return _differences(then, now, keys)
    return []


def _remember(record: dict[str, Any]) -> None:
    """What a manifest says of files need not be read from them again while they stay as they were."""
    hashes = {**record.get("inputs", {}), **record.get("outputs", {})}
    for folder, names in record.get("files", {}).items():
        hashes |= {str(Path(folder) / name): sha for name, sha in names.items()}
    remember(hashes, record.get("states", {}))


def _differences(then: dict[str, Any], now: dict[str, Any], keys: Sequence[str]) -> list[str]:
    found = []
    if then.get("version") != now["version"]:
        found.append(f"it was made by llama2-pl {then.get('version')}, this is {now['version']}")
    if (old := then.get("command", [])) != now["command"]:
        had, has = (
            [w for w in one if w not in other]
            for one, other in ((old, now["command"]), (now["command"], old))
        )
        found.append(f"its command had {shlex.join(had) or 'less'} and now has {shlex.join(has) or 'less'}")
    for key in keys:
        old, new = then.get(key, {}), now[key]
        for name in sorted(new):  # what it no longer reads or makes is nobody's any more
            if old.get(name) != new[name]:
                files = (record.get("files", {}).get(name, {}) for record in (then, now))
                found.append(f"{key[:-1]} {_changed_file(name, new.get(name), *files)}")
    return found


def _changed_file(path: str, sha: str | None, then: dict[str, str], now: dict[str, str]) -> str:
    """The path, or the first file below it, that is not what it was."""
    name = next((n for n in sorted({*then, *now}) if then.get(n) != now.get(n)), None)
    if name is not None:
        path, sha = str(Path(path) / name), now.get(name)
    return f"{path} changed" if sha or Path(path).exists() else f"{path} is gone"


def is_done(run: Path, stage: Stage) -> bool:
    """True when the stage's manifest names the same command, the same inputs and the outputs that are on disk."""
    return manifest_path(run, stage).exists() and not changes(run, stage)


def clear(run: Path, stage: Stage) -> None:
    """Remove what a stage left: its outputs, the curves of its metrics and doctor, last its manifest.

    What lies beside an output under its name (a checkpoint's hash, the one before it) goes with it. The carbon ledger
    stays: the energy was spent.
    """
    made = [Path(name) for name in stage.outputs]
    beside = [path for output in made for path in output.parent.glob(f"{output.name}.*")]
    curves = [run / stage.name / name for name in ("metrics", "doctor.jsonl")]
    for path in (*made, *beside, *curves, manifest_path(run, stage), started_path(run, stage)):
        remove(path)


def remove(path: Path) -> None:
    """A file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def depending(stages: Sequence[Stage], name: str) -> list[Stage]:
    """A stage and every later one that reads what it makes."""
    found: list[Stage] = []
    for stage in stages[index_of(stages, name, "--redo") :]:
        made = [path for earlier in found for path in earlier.outputs]
        if not found or any(_overlap(i, path) for i in stage.inputs for path in made):
            found.append(stage)
    return found


def _overlap(one: str, other: str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def index_of(stages: Sequence[Stage], name: str, option: str) -> int:
    """Where a stage stands in the list; ValueError that names the option and the stages there are."""
    names = [stage.name for stage in stages]
    if name not in names:
        raise ValueError(f"{option} {name}: no such stage; the recipe has {', '.join(names)}")
    return names.index(name)


def up_to(stages: Sequence[Stage], until: str | None) -> list[Stage]:
    """The stages until the named one, that one included; None: all."""
    return list(stages) if until is None else list(stages[: index_of(stages, until, "--until") + 1])


def refuse_wide_outputs(run: Path, stages: Sequence[Stage]) -> None:
    """Outputs are removed where their stage is made again: none may hold what the stage reads, or the manifests."""
    for stage in stages:
        for path, kept in itertools.product(stage.outputs, (*stage.inputs, str(run / "manifests"))):
            if Path(kept).is_relative_to(path):
                raise ValueError(
                    f"stage {stage.name}: its output {path} holds {kept}, which it does not make; name the files or "
                    "folders that it makes"
                )
