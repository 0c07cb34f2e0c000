"""Kernels of other libraries against ours. Without CUDA float8 is emulated, and the flash kernel a literal one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from llama2_pl.model import attention, kernels
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.layers import residual_std
from llama2_pl.model.parallel import ParallelPlan, parallelize

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CONFIG = ModelConfig(64, 2, 4, n_kv_heads=2, vocab_size=64, multiple_of=32, max_seq_len=64)


def pair() -> tuple[LanguageModel, LanguageModel, torch.Tensor]:
    """Two networks of the same weights, gains unlike 1, and tokens."""
    torch.manual_seed(0)
    plain, other = LanguageModel(CONFIG).to(DEVICE), LanguageModel(CONFIG).to(DEVICE)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    other.load_state_dict(plain.state_dict())
    return plain, other, torch.randint(64, (2, 24), device=DEVICE)


def trained(model: LanguageModel, tokens: torch.Tensor, **how) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the gradients of a loss on them."""
    logits = model(tokens, **how)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of the norm."""
    return ((found - expected).norm() / expected.norm()).item()


def compare_liger(packed: bool, dtype: torch.dtype = torch.float32, far: float = 1e-5) -> None:
    """Logits and gradients of a network with Liger's kernels equal ours; packed, each row has positions of its own."""
    plain, fused, tokens = pair()
    names = list(fused.state_dict())
    kernels.use_liger(fused)
    assert list(fused.state_dict()) == names
    classes = {type(module).__name__ for module in fused.modules()}
    assert classes >= {"LigerRMSNorm", "LigerFeedForward", "LigerAttention"}
    assert not classes & {"RMSNorm", "FeedForward", "Attention"}
    starts = torch.tensor([[7], [20]], device=DEVICE)
    ids = (torch.arange(24, device=DEVICE) >= starts).int() if packed else None
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
        (expected, gradients), (found, others) = (
            trained(m, tokens, document_ids=ids) for m in (plain, fused)
        )
    assert off_by(found, expected) < far
    assert len(gradients) == len(others) == len(names)
    assert max(off_by(theirs, ours) for ours, theirs in zip(gradients, others, strict=True)) < far


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs liger-kernel")
@pytest.mark.skipif(not CUDA, reason="Triton's kernels need CUDA")
@pytest.mark.parametrize("packed", [False, True])
def test_ligers_kernels_give_our_logits_and_gradients(packed: bool) -> None:
    compare_liger(packed)
    compare_liger(packed, torch.bfloat16, far=2e-2)


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs liger-kernel, with Triton a gigabyte")
@pytest.mark.skipif(CUDA, reason="compared as they run on the GPU")
def test_ligers_kernels_give_our_logits_and_gradients_in_tritons_interpreter() -> None:
    # Triton decides when it is imported
    script = Path(__file__).with_name("interpreted_liger.py")
    subprocess.run([sys.executable, script], env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_float8_is_near_our_products_in_the_blocks_and_nowhere_else() -> None:
    plain, rounded, tokens = pair()
    names = list(rounded.state_dict())
    kernels.use_float8(list(rounded.backbone.layers), emulate=not CUDA)
    assert list(rounded.state_dict()) == names
    kinds = [name for name, module in rounded.named_modules() if type(module).__name__ == "Float8Linear"]
    assert len(kinds) == 7 * CONFIG.n_layers and all(name.startswith("backbone.layers.") for name in kinds)
    # e4m3 has 3 bits behind the point, so each factor is off by up to 2^-4, 0.026 in the mean square; a product of
    # two by sqrt(2) times that, and the numbers near 0 by less.
    x = torch.randn(32, CONFIG.dim, device=DEVICE, dtype=torch.bfloat16)
    for name in kinds:
        ours, theirs = plain.get_submodule(name), rounded.get_submodule(name)
        if ours.weight.shape[1] == CONFIG.dim:
            assert 0.01 < off_by(theirs(x).float(), x.float() @ ours.weight.T) < 0.06
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        (expected, gradients), (found, others) = (trained(m, tokens) for m in (plain, rounded))
    assert off_by(found, expected) < 0.25
    assert len(gradients) == len(others) == len(names)
    for ours, theirs in zip(gradients, others, strict=True):
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_float8_matrices_made_on_the_meta_device_are_initialised_as_ours() -> None:
    with torch.device("meta"):
        model = LanguageModel(CONFIG)
    kernels.use_float8(list(model.backbone.layers), emulate=True)
    model.to_empty(device="cpu")
    model.backbone.reset_parameters()
    attention = model.backbone.layers[0].attention  # type: ignore[union-attr]
    assert attention.wq.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert attention.wo.weight.std().item() == pytest.approx(residual_std(CONFIG), rel=0.05)


def one_by_one(q, k, v, bounds, bounds_k, longest, longest_k, *, window_size, enable_gqa):
    """What torch's varlen_attn is documented to compute, document by document; it has no CPU kernel."""
    assert bounds is bounds_k and longest == longest_k and window_size == (-1, 0)
    assert bounds.dtype == torch.int32 and bounds.diff().max() <= longest
    parts = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        rows = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        parts.append(
            F.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=enable_gqa)[0].transpose(0, 1)
        )
    return torch.cat(parts)


