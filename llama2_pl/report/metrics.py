"""Read what the stages left on disk, and smooth it."""

from __future__ import annotations

import json
from pathlib import Path


def read_json(path: Path) -> dict:
    """The JSON object in a file; an empty one where the file is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction, the usual smoothing of loss curves."""
    smoothed, average = [], 0.0
    for n, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**n))
    return smoothed
