"""What docs/faults.md and docs/security.md name as their tests is there."""

from __future__ import annotations

import re

import pytest

from benchmarks.chaos.tiny import ROOT


def named(document: str) -> list[str]:
    return re.findall(r"`(tests/[\w/.]+(?:::\w+)?)`", (ROOT / document).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("document", "least"), [("docs/faults.md", 40), ("docs/security.md", 12)])
def test_every_test_that_a_document_names_exists(document: str, least: int) -> None:
    tests = named(document)
    assert len(tests) >= least
    for test in tests:
        file, _, function = test.partition("::")
        assert (ROOT / file).exists(), test
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_every_case_has_a_row_in_order() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/faults.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 31))
