"""Case 25: a clock that jumps back, and processes of a killed run, never make energy negative or lose it."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from llama2_pl.callbacks import CarbonFootprint


def train(folder: Path, footprint: CarbonFootprint) -> dict:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=2, limit_val_batches=0, logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[footprint],
    )  # fmt: skip
    trainer.fit(BoringModel(), torch.utils.data.DataLoader(torch.ones(4, 32)))  # type: ignore[arg-type]
    return json.loads((folder / "carbon.json").read_text())["stages"]["sft"]


def test_a_clock_that_jumps_changes_nothing_and_sessions_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year = 3600 * 24 * 365.0
    now, jumps = time.time(), itertools.cycle([0.0, -year, year])
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    rows = [
        train(tmp_path, CarbonFootprint("sft", backend="watts", watts_per_device=100.0)) for _ in range(3)
    ]
    assert [len(row["sessions"]) for row in rows] == [1, 2, 3]
    for before, after in itertools.pairwise([{"hours": 0.0, "kwh": 0.0, "co2e_kg": 0.0}, *rows]):
        assert all(before[key] < after[key] < before[key] + 0.1 for key in ("hours", "kwh", "co2e_kg"))
