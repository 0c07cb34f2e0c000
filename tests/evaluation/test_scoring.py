"""Scores of many rows against each row by itself, and what is read for them."""

from __future__ import annotations

import pytest
import torch

from llama2_pl.evaluation.scoring import (
    score_answers,
    score_padded,
    score_passes,
    score_responses,
    score_rows,
)
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import ScalarModel


@pytest.fixture(scope="module")
def model() -> ScalarModel:
    torch.manual_seed(0)
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, multiple_of=16, max_seq_len=64
    )
    network = ScalarModel(config)
    with torch.no_grad():
        network.head.weight.normal_()
    return network.eval()


@torch.no_grad()
def one_by_one(model: ScalarModel, rows: list[list[int]]) -> list[float]:
    return [model(torch.tensor([row]))[0, -1].item() for row in rows]


def test_a_score_is_the_scalar_at_the_last_real_token_whatever_the_padding(model: ScalarModel) -> None:
    ids, lengths = torch.randint(50, (2, 20)), torch.tensor([5, 20])
    padded = ids.clone()
    padded[0, 5:] = 0
    with torch.no_grad():
        values, scores = model(ids), score_padded(model, ids, lengths, None)
        torch.testing.assert_close(scores, torch.stack([values[0, 4], values[1, 19]]))
        assert torch.equal(score_padded(model, padded, lengths, None), scores)


@pytest.fixture
def read_tokens(model: ScalarModel, monkeypatch) -> list[int]:
    """How many positions each pass reads."""
    found: list[int] = []
    forward = model.backbone.forward
    monkeypatch.setattr(
        model.backbone,
        "forward",
        lambda tokens, **given: found.append(tokens.numel()) or forward(tokens, **given),
    )
    return found


def test_an_answer_is_read_as_far_as_the_context_goes(model):
    rows = [[1, *range(3, 48), *range(3, 23)], [1, 5, 6]]  # 66 and 3 tokens; the context is 64
    assert score_answers(model, rows).tolist() == pytest.approx(
        one_by_one(model, [rows[0][:64], rows[1]]), abs=1e-5
    )


def test_scores_in_batches_equal_scores_one_by_one_and_mode_is_kept(model):
    rows = [[1, 5, 6], [1], [1, 9, 9, 9, 9, 2], [1, 3]]
    model.train()
    scores = score_responses(model, rows, max_batch=3)
    assert model.training
    model.eval()
    assert scores.tolist() == pytest.approx(one_by_one(model, rows), abs=1e-5)


@pytest.mark.parametrize("max_batch", [1, 5, 8, 64])
def test_the_answers_to_a_prompt_are_scored_with_the_prompt_read_once(model, read_tokens, max_batch):
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 50, (count,), generator=generator).tolist()

    prompts = [ids(count) for count in (20, 9, 31, 14)]
    rows = [prompt + ids(1 + (3 * n) % 7) for prompt in prompts for n in range(8)]
    alone = one_by_one(model, rows)
    whole = sum(read_tokens)
    read_tokens.clear()
    found = score_responses(model, rows, max_batch=max_batch)
    assert found.tolist() == pytest.approx(alone, abs=1e-5)
    real = sum(len(prompt) for prompt in prompts) + whole - 8 * sum(len(prompt) for prompt in prompts)
    assert real <= sum(read_tokens) < 0.5 * whole


def test_rows_are_scored_in_passes_of_like_length(model, read_tokens):
    rows = [[3 + n] * (60 if n % 2 else 4) for n in range(8)]
    found = score_responses(model, rows, max_batch=4)
    assert read_tokens == [16, 240]
    assert found.tolist() == pytest.approx(one_by_one(model, rows), abs=1e-5)


@pytest.mark.parametrize(("max_batch", "rows"), [(6, [6, 6]), (5, [3, 3, 3, 3]), (2, [3, 3, 3, 3])])
def test_a_pass_has_no_more_rows_than_asked_for_or_the_answers_to_one_prompt(max_batch, rows):
    tokens = torch.tensor([[prompt] * 9 + [answer] for prompt in range(4) for answer in range(10, 13)])
    passes = score_passes(tokens, torch.full((12,), 10), max_batch, torch.device("cpu"))
    assert [len(found.rows) for found in passes] == rows


def test_padding_is_no_part_of_a_row(model):
    tokens = torch.tensor([[1, 5, 6, 0, 0, 0], [1, 7, 8, 9, 2, 0], [1, 5, 6, 4, 4, 2]])
    lengths = torch.tensor([3, 5, 6])
    alone = one_by_one(model, [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)])
    for device in ("cpu", "cuda"):  # as planned for either
        passes = score_passes(tokens, lengths, 8, torch.device(device))
        assert all(found.packing is None for found in passes) or device == "cpu"
        assert score_rows(model, tokens, lengths, passes).tolist() == pytest.approx(alone, abs=1e-5)


def test_elsewhere_than_on_a_cpu_rows_of_like_length_go_together_unpacked():
    lengths = torch.tensor([9, 2, 8, 3, 10])
    passes = score_passes(torch.ones(5, 10, dtype=torch.int64), lengths, 2, torch.device("cuda"))
    assert [(found.rows.tolist(), found.width, found.packing) for found in passes] == [
        ([1, 3], 3, None),
        ([2, 0], 9, None),
        ([4], 10, None),
    ]


def test_an_empty_row_is_refused_and_no_rows_have_no_scores(model):
    with pytest.raises(ValueError, match="empty row"):
        score_responses(model, [[1], []])
    assert score_responses(model, []).shape == (0,)
