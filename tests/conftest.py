"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """Lightning's launcher leaves MASTER_PORT, LOCAL_RANK and others behind, for a later test's processes to take."""
    with mock.patch.dict(os.environ):
        yield
