"""The short version of `make chaos`, docs/faults.md: one kill of each stage, flipped bits, cut files."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from benchmarks.chaos import tiny
from benchmarks.chaos.__main__ import CHECKPOINTS, SHORT


@pytest.mark.timeout(400)
def test_a_killed_run_of_each_stage_ends_as_one_left_alone_and_no_damage_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--short"],
        cwd=tiny.ROOT, capture_output=True, text=True, timeout=380,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for name in (*SHORT[0], *CHECKPOINTS):
        assert re.search(rf"^\| {name}", done.stdout, re.MULTILINE), name
    assert "0 failures" in done.stdout
