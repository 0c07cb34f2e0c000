"""Flipped bits and cut files in checkpoints: never loaded, named, and the one before stands in."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chaos.compare import differing, read
from llama2_pl.checkpoints.sharded import verified_folder
from llama2_pl.checkpoints.verified import DamagedCheckpoint, VerifiedCheckpointIO
from llama2_pl.modules.answer_files import read_batch

ANSWERS = ("newest", "one before", "refused", "lost", "loaded damaged", "not named")
"""What is loaded after the damage; "newest" where it hit the one before. The last three are failures."""
Damage = Callable[[bytes, random.Random], tuple[bytes, str]]


def flip(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    """One bit, and where."""
    bit = chance.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed), f"bit {bit}"


def cut(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    """The first bytes, one time in five none of them."""
    size = 0 if chance.random() < 0.2 else chance.randrange(len(data))
    return data[:size], f"cut to {size} bytes"


def damage_all(
    checkpoint: Path, folder: Path, ways: dict[str, tuple[Damage, int]], chance: random.Random
) -> tuple[dict[str, Any], list[str]]:
    """Damage copies of a checkpoint and of all that belongs to it; counts by way, and what went wrong.

    Args:
        checkpoint: as a run left it, with the one before beside it.
        folder: to work in.
        ways: how, and how often.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in checkpoint.parent.glob(f"{checkpoint.name}*"):
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / path.name)
    path = folder / checkpoint.name
    before = path.with_name(f"{path.name}.previous")
    whole = {"newest": _load(path)} | ({"one before": _load(before)} if before.exists() else {})
    if before.exists() and not differing(whole["newest"], whole["one before"]):
        raise RuntimeError(
            f"{checkpoint}: the one before holds the same, so nobody could tell which was loaded"
        )
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    problems, rows = [], {}
    for way, (spoil, times) in ways.items():
        row = {"damaged": 0, **dict.fromkeys(ANSWERS, 0)}
        for number in range(times):
            file = files[number % len(files)]
            answer = _one(path, file, spoil, whole, chance)
            row["damaged"] += 1
            row[answer.split(":")[0]] += 1
            if ":" in answer:
                problems.append(f"{file.relative_to(folder)}: {answer}")
        rows[way] = row
    return rows, problems


def damage_answers(
    answers: Path, folder: Path, ways: dict[str, tuple[Damage, int]], chance: random.Random
) -> tuple[dict[str, Any], list[str]]:
    """The same for the files of rejection sampling: no other stands in, each must be refused by name."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(answers, folder)
    files = sorted(folder.glob("batch-*.json"))
    problems, rows = [], {}
    for way, (spoil, times) in ways.items():
        row = {"damaged": 0, **dict.fromkeys(ANSWERS, 0)}
        for number in range(times):
            file = files[number % len(files)]
            answer = _one_answer(file, spoil, chance)
            row["damaged"] += 1
            row[answer.split(":")[0]] += 1
            if ":" in answer:
                problems.append(f"{file.name}: {answer}")
        rows[way] = row
    return rows, problems


def _one_answer(file: Path, spoil: Damage, chance: random.Random) -> str:
    """As `_one`. A bit in the name of the hash leaves the answers as they were, and not checked."""
    original, whole = file.read_bytes(), read_batch(file)
    changed, where = spoil(original, chance)
    file.write_bytes(changed)
    try:
        found = read_batch(file)
        same = all(found.get(key) == value for key, value in whole.items())
        return "newest" if same else f"loaded damaged: {where}: other answers were loaded"
    except ValueError as error:
        return "refused" if file.name in str(error) else f"not named: {where}: {error}"
    finally:
        file.write_bytes(original)


def _one(path: Path, file: Path, spoil: Damage, whole: dict[str, Any], chance: random.Random) -> str:
    """Damage one file, load, put it back. The answer begins with a key of the counts."""
    original = file.read_bytes()
    changed, where = spoil(original, chance)
    file.write_bytes(changed)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            content = _load(path)
    except DamagedCheckpoint as error:
        refused = path.name in str(error) and "one before" not in whole
        return "refused" if refused else f"lost: {where}: nothing could be loaded ({error})"
    finally:
        file.write_bytes(original)
    # a bit in a hash is a bit in the file that it names: nobody can tell which of them changed
    named = any(path.name in str(warning.message) for warning in said)
    found = next((name for name, expected in whole.items() if not differing(expected, content)), None)
    if found is None:
        return f"loaded damaged: {where}: what was loaded is neither the newest nor the one before"
    of_newest = ".previous" not in str(file)
    if of_newest and found == "newest":
        return f"loaded damaged: {where}: the newest was loaded in spite of it"
    if of_newest and not named:
        return f"not named: {where}: no warning names the file"
    return found


def _load(path: Path) -> dict[str, Any]:
    """As a resume reads it."""
    if path.is_dir() or (path.parent / f"{path.name}.previous").is_dir():
        return read(verified_folder(path))
    return VerifiedCheckpointIO().load_checkpoint(path)
