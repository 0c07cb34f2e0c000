"""The embedded default data set and its oracle.

A small generated world with known truth and the text that every CPython carries make everything that the recipe needs,
without a download: `write_default_data` writes it, `oracle` judges any answer to its prompts.
"""

from llama2_pl.data.default.oracle import Judgement, gold_score, judge, rate
from llama2_pl.data.default.write import write_default_data

__all__ = ["Judgement", "gold_score", "judge", "rate", "write_default_data"]
