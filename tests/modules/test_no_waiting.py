"""No step waits for the GPU: each is run on one that is not there (pretend_gpu.py), where waiting is an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modules import pretend_gpu

registration = pytest.importorskip("torch.utils.backend_registration")
pytestmark = pytest.mark.skipif(
    not hasattr(registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no device without numbers",
)

ROOT = Path(__file__).parents[2]


def run(*cases: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.modules.pretend_gpu", *cases]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_a_step_asks_the_gpu_for_nothing():
    cases = [*pretend_gpu.TRAINING, *pretend_gpu.DECODING]
    done = run(*cases)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == cases


def test_what_would_wait_is_noticed():
    done = run(*pretend_gpu.WAITING)
    assert done.stdout.splitlines() == [
        "DataDependentOutputException",
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "FakeTensorDeviceMismatchError",
    ], done.stderr[-4000:]
