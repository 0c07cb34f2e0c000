"""Next-token loss and log-probabilities. V = 2 with logits (0, ln 3) gives p = (0.25, 0.75)."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from llama2_pl.objectives import language
from tests.objectives.plain import next_token_loss, token_logprobs

QUARTER, THREE_QUARTERS = -math.log(0.25), -math.log(0.75)  # 1.386294, 0.287682


def logits(rows: int, length: int) -> torch.Tensor:
    return torch.tensor([0.0, math.log(3.0)]).expand(rows, length, 2)


def random_case(seed: int = 0, rows: int = 3, length: int = 7, dim: int = 8, vocab: int = 11):
    torch.manual_seed(seed)
    head = nn.Linear(dim, vocab, bias=False)
    hidden = torch.randn(rows, length, dim, requires_grad=True)
    tokens = torch.randint(vocab, (rows, length))
    return hidden, head, tokens, torch.rand(rows, length) < 0.6


def test_token_t_is_predicted_from_position_t_minus_1():
    # token 1 (p 0.75) at position 1 and token 0 (p 0.25) at position 2; token 0 is never predicted.
    tokens = torch.tensor([[0, 1, 0]])
    loss = partial(language.next_token_loss_from_hidden, logits(1, 3), nn.Identity(), tokens)
    total, count = loss(torch.ones(1, 3, dtype=torch.bool))
    assert count.item() == 2
    assert total.item() == pytest.approx(THREE_QUARTERS + QUARTER, abs=1e-6)
    total, count = loss(torch.tensor([[True, False, True]]))
    assert (count.item(), total.item()) == (1, pytest.approx(QUARTER, abs=1e-6))


def test_the_shift_is_one_to_the_left_in_the_hidden_states():
    # Only position 1's hidden state may influence the loss of the token at position 2.
    hidden, head, tokens, _ = random_case(rows=1)
    mask = torch.zeros(1, 7, dtype=torch.bool)
    mask[0, 2] = True
    language.next_token_loss_from_hidden(hidden, head, tokens, mask)[0].backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum(-1)[0].nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_counted_gives_zero_with_a_gradient_of_zero(dtype):
    hidden, head, tokens, _ = random_case()
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    total, count = language.next_token_loss_from_hidden(hidden.to(dtype), head.to(dtype), tokens, nothing)
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert total.dtype == torch.float32
    assert head.weight.grad is not None and head.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_loss_and_its_gradients_are_torchs_whatever_the_chunk(chunk):
    hidden, head, tokens, mask = random_case()
    expected, count = next_token_loss(head(hidden), tokens, mask)
    grads = torch.autograd.grad(expected, [hidden, head.weight])
    total, same_count = language.next_token_loss_from_hidden(hidden, head, tokens, mask, chunk)
    torch.testing.assert_close(total, expected)
    assert same_count == count
    for got, want in zip(torch.autograd.grad(total, [hidden, head.weight]), grads, strict=True):
        torch.testing.assert_close(got, want)


def test_no_more_than_a_chunk_of_positions_passes_the_head_at_once():
    hidden, head, tokens, mask = random_case(rows=5, length=20)
    seen: list[int] = []
    head.register_forward_hook(lambda module, args, out: seen.append(out.shape[0]))
    loss, count = language.next_token_loss_from_hidden(hidden, head, tokens, mask, chunk=8)
    loss.backward()
    assert max(seen) <= 8 and sum(seen) == count  # and the backward pass computes no logits again


def test_a_chunk_has_no_more_logits_than_the_limit_but_for_large_vocabularies(monkeypatch):
    monkeypatch.setattr(language, "CHUNK", 4)
    monkeypatch.setattr(language, "CHUNK_LOGITS", 99)
    for words, positions in ((11, 9), (33, 4), (9, 11)):  # 33 words: 4 positions at least, and not 3
        hidden, head, tokens, _ = random_case(length=20, vocab=words)
        seen: list[int] = []
        head.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.shape[0]))
        language.next_token_loss_from_hidden(hidden, head, tokens, torch.ones_like(tokens, dtype=torch.bool))
        assert max(seen) == positions


@pytest.mark.parametrize("chunk", [5, 100])
def test_where_the_host_may_not_ask_what_counts_the_figures_are_the_same(chunk, monkeypatch):
    hidden, head, tokens, mask = random_case()
    mask[:, 0] = False
    functions = (language.next_token_loss_from_hidden, language.token_logprobs_from_hidden)
    picked = [function(hidden, head, tokens, mask) for function in functions]
    monkeypatch.setattr(language, "predicting", lambda mask: None)  # as on a GPU
    for function, wanted in zip(functions, picked, strict=True):
        found = function(hidden, head, tokens, mask, chunk=chunk)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(x[0].sin().sum(), [hidden, head.weight]) for x in (found, wanted)]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_frozen_head_passes_the_gradient_on_and_takes_none():
    hidden, head, tokens, mask = random_case()
    head.requires_grad_(False)
    language.next_token_loss_from_hidden(hidden, head, tokens, mask, chunk=4)[0].backward()
    want = torch.autograd.grad(next_token_loss(head(hidden), tokens, mask)[0], hidden)[0]
    torch.testing.assert_close(hidden.grad, want)
    assert head.weight.grad is None


def test_the_gradient_under_autocast_is_that_of_torchs_own_loss(monkeypatch):
    hidden, head, tokens, mask = random_case(vocab=40)
    monkeypatch.setattr(language, "CPU_SLICE", 120)  # three rows of 40 at a time
    gradients = []
    for own in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if own:
                loss = language.next_token_loss_from_hidden(hidden, head, tokens, mask)[0]
            else:
                loss = next_token_loss(head(hidden), tokens, mask)[0]
        gradients.append([loss, *torch.autograd.grad(loss, [hidden, head.weight])])
    for ours, torchs in zip(*gradients, strict=True):
        assert ours.dtype == torchs.dtype == torch.float32
        torch.testing.assert_close(ours, torchs, rtol=1e-2, atol=1e-2)


def test_an_ignored_target_has_neither_loss_nor_gradient():
    logits, targets = torch.randn(5, 11, requires_grad=True), torch.tensor([3, -100, 0, -100, 10])
    want = nn.functional.cross_entropy(logits, targets, reduction="sum")
    given = logits.detach().clone()
    loss, gradient = language._loss_and_gradient(given, targets, given)  # into the place of the logits
    torch.testing.assert_close(loss, want.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(want, logits)[0])


def test_a_head_that_keeps_its_logits_has_torchs_gradient():
    """As the soft cap of other models does: its backward pass reads what it gave."""
    hidden, matrix, tokens, mask = random_case()
    mask[:, 0] = False
    head = nn.Sequential(matrix, nn.Tanh())
    total, _ = language.next_token_loss_from_hidden(hidden, head, tokens, mask)
    want, _ = next_token_loss(head(hidden), tokens, mask)
    logprobs, _ = language.token_logprobs_from_hidden(hidden, head, tokens, mask)
    wanted = token_logprobs(head(hidden), tokens) * mask
    for mine, theirs in ((total, want), (logprobs.sin().sum(), wanted.sin().sum())):
        gradients = (torch.autograd.grad(x, [hidden, matrix.weight]) for x in (mine, theirs))
        for ours, torchs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, torchs)


def test_the_loss_may_be_scaled_before_the_backward_pass():
    hidden, head, tokens, mask = random_case()
    (3.0 * language.next_token_loss_from_hidden(hidden, head, tokens, mask)[0]).backward()
    (want,) = torch.autograd.grad(3.0 * next_token_loss(head(hidden), tokens, mask)[0], head.weight)
    torch.testing.assert_close(head.weight.grad, want)


def test_bfloat16_logits_are_summed_in_float32():
    # 1000 equal losses of ln 2: bfloat16 sums stop growing at 256 * 0.69.
    tokens = torch.zeros(1, 1001, dtype=torch.int64)
    scores, mask = torch.zeros(1, 1001, 2, dtype=torch.bfloat16), torch.ones_like(tokens, dtype=torch.bool)
    total, _ = language.next_token_loss_from_hidden(scores, nn.Identity(), tokens, mask)
    assert total.item() == pytest.approx(1000 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("counted", ["some", "first tokens, too", "none"])
def test_states_at_the_places_that_predict_suffice(counted):
    hidden, head, tokens, mask = random_case()
    mask[:, 0] = counted == "first tokens, too"  # which nothing predicts
    mask &= counted != "none"
    at = language.predicting(mask)
    assert at is not None and len(at) == int(mask[:, 1:].sum()) < mask.numel()
    alone = hidden.flatten(0, 1)[at]
    for function in (language.next_token_loss_from_hidden, language.token_logprobs_from_hidden):
        for got, want in zip(
            function(alone, head, tokens, mask), function(hidden, head, tokens, mask), strict=True
        ):
            torch.testing.assert_close(got, want)
    assert language.predicting(torch.ones_like(mask)) is None  # all are wanted but the last of each row


def test_logprobs_stand_at_their_own_token():
    tokens, mask = torch.tensor([[0, 1, 0]]), torch.ones(1, 3, dtype=torch.bool)
    got, _ = language.token_logprobs_from_hidden(logits(1, 3), nn.Identity(), tokens, mask)
    torch.testing.assert_close(got, torch.tensor([[0.0, -THREE_QUARTERS, -QUARTER]]))


@pytest.mark.parametrize("chunk", [2, 100])
def test_logprobs_from_hidden_states_are_those_of_the_logits_where_counted(chunk):
    hidden, head, tokens, mask = random_case()
    mask[:, 0] = False
    logprobs, entropy = language.token_logprobs_from_hidden(hidden, head, tokens, mask, chunk=chunk)
    torch.testing.assert_close(logprobs, token_logprobs(head(hidden), tokens) * mask)
    distribution = torch.distributions.Categorical(logits=head(hidden)[:, :-1])
    want = torch.nn.functional.pad(distribution.entropy(), (1, 0)) * mask
    torch.testing.assert_close(entropy, want.detach())
    assert logprobs.requires_grad and not entropy.requires_grad


@pytest.mark.parametrize("slice_of", [2, 10**6])
def test_gradients_of_logprobs_are_those_of_torch(slice_of, monkeypatch):
    hidden, head, tokens, mask = random_case()
    mask[:, 0] = False
    monkeypatch.setattr(language, "CPU_SLICE", slice_of * head.out_features)
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for ours in (True, False):
        leaf = hidden.detach().requires_grad_()
        if ours:
            logprobs, _ = language.token_logprobs_from_hidden(leaf, head, tokens, mask, temperature=0.7)
        else:
            logprobs = token_logprobs(head(leaf) / 0.7, tokens) * mask
        loss = (logprobs * weight).sin().sum()
        gradients.append(torch.autograd.grad(loss, [leaf, head.weight]))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_temperature_divides_the_logits():
    # logits (0, ln 3) at temperature 0.5 are (0, ln 9): p = (0.1, 0.9).
    hidden, tokens = logits(1, 2), torch.tensor([[0, 1]])
    mask = torch.tensor([[False, True]])
    got, entropy = language.token_logprobs_from_hidden(hidden, nn.Identity(), tokens, mask, temperature=0.5)
    assert got[0, 1].item() == pytest.approx(math.log(0.9), abs=1e-6)
    # -(0.9 ln 0.9 + 0.1 ln 0.1) = 0.0948245 + 0.2302585
    assert entropy[0, 1].item() == pytest.approx(0.325083, abs=1e-5)


def test_going_back_twice_over_one_loss_is_refused():
    # its gradients are scaled in place
    hidden, head, tokens, mask = random_case()
    loss, _ = language.next_token_loss_from_hidden(hidden, head, tokens, mask)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
