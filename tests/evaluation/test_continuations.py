"""Log-probabilities of continuations against transformers, row by row, and what is read for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama2_pl.checkpoints.hugging_face import to_hugging_face
from llama2_pl.evaluation.continuations import continuation_logprobs
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel

CONFIG = ModelConfig(32, 2, 4, n_kv_heads=2, vocab_size=50, multiple_of=16, max_seq_len=24)
ROWS = [([1, 5, 6], [7]), ([1, 5, 6], [8]), ([1, 9, 4, 4, 3], [8, 2, 11]), ([1], [3, 4]), ([1, 5], [6, 7])]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    network = LanguageModel(CONFIG).eval()
    with torch.no_grad():
        network.head.weight.normal_()
    return network


@torch.no_grad()
def test_each_is_what_transformers_gives_the_row_by_itself(model: LanguageModel, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    to_hugging_face(model, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    best = int(theirs(torch.tensor([[1, 5]])).logits[0, -1].argmax())
    rows = [*ROWS, ([1, 5], [best])]
    for (context, continuation), found in zip(rows, continuation_logprobs(model, rows), strict=True):
        ids = torch.tensor([[*context, *continuation]])
        logprobs = theirs(ids).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        targets = torch.tensor(continuation)
        expected = logprobs.gather(1, targets[:, None]).sum().item()
        assert found.logprob == pytest.approx(expected, abs=1e-4)
        assert found.greedy == bool((logprobs.argmax(1) == targets).all())
    assert found.greedy


def test_how_many_are_read_together_changes_nothing(model: LanguageModel) -> None:
    alone = [continuation_logprobs(model, [row])[0].logprob for row in ROWS]
    for max_tokens in (1, 8, 100):
        together = continuation_logprobs(model, ROWS, max_tokens=max_tokens)
        assert [found.logprob for found in together] == pytest.approx(alone, abs=1e-5)


def test_answers_of_one_token_to_one_question_are_read_once(model: LanguageModel, monkeypatch) -> None:
    read = []
    forward = model.backbone.forward
    monkeypatch.setattr(
        model.backbone,
        "forward",
        lambda tokens, **given: read.append(tuple(tokens.shape)) or forward(tokens, **given),
    )
    continuation_logprobs(model, [([1, 5, 6], [answer]) for answer in range(7, 11)])
    assert read == [(1, 3)]


def test_a_context_too_long_loses_its_beginning(model: LanguageModel) -> None:
    long, short = (
        [1, *[7] * 10, *range(3, 26)],
        [*range(3, 26)],
    )  # 24 tokens are read, the last is only predicted
    found, expected = continuation_logprobs(model, [(long, [4, 5]), (short, [4, 5])])
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)


@pytest.mark.parametrize(("context", "continuation"), [([], [3]), ([1], []), ([1], [3] * 25)])
def test_a_row_that_cannot_be_read_is_named(model: LanguageModel, context, continuation) -> None:
    with pytest.raises(ValueError, match=r"row 1: .* the model's max_seq_len"):
        continuation_logprobs(model, [([1], [3]), (context, continuation)])
