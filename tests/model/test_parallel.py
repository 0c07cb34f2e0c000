"""FSDP2, tensor parallel and activation checkpointing compute what one process computes. Two CPU processes, once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from llama2_pl.model.config import PRESETS, ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import ParallelPlan, parallelize

CASES = {
    "fsdp_gradients": "FSDP2, recomputing activations, gives the gradients of one process, also in a second step",
    "fsdp_bf16": "bf16 parameters: bf16 activations, RoPE in fp32, gradients in fp32",
    "fsdp_scores": "FSDP2 gives the values of one process, at some places and at all",
    "tensor_parallel": "tensor parallel gives the logits, gradients and gradient norm of one process",
    "tensor_parallel_scores": "tensor parallel gives the scores of one process",
    "fsdp_sampling": "FSDP2 samples what one process samples, ranks that end at other steps wait for nobody",
    "tensor_parallel_sampling": "tensor parallel samples what one process samples",
    "fresh_shards": "shards that are initialised apart have the right spread and do not repeat each other",
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases in one pair of processes, since starting them takes most of the time."""
    folder = tmp_path_factory.mktemp("two_processes")
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)  # spawned processes import the cases by name
    try:
        import distributed_cases  # type: ignore[import-not-found]

        multiprocessing.spawn(distributed_cases.run_cases, (str(folder), list(CASES)), nprocs=2)
    finally:
        sys.path.remove(here)
    return folder


@pytest.mark.parametrize("case", CASES, ids=CASES.get)
def test_two_processes(case: str, failures: Path) -> None:
    for report in sorted(failures.glob(f"{case}.*")):
        pytest.fail(report.read_text(encoding="utf-8"), pytrace=False)


def test_activation_checkpointing_changes_neither_gradients_nor_names() -> None:
    torch.manual_seed(0)
    plain, recomputing = LanguageModel(PRESETS["tiny"]), LanguageModel(PRESETS["tiny"])
    recomputing.load_state_dict(plain.state_dict())
    parallelize(recomputing, ParallelPlan(activation_checkpointing=True))
    tokens = torch.randint(512, (2, 16))
    calls = []
    recomputing.backbone.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator]
    for model in (plain, recomputing):
        model(tokens).square().mean().backward()
    assert len(calls) == 2  # once forward, once again in the backward pass
    assert list(recomputing.state_dict()) == list(plain.state_dict())
    for (name, expected), found in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_compile_asks_for_each_block_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    parallelize(LanguageModel(ModelConfig(32, 3, 4, vocab_size=8)), ParallelPlan(compile=True))
    assert compiled == ["Block"] * 3 + ["RMSNorm"]


@torch._inductor.config.patch("cpp.cxx", ("/nowhere/g++",))  # pytest's monkeypatch would leave it deleted
def test_without_a_compiler_the_blocks_run_as_they_are_and_a_warning_says_what_to_install() -> None:
    model = LanguageModel(ModelConfig(32, 3, 4, vocab_size=8))
    with pytest.warns(UserWarning, match="install g"):
        parallelize(model, ParallelPlan(compile=True))
    assert model(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()
    assert all(block._compiled_call_impl is None for block in model.backbone.layers)


def test_compiled_blocks_share_one_compilation_in_training_and_one_in_evaluation() -> None:
    compiled = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    config = ModelConfig(
        32, 12, 4, vocab_size=64, multiple_of=16
    )  # more blocks than dynamo compiles one function
    model = LanguageModel(config)
    for block in model.backbone.layers:
        block.compile(backend=count)
    plain = LanguageModel(config)
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(64, (2, 12))
    model(tokens).sum().backward()
    assert len(compiled) == 1
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=1e-4)
    assert len(compiled) == 2
