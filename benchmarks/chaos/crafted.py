"""The crafted files of tests/security, each opened in a process of its own."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chaos import processes
from benchmarks.chaos.tiny import ROOT

sys.path.append(str(ROOT / "tests" / "security"))
import corpus  # type: ignore[import-not-found]


def open_all(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Counts by kind of file, and what was not refused as it should be."""
    kinds = {
        "checkpoints": corpus.CHECKPOINTS,
        "sharded folders": corpus.SHARDED,
        "data files": corpus.READERS,
    }
    rows, problems = {}, []
    for kind, crafts in kinds.items():
        row = {"files": 0, "refused": 0, "commands run": 0}
        for craft in crafts:
            answer, ran = _open(craft, folder / craft.__name__)
            row["files"] += 1
            row["refused"] += answer == "refused"
            row["commands run"] += ran
            if ran or answer != "refused":
                problems.append(f"{craft.__name__}: {answer}{', and its command ran' * ran}")
        rows[kind] = row
    return rows, problems


def _open(craft: Callable, folder: Path) -> tuple[str, bool]:
    """What came of one file, and whether its command ran."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def question() -> str:
        crafted = craft(folder)
        try:
            crafted.open()
        except ValueError as error:
            found = re.search(crafted.refusal, str(error))
            return "refused" if found else f"refused with other words: {error}"
        return "opened"

    return processes.ask(question, folder, folder / "log"), corpus.marker(folder).exists()