@pytest.mark.parametrize("kernel", ["torch's", "a literal one"])
def test_documents_through_the_flash_kernel_equal_the_mask(kernel: str, monkeypatch) -> None:
    if kernel == "torch's" and not CUDA:
        pytest.skip("torch's varlen_attn needs CUDA")
    if kernel == "a literal one":
        monkeypatch.setattr(attention, "varlen_attn", one_by_one)
    plain, flash, tokens = pair()
    kernels.use_flash_attention(flash)
    ids = torch.tensor([[0] * 9 + [1] + [2] * 14, [0] * 20 + [-1] * 4], device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        (expected, gradients), (found, others) = (
            trained(m, tokens, document_ids=ids) for m in (plain, flash)
        )
    assert 0 < off_by(found, expected) < 0.02
    assert max(off_by(theirs, ours) for ours, theirs in zip(gradients, others, strict=True)) < 0.05


def test_a_tree_is_read_by_its_mask_where_flash_attention_is_on(monkeypatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", one_by_one)
    plain, flash, tokens = pair()
    kernels.use_flash_attention(flash)
    ids = torch.zeros_like(tokens, dtype=torch.int32)
    branches = torch.tensor([10 * [0] + 6 * [1] + 8 * [2]] * 2, device=DEVICE)
    places = torch.tensor([[*range(16), *range(10, 18)]] * 2, device=DEVICE)
    tree = {"document_ids": ids, "positions": places, "branches": branches}
    torch.testing.assert_close(flash(tokens, **tree), plain(tokens, **tree))


def test_flash_attention_in_fp32_is_refused_with_the_way_out() -> None:
    _, flash, tokens = pair()
    kernels.use_flash_attention(flash)
    with pytest.raises(ValueError, match=r"trainer\.precision to bf16-mixed"):
        flash(tokens, document_ids=torch.zeros_like(tokens))


@pytest.mark.parametrize("switch", list(kernels.NEEDS))
def test_a_switch_that_cannot_be_had_is_refused_by_name(switch: str, monkeypatch) -> None:
    library = kernels.NEEDS[switch][0]
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"{switch} is on and {library} is missing: pip install"):
        parallelize(LanguageModel(CONFIG), ParallelPlan(**{switch: True}))
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"{switch} is on and there is no CUDA device"):
        parallelize(LanguageModel(CONFIG), ParallelPlan(**{switch: True}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T4")
    with pytest.raises(ValueError, match=f"{switch} is on and needs .* T4 has 7.5"):
        parallelize(LanguageModel(CONFIG), ParallelPlan(**{switch: True}))


def test_liger_and_compile_together_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "require", lambda switch: None)
    with pytest.raises(ValueError, match="liger and compile are on"):
        parallelize(LanguageModel(CONFIG), ParallelPlan(liger=True, compile=True))


def test_a_plan_turns_on_what_it_names(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "require", lambda switch: None)
    model = parallelize(LanguageModel(CONFIG), ParallelPlan(liger=True, flash_attention=True))
    assert model.backbone.flash_attention and isinstance(model.backbone.norm, kernels.LigerRMSNorm)
    left = parallelize(LanguageModel(CONFIG), ParallelPlan())
    assert not left.backbone.flash_attention and not isinstance(left.backbone.norm, kernels.LigerRMSNorm)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_joined_projections_give_our_logits_and_gradients_under_the_same_names(precision: str) -> None:
    plain, joined, tokens = pair()
    names = list(joined.state_dict())
    parallelize(joined, ParallelPlan(joined_projections=True))
    assert list(joined.state_dict()) == names
    count = products_of(joined, tokens), products_of(plain, tokens)
    assert count == (4 * CONFIG.n_layers + 1, 7 * CONFIG.n_layers + 1)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=precision == "bf16"):
        (expected, gradients), (found, others) = (trained(m, tokens) for m in (plain, joined))
    assert len(gradients) == len(others) == len(names)
    far = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    assert off_by(found, expected) < far
    assert max(off_by(theirs, ours) for ours, theirs in zip(gradients, others, strict=True)) < far


def products_of(model: LanguageModel, tokens: torch.Tensor) -> int:
    """Matrix products of a forward pass, attention's left out."""
    calls = []

    class Counted(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is F.linear:
                calls.append(function)
            return function(*args, **(kwargs or {}))

    with Counted(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        model(tokens)
    return len(calls)


def test_joined_projections_and_float8_are_refused_together(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "require", lambda switch: None)
    with pytest.raises(ValueError, match="float8 and joined_projections are on"):
        parallelize(LanguageModel(CONFIG), ParallelPlan(float8=True, joined_projections=True))
