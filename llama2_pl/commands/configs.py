"""`llama2-pl configs`."""

from __future__ import annotations

from importlib.resources import files


def show() -> None:
    """Print the folder of the packaged configs: where stage/, size/ and trainer/ lie in this installation."""
    print(files("llama2_pl.configs"))
