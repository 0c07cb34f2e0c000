"""CudaKernels: Liger's kernels, flash attention over packed documents, float8 and joined products, each a switch."""

from __future__ import annotations

from dataclasses import replace

import lightning as L

from llama2_pl.callbacks.common import plan_of
from llama2_pl.model.kernels import NEEDS, require


class CudaKernels(L.Callback):
    """Turns on kernels of other libraries, for networks on CUDA, and joined products; an error says what is missing.

    Sets switches in `pl_module.parallel_plan`, as CompiledBlocks does; behind FSDPStrategySelector where both are
    used. Checkpoints are those of a run without it. None of the first three has been run on a GPU by its
    authors: compare the first losses with those of a run without; `tests/model/test_kernels.py` checks them there.

    Args:
        liger: norm, SwiGLU and RoPE as one Triton kernel each (liger-kernel). Not with compiled blocks or tensor
            parallelism.
        flash_attention: packed rows without a mask, document by document (torch's `varlen_attn`), in bf16 or fp16.
            The host waits once a pass for the number of documents. Other rows take torch's flash kernel anyway.
        float8: the blocks' matrix products in float8 (torchao), from compute capability 8.9 on; for large models
            with compiled blocks. Not with tensor parallelism.
        joined_projections: query, key and value in one matrix product, gate and up in another; needs no GPU, and on a
            CPU takes as long. Not with float8 or tensor parallelism.
    """

    def __init__(
        self,
        liger: bool = False,
        flash_attention: bool = False,
        float8: bool = False,
        joined_projections: bool = False,
    ) -> None:
        super().__init__()
        self.switches = {"liger": liger, "flash_attention": flash_attention, "float8": float8}
        self.switches["joined_projections"] = joined_projections

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for switch in NEEDS:
            if self.switches[switch]:
                require(switch)
                if (device := trainer.strategy.root_device.type) != "cuda":
                    raise ValueError(
                        f"{switch} is on and the Trainer runs on {device}: set trainer.accelerator to gpu"
                    )
        plan = plan_of(pl_module, "CudaKernels")
        pl_module.parallel_plan = replace(plan, **self.switches)  # type: ignore[assignment]
