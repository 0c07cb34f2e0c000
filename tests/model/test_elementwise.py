"""Norm, rotation and gate against the same expressions under torch's autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llama2_pl import LanguageModel, ModelConfig
from llama2_pl.model.elementwise import Rotation, rms_norm, rotate, swiglu
from llama2_pl.model.layers import Block

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def check_against(ours, literal, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Same values and same gradients; those of `literal` by autograd in fp32."""
    wide = [x.detach().float().requires_grad_() for x in inputs]
    result, expected = ours(*inputs), literal(*wide)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    gradient = torch.randn_like(expected).to(dtype)
    found = torch.autograd.grad(result, inputs, gradient)
    wanted = torch.autograd.grad(expected, wide, gradient.float())
    for mine, theirs, x in zip(found, wanted, inputs, strict=True):
        assert mine.dtype == x.dtype
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(mine.float(), theirs, atol=TOLERANCE[dtype] * scale, rtol=TOLERANCE[dtype])


@PRECISIONS
def test_norm_and_gradients_are_those_of_torch(dtype: torch.dtype) -> None:
    x, gain = draw(3, 5, 16, dtype=dtype), draw(16, dtype=dtype)
    check_against(
        lambda x, gain: rms_norm(x, gain, 1e-5, dtype),
        lambda x, gain: F.rms_norm(x, (16,), gain, 1e-5),
        [x, gain],
        dtype,
    )


def test_norm_of_a_stream_in_fp32_may_be_given_in_bf16() -> None:
    """As under autocast: the stream stays fp32, its gradient too."""
    x, gain = draw(4, 16), draw(16)
    check_against(
        lambda x, gain: rms_norm(x, gain, 1e-5, torch.bfloat16),
        lambda x, gain: F.rms_norm(x, (16,), gain, 1e-5),
        [x, gain],
        torch.bfloat16,
    )


@PRECISIONS
def test_rotation_is_a_complex_product_and_its_gradient_turns_back(dtype: torch.dtype) -> None:
    """Pairs (i, i + K/2) as complex numbers times e^(i angle), from a transposed view as attention has it."""
    x = draw(2, 5, 3, 8, dtype=dtype)
    angles = torch.rand(2, 1, 5, 4) * 6
    both = torch.cat((angles, angles), -1)

    def literal(x: Tensor) -> Tensor:
        pairs = torch.complex(*x.transpose(1, 2).chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((pairs.real, pairs.imag), -1)

    check_against(lambda x: rotate(x.transpose(1, 2), Rotation(both.cos(), both.sin())), literal, [x], dtype)


@PRECISIONS
def test_gate_and_gradients_are_those_of_the_formula(dtype: torch.dtype) -> None:
    check_against(
        swiglu,
        lambda gate, up: gate * torch.sigmoid(gate) * up,
        [draw(3, 7, dtype=dtype), draw(3, 7, dtype=dtype)],
        dtype,
    )


def test_a_block_keeps_the_inputs_of_its_parts_and_no_more() -> None:
    """Of each token x, both norms' results, q, k, v, attended, the stream between, gate, up and their product."""
    config = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=300, multiple_of=8, max_seq_len=64)
    block, steps = Block(config), 16
    x = draw(2, steps, config.dim)
    mine = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    angles = torch.rand(1, 1, steps, 16)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = block(x, Rotation(angles.cos(), angles.sin()), None)
    numbers = 8 * config.dim + 3 * config.ffn_hidden  # of each token
    numbers += config.n_heads * steps  # attention's weights
    small = 2 * angles.nbytes + 2 * 2 * steps * 4  # cos and sin, a number per row of each norm
    assert sum(kept.values()) == 2 * steps * numbers * 4 + small
    assert out.requires_grad


def test_gradients_of_single_rows_through_torch_func() -> None:
    """vmap and grad need the expressions' parts."""
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=50, multiple_of=8, max_seq_len=64)
    model = LanguageModel(config)
    tokens = torch.randint(0, 50, (3, 6))
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (row[None],))
        return F.cross_entropy(logits[0, :-1], row[1:])

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, tokens)
    for number, row in enumerate(tokens):
        alone = torch.autograd.grad(loss(parameters, row), list(parameters.values()))
        for mine, theirs in zip(rows.values(), alone, strict=True):
            torch.testing.assert_close(mine[number], theirs, atol=1e-6, rtol=1e-4)
