"""fp32 products through oneDNN against those in fp64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llama2_pl.model import onednn
from llama2_pl.model.layers import Linear
from llama2_pl.model.onednn import FEWEST_ROWS, OneDnnLinear, suits_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.mark.parametrize("shape", [(96, 24), (4, 32, 24), (2, 3, 20, 24)])
def test_results_and_gradients_are_those_of_the_product_in_double_precision(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    ours, expected = OneDnnLinear.apply(x, weight), F.linear(wide_x, wide_weight)
    upstream = torch.randn(expected.shape)
    ours.backward(upstream)
    expected.backward(upstream.double())
    for mine, wide in ((ours, expected), (x.grad, wide_x.grad), (weight.grad, wide_weight.grad)):
        torch.testing.assert_close(mine.double(), wide, rtol=1e-5, atol=1e-4)


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this processor is."""
    monkeypatch.setattr(onednn, "onednn_beats_mkl", lambda: True)


@pytest.mark.usefixtures("wanted")
def test_a_frozen_weight_gets_no_gradient_and_neither_does_a_constant_input() -> None:
    x, layer = torch.randn(FEWEST_ROWS, 8, requires_grad=True), Linear(8, 4).requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))
    layer.requires_grad_()
    layer(x.detach()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(4, -1))


@pytest.mark.usefixtures("wanted")
def test_only_large_fp32_products_outside_autocast_go_there() -> None:
    weight = torch.randn(4, 8)
    assert suits_onednn(torch.randn(FEWEST_ROWS, 8), weight)
    assert not suits_onednn(torch.randn(FEWEST_ROWS - 1, 8), weight)
    assert not suits_onednn(torch.randn(FEWEST_ROWS, 8).bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits_onednn(torch.randn(FEWEST_ROWS, 8), weight)


def test_none_goes_there_where_mkl_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "onednn_beats_mkl", lambda: False)
    assert not suits_onednn(torch.randn(FEWEST_ROWS, 8), torch.randn(4, 8))
