"""Rows read without their padding give what padded ones give, and less is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llama2_pl.data.batches import Packing
from llama2_pl.data.unpadded import counted_lengths, pack_padded, read
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.modules.experience import policy_logprobs, state_values
from tests.objectives.plain import token_logprobs

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=61, multiple_of=16, max_seq_len=64
)
# prompt and answer of each row; row 3 has an answer that nothing is learned from
LENGTHS = [(3, 2), (4, 12), (2, 1), (6, 0), (5, 4), (1, 7)]


def plan(mask: torch.Tensor, longest: int) -> Packing | None:
    return pack_padded(counted_lengths(mask), mask.shape[1], longest)


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    tokens, mask = torch.zeros(6, 16, dtype=torch.int64), torch.zeros(6, 16, dtype=torch.bool)
    for n, (prompt, answer) in enumerate(LENGTHS):
        tokens[n, : prompt + answer] = torch.randint(3, 61, (prompt + answer,))
        mask[n, prompt : prompt + answer] = True
    return tokens, mask


def test_every_token_up_to_the_last_that_counts_is_read_once(rows) -> None:
    _, mask = rows
    found = plan(mask, 64)
    assert found is not None
    read_of = [sum(lengths) if lengths[1] else 0 for lengths in LENGTHS]
    assert sorted(found.source.tolist()) == [
        16 * n + t for n, length in enumerate(read_of) for t in range(length)
    ]
    assert len(set(found.target.tolist())) == len(found.target) == int((found.document_ids >= 0).sum()) == 41
    # one row of 41, and 7 to be aligned, where 96 positions were; 64 at most, and four of the longest are 64
    assert found.document_ids.shape == (1, 48)
    assert plan(mask, 20).document_ids.shape[1] <= 20


def test_log_probabilities_values_and_gradients_are_those_of_the_padded_rows(rows) -> None:
    tokens, mask = rows
    torch.manual_seed(1)
    policy, value = LanguageModel(CONFIG), ScalarModel(CONFIG)
    weights = torch.randn(mask.shape)
    logits, every = policy(tokens), value(tokens)
    expected = (
        token_logprobs(logits / 0.7, tokens) * mask,
        torch.nn.functional.pad(every[:, :-1], (1, 0)) * mask,
    )
    results = []
    for packed in (None, plan(mask, 64), plan(mask, 20)):
        policy.zero_grad()
        value.zero_grad()
        logprobs, entropy = policy_logprobs(policy, tokens, mask, 0.7, packed)
        values = state_values(value, tokens, mask, packed)
        for found, wanted in zip((logprobs, values), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        ((logprobs + values) * weights).sum().backward()
        gradients = [p.grad.clone() for network in (policy, value) for p in network.parameters()]
        results.append([logprobs.detach(), entropy, values.detach(), *gradients])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_rows_with_hardly_any_padding_stay_as_they_are() -> None:
    mask = torch.ones(4, 16, dtype=torch.bool)
    assert plan(mask, 64) is None
    mask[0, 10:] = False  # 6 of 64: less than a tenth
    assert plan(mask, 64) is None
    assert plan(torch.zeros(4, 16, dtype=torch.bool), 64) is None
    seen = []
    read(lambda tokens: seen.append(tokens.shape) or tokens, torch.zeros(4, 16), None)
    assert seen == [(4, 16)]


@pytest.mark.parametrize("network", [LanguageModel, ScalarModel])
def test_a_row_longer_than_the_context_is_refused_packed_too(network) -> None:
    lengths = np.array([65, 5, 5, 5])
    packing, model = pack_padded(lengths, 65, 130), network(CONFIG)
    assert packing is not None
    for forward in (model, getattr(model, "hidden", model)):
        with pytest.raises(ValueError, match=r"a row of 65 tokens and max_seq_len is 64; shorten"):
            read(forward, torch.zeros(4, 65, dtype=torch.int64), packing)
    shorter = pack_padded(lengths - 1, 64, 128)
    assert read(model, torch.zeros(4, 64, dtype=torch.int64), shorter).isfinite().all()


def test_a_place_that_the_packing_leaves_out_is_refused(rows) -> None:
    tokens, mask = rows
    packing, model = plan(mask, 64), ScalarModel(CONFIG)
    assert packing is not None
    for place in (2 * 16 + 3, 3 * 16):  # behind the end of row 2; in row 3, which has no answer
        assert place not in packing.source.tolist()
        with pytest.raises(IndexError):
            read(model, tokens, packing, torch.tensor([place]))
