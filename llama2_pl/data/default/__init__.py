"""The embedded default data set and its oracle."""

from llama2_pl.data.default.write import write_default_data

__all__ = ["write_default_data"]
