"""The least of what a data module's number may be, where that is not 1."""

from __future__ import annotations


def require_at_least(least: int, **values: int) -> None:
    """Raise ValueError naming the first option that is below ``least``."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"data.{name} is {value}: give {least} or more")
