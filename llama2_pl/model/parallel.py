"""How a network is spread over devices: tensor parallel, activation checkpointing, compile, FSDP2, in that order."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from llama2_pl.model import kernels
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.model.layers import Block

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class ParallelPlan:
    """What to do to a network before its optimizer is made.

    The paper's training libraries are its own; these are today's equivalents (our choice).

    Attributes:
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        compile: compile each block, the last norm, and on a CPU what a new token reads when sampling; without a C++
            compiler all run as they are, with a warning.
        liger, flash_attention, float8: switches of llama2_pl.model.kernels, for CUDA.
        joined_projections: query, key and value in one matrix product, gate and up in another.
        bf16_parameters: with FSDP2, gather parameters in bf16 and reduce gradients in fp32.
        data_parallel_size: ranks that FSDP2 shards over; 1: no sharding. For whoever makes the mesh, as the next:
            `parallelize` follows the mesh.
        tensor_parallel_size: ranks that share each matrix; 1: none.
    """

    activation_checkpointing: bool = False
    compile: bool = False
    bf16_parameters: bool = False
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1
    liger: bool = False
    flash_attention: bool = False
    float8: bool = False
    joined_projections: bool = False


def parallelize(model: Network, plan: ParallelPlan, mesh: DeviceMesh | None = None) -> Network:
    """Apply a plan to a LanguageModel or ScalarModel in place.

    Args:
        model: the network; on the meta device it is materialised by whoever called.
        plan: checkpointing and compile work with any strategy.
        mesh: with dimensions "data_parallel" and "tensor_parallel", as Lightning's ModelParallelStrategy makes it;
            None: one device or DDP.
    """
    assert isinstance(model, LanguageModel | ScalarModel)
    _use_kernels(model, plan, mesh)
    if mesh is not None and mesh["tensor_parallel"].size() > 1:
        _tensor_parallel(model, mesh["tensor_parallel"])
    compile = plan.compile and _can_compile()
    for block in _blocks(model):
        block.recompute = plan.activation_checkpointing
        if compile:
            block.compile()
    if compile:
        model.backbone.norm.compile()
        model.backbone.compiled = True
    # on one device, too, where nothing else makes the network one that folders of shards can be loaded into
    if mesh is not None and (mesh["data_parallel"].size() > 1 or mesh["tensor_parallel"].size() == 1):
        _shard(model, plan, mesh["data_parallel"])
    return model


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Whole weights, for a moment, of one unit of FSDP2: the model itself (all but its blocks) or a block.

    Sampling gathers them once and not at every token, and ranks whose answers end earlier wait for nobody: otherwise
    each pass is a collective, and the ranks drift apart. While it samples each rank holds a copy of all of them, its
    part of the blocks' matrices under tensor parallel: the memory of a whole network. Nothing happens without FSDP2.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 holds parts of it on other ranks, which must then make each of its passes, too."""
    return isinstance(model, FSDPModule)


def largest_over_ranks(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers, on each of them; all must ask."""
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def data_group(mesh: DeviceMesh | None) -> dist.ProcessGroup | None:
    """The ranks that have other rows than this one, and this one; None, which is all of them, without a mesh.

    Ranks of a tensor-parallel group hold the same rows: gathered from all, each would count several times.
    """
    return None if mesh is None else mesh["data_parallel"].get_group()


def weights_fingerprint(network: nn.Module) -> str:
    """Hash of every tensor's name, shape and first 256 values: other weights, other text, at little cost."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # all ranks take part
        start = whole.detach().flatten()[:256].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {start.tolist()}".encode())
    return digest.hexdigest()


def _blocks(model: LanguageModel | ScalarModel) -> list[Block]:
    return list(model.backbone.layers)  # type: ignore[arg-type]


def _use_kernels(model: LanguageModel | ScalarModel, plan: ParallelPlan, mesh: DeviceMesh | None) -> None:
    """The plan's switches; ValueError where one cannot be had, or was never seen beside another option."""
    for switch in kernels.NEEDS:
        if getattr(plan, switch):
            kernels.require(switch)
    if plan.liger and plan.compile:
        raise ValueError("liger and compile are on: torch.compile fuses the same parts; turn one of them off")
    alone = [name for name in ("liger", "float8", "joined_projections") if getattr(plan, name)]
    if alone and mesh is not None and mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"{alone[0]} is on and tensor_parallel_size is above 1, and the two do not go together; turn it off, or "
            "set tensor_parallel_size to 1"
        )
    if plan.float8 and plan.joined_projections:
        raise ValueError(
            "float8 and joined_projections are on: float8 has a scale per matrix; turn one of them off"
        )
    if plan.liger:
        kernels.use_liger(model)
    if plan.flash_attention:
        kernels.use_flash_attention(model)
    if plan.joined_projections:
        kernels.join_projections(_blocks(model))
    if plan.float8:
        kernels.use_float8(_blocks(model))


