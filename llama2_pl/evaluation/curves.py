"""Read what the CSVLogger left on disk."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple


class Curve(NamedTuple):
    """One logged quantity: x are steps, y values, both in order of step."""

    x: list[float]
    y: list[float]


def read_curve(folder: Path, key: str, x_key: str = "step") -> Curve:
    """`key` from every CSVLogger version below a folder; a later version (a resumed run) wins where steps meet."""
    points: dict[float, float] = {}
    for path in sorted(folder.rglob("metrics.csv"), key=_version):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                x, y = row.get(x_key), row.get(key)
                if x and y and math.isfinite(float(y)):
                    points[float(x)] = float(y)
    steps = sorted(points)
    return Curve(steps, [points[step] for step in steps])


def _version(path: Path) -> tuple[str, int]:
    stem, _, number = path.parent.name.rpartition("_")
    return str(path.parent.parent / stem), int(number) if number.isdigit() else -1
