"""Attention in blocks of queries against torch's own kernel."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llama2_pl.model.attention import attend, attend_in_blocks, attend_in_torch


def inputs(steps: int, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, steps, 16), (2, kv_heads, steps, 16), (2, kv_heads, steps, 16)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def packed_mask(steps: int) -> Tensor:
    """Documents of 7 and 5 tokens in turn, others in the second row."""
    place = torch.arange(steps)
    documents = torch.stack([(place % 12 >= 7) + 2 * (place // 12), place // 5])
    causal = place[:, None] >= place[None]
    return (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]


@pytest.mark.parametrize("steps", [1, 4, 16, 37])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("packed", [True, False])
def test_both_ways_give_torchs_outputs_and_gradients_in_fp32(steps: int, kv_heads: int, packed: bool) -> None:
    mask = packed_mask(steps) if packed else None
    ways = (
        partial(scaled_dot_product_attention, is_causal=mask is None, enable_gqa=True),
        partial(attend_in_blocks, block=8),
        attend_in_torch,
    )
    expected, *results = [], [], []
    for result, way in zip((expected, *results), ways, strict=True):
        q, k, v = inputs(steps, 4, kv_heads, torch.float32)
        out = way(q, k, v, mask)
        out.sin().sum().backward()
        result += [out, q.grad, k.grad, v.grad]
    for ours in results:
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)


def test_a_block_reads_from_the_earliest_key_that_any_of_its_rows_reads() -> None:
    place = torch.arange(16)
    documents = torch.stack([place * 0, place // 6])  # in the third block one row reads from 0 on, one from 6
    mask = ((place[:, None] >= place) & (documents[:, :, None] == documents[:, None, :]))[:, None]
    q, k, v = inputs(16, 4, 4, torch.float32)
    torch.testing.assert_close(attend_in_blocks(q, k, v, mask, block=4), attend_in_torch(q, k, v, mask))


def test_in_bf16_blocks_are_as_near_to_fp32_as_the_format_allows() -> None:
    q, k, v = inputs(150, 4, 4, torch.bfloat16)
    exact = scaled_dot_product_attention(q.float(), k.float(), v.float(), packed_mask(150))
    assert (attend(q, k, v, packed_mask(150)) - exact).abs().max() < 0.03  # values of up to 4, steps of 2**-8


def test_a_cpu_takes_blocks_up_to_the_longest_rows_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def watched(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        taken.append(queries.shape[2])
        return attend_in_blocks(queries, keys, values, mask)

    monkeypatch.setattr("llama2_pl.model.attention.attend_in_blocks", watched)
    monkeypatch.setattr("llama2_pl.model.attention.LONGEST_IN_FP32", 9)
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = inputs(9, 4, 4, dtype)
        attend(q, k, v, None)
    assert taken == [9, 9]
    attend(*inputs(10, 4, 4, torch.float32), None)
    attend(*inputs(10, 4, 4, torch.bfloat16), None)
    assert taken == [9, 9, 10]
