"""Cleaning a corpus: rules on texts, duplicates, personal data, and the ledger of what they took."""

from llama2_pl.data.cleaning.clean import clean_corpus

__all__ = ["clean_corpus"]