def _can_compile() -> bool:
    """Whether there is the C++ compiler that torch.compile needs, also on a GPU; a warning where not."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        warnings.warn(
            "compile is on and there is no C++ compiler: the blocks run without it, which is slower; install g++ or "
            "clang++ (Debian: apt install g++), or name one in the environment variable CXX",
            stacklevel=3,
        )
        return False
    return True


class Replicated(ParallelStyle):
    """Parameters that every rank holds whole, as DTensors: optimizers and clipping take no mixture with tensors."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # torch's hooks may return what replaces inputs and output; its annotation does not say so.
        return distribute_module(module, device_mesh, None, self._enter, self._leave)  # type: ignore[arg-type]

    @staticmethod
    def _enter(module: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> tuple[Tensor, ...]:
        return tuple(DTensor.from_local(tensor, mesh, [Replicate()], run_check=False) for tensor in inputs)

    @staticmethod
    def _leave(module: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        return output.to_local()


def _tensor_parallel(model: LanguageModel | ScalarModel, mesh: DeviceMesh) -> None:
    """Split heads and hidden units: column-wise into a block's middle, row-wise out of it."""
    config, ranks = model.config, mesh.size()
    if config.n_heads % ranks or config.kv_heads % ranks:
        raise ValueError(
            f"tensor_parallel_size {ranks} does not divide {config.n_heads} heads and {config.kv_heads} kv heads; "
            "choose a size that divides both (Llama 2's 8 kv heads are made for 8)"
        )
    block_plan = {
        "attention.wq": ColwiseParallel(),
        "attention.wk": ColwiseParallel(),
        "attention.wv": ColwiseParallel(),
        "attention.wo": RowwiseParallel(),
        "feed_forward.w1": ColwiseParallel(),
        "feed_forward.w3": ColwiseParallel(),
        "feed_forward.w2": RowwiseParallel(),
        "attention_norm": Replicated(),
        "ffn_norm": Replicated(),
    }
    for block in _blocks(model):
        parallelize_module(block, mesh, block_plan)
    outer = {"embedding": RowwiseParallel(input_layouts=Replicate()), "norm": Replicated()}
    parallelize_module(model.backbone, mesh, outer)
    head = ColwiseParallel(output_layouts=Replicate()) if isinstance(model, LanguageModel) else Replicated()
    parallelize_module(model, mesh, {"head": head})


def _shard(model: LanguageModel | ScalarModel, plan: ParallelPlan, mesh: DeviceMesh) -> None:
    """FSDP2: a unit per block, and the rest with the root."""
    # The blocks' inputs have the right type already; casting them would round RoPE's cosines, which stay fp32.
    bf16 = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = bf16 if plan.bf16_parameters else MixedPrecisionPolicy()
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # Losses call `hidden`; FSDP2 gathers the root's parameters only around methods that it knows.
    if isinstance(model, LanguageModel):
        register_fsdp_forward_method(model, "hidden")
