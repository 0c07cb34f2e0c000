"""The folder of real files, where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    root = Path(__file__).parents[2]
    folder = root / os.environ.get("LLAMA2_PL_SHARED_DATA", "../shared/data")
    if not (folder / "sft").is_dir():
        pytest.skip(f"no {folder}: set LLAMA2_PL_SHARED_DATA")
    return folder
