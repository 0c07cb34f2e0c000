"""How a network is spread over devices: tensor parallel, activation checkpointing, compile, FSDP2, in that order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from llama2_pl.model.heads import LanguageModel, ScalarModel

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class ParallelPlan:
    """What to do to a network before its optimizer is made.

    The paper's training libraries are its own; these are today's equivalents (our choice).

    Attributes:
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        compile: compile each block.
        bf16_parameters: with FSDP2, gather parameters in bf16 and reduce gradients in fp32.
        data_parallel_size: ranks that FSDP2 shards over; 1: no sharding.
        tensor_parallel_size: ranks that share each matrix; 1: none.
    """

    activation_checkpointing: bool = False
    compile: bool = False
    bf16_parameters: bool = False
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1


def parallelize(model: Network, plan: ParallelPlan, mesh: DeviceMesh | None = None) -> Network:
    """Apply a plan to a LanguageModel or ScalarModel in place.

    Args:
        model: the network; on the meta device it is materialised by whoever called.
        plan: checkpointing and compile work with any strategy.
        mesh: with dimensions "data_parallel" and "tensor_parallel", as Lightning's ModelParallelStrategy makes it;
            None: one device or DDP.
    """
    assert isinstance(model, LanguageModel | ScalarModel)
    if mesh is not None and mesh["tensor_parallel"].size() > 1:
        _tensor_parallel(model, mesh["tensor_parallel"])
    blocks = model.backbone.layers
    for number, block in enumerate(blocks):
        if plan.activation_checkpointing:
            blocks[number] = checkpoint_wrapper(block)
        if plan.compile:
            blocks[number].compile()
    if mesh is not None and mesh["data_parallel"].size() > 1:
        _shard(model, plan, mesh["data_parallel"])
    return model


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
    }
    for block in model.backbone.layers:
        parallelize_module(block, mesh, block_plan)
    parallelize_module(model.backbone, mesh, {"embedding": RowwiseParallel(input_layouts=Replicate())})
    if isinstance(model, LanguageModel):
        parallelize_module(model, mesh, {"head": ColwiseParallel(output_layouts=Replicate())})


def _shard(model: nn.Module, plan: ParallelPlan, mesh: DeviceMesh) -> None:
    """FSDP2: a unit per block, and the rest with the root."""
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = bf16 if plan.bf16_parameters else MixedPrecisionPolicy()
    for block in model.backbone.layers:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # `hidden` is how losses call the network; FSDP2 gathers the root's parameters only around registered methods.
    torch.distributed.fsdp.register_fsdp_forward_method(model, "hidden" if isinstance(model, LanguageModel) else "score")
