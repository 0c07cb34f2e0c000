"""A function fits on a screen: none above 60 lines, docstring and signature counted."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 60


def long_functions(source: str, limit: int = LIMIT) -> list[tuple[str, int]]:
    """Name and length of each function above the limit."""
    lengths = [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [(name, length) for name, length in lengths if length > limit]


def test_no_function_is_above_60_lines() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name} has {length} lines"
        for folder in ("llama2_pl", "callbacks", "benchmarks", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ".peers" not in path.parts  # the environments of `make bench-peers`
        for name, length in long_functions(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_function_of_61_lines_is_found_and_one_of_60_is_not() -> None:
    def source(lines: int) -> str:
        return "def f():\n" + "    pass\n" * (lines - 1)

    assert long_functions(source(61)) == [("f", 61)]
    assert long_functions(source(60)) == []
