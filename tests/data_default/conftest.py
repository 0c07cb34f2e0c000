"""One small data set on disk for the whole folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2_pl.data.default import stdlib_text, write_default_data


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default data at a tenth of its size."""
    folder = tmp_path_factory.mktemp("default")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib_text, "CODE_CHARACTERS", 200_000)
        patch.setattr(stdlib_text, "DOC_CHARACTERS", 100_000)
        write_default_data(str(folder), seed=0, scale=0.1)
    return folder
