"""Case 24: a pair swapped, tied, or of one text, and the bound of the margin."""

from __future__ import annotations

import math

import pytest
import torch

from llama2_pl.model.config import ModelConfig
from llama2_pl.modules import RewardModule
from llama2_pl.objectives.preference import margin_of_rating, ranking_loss

CONFIG = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=32, multiple_of=8, max_seq_len=16)


def scores(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    module = RewardModule(CONFIG)
    module.configure_model()
    return module(tokens, lengths).detach()


def test_swapping_chosen_and_rejected_negates_the_difference() -> None:
    tokens = torch.randint(3, 32, (8, 10), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([10, 7, 5, 9, 10, 6, 8, 4])
    chosen, rejected = scores(tokens, lengths).chunk(2)
    other, one = scores(tokens.roll(4, 0), lengths.roll(4, 0)).chunk(2)
    assert (chosen - rejected).abs().min() > 0
    torch.testing.assert_close(chosen - rejected, -(other - one))


def test_two_equal_answers_have_equal_scores_and_a_finite_loss() -> None:
    tokens = torch.randint(3, 32, (1, 10), generator=torch.Generator().manual_seed(1)).expand(2, 10)
    chosen, rejected = scores(tokens, torch.tensor([10, 10]))
    assert chosen == rejected
    loss = ranking_loss(chosen[None], rejected[None], torch.zeros(1))
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["none", "small", "large"])
def test_the_margin_term_is_between_0_and_3_for_every_rating(kind: str) -> None:
    margins = margin_of_rating(torch.arange(4), kind)  # type: ignore[arg-type]
    assert margins.min() >= 0 and margins.max() <= 3
    far = ranking_loss(torch.tensor([-1e4] * 4), torch.tensor([1e4] * 4), margins)
    assert far.isfinite() and far.item() <= 2e4 + 3
