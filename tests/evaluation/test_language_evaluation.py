"""Perplexity of packed batches."""

from __future__ import annotations

import math

import pytest
import torch

from llama2_pl.data.batches import Batch
from llama2_pl.evaluation.language import perplexity
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel


def make_model(vocab_size: int = 40) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=vocab_size, multiple_of=16, max_seq_len=64)
    return LanguageModel(config)


def make_batch(rows: list[list[int]], counted: list[list[int]]) -> Batch:
    tokens = torch.tensor(rows)
    return Batch(tokens, torch.tensor(counted).bool(), torch.zeros(tokens.shape, dtype=torch.int32))


def test_a_model_that_knows_nothing_has_the_vocabulary_size_as_perplexity():
    model = make_model()
    torch.nn.init.zeros_(model.head.weight)
    result = perplexity(model, [make_batch([[1, 2, 3, 4]], [[0, 1, 1, 1]])])
    assert result["perplexity"] == pytest.approx(40, rel=1e-5)
    assert result["tokens"] == 3


def test_every_token_weighs_the_same_in_uneven_batches():
    model = make_model()
    torch.nn.init.normal_(model.head.weight)
    batches = [
        make_batch([[1, 7, 8, 9, 10], [1, 11, 12, 13, 14]], [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
        make_batch([[1, 20, 21]], [[0, 0, 1]]),
    ]
    nats = []
    for batch in batches:
        for row, mask in zip(batch.tokens, batch.loss_mask, strict=True):
            with torch.no_grad():
                logprobs = model(row[None])[0].log_softmax(-1)
            nats += [-logprobs[t - 1, row[t]].item() for t in range(1, len(row)) if mask[t]]
    result = perplexity(model, batches)
    assert result["loss"] == pytest.approx(sum(nats) / 9, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(sum(nats) / 9), rel=1e-5)


def test_nothing_to_count_is_refused_and_training_mode_is_kept():
    model = make_model()
    with pytest.raises(ValueError, match="no counted token"):
        perplexity(model, [make_batch([[1, 2]], [[0, 0]])])
    assert model.training
