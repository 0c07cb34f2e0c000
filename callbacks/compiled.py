"""CompiledBlocks: torch.compile for each block of a module's networks."""

from __future__ import annotations

from dataclasses import replace

import lightning as L

from llama2_pl.callbacks.common import plan_of


class CompiledBlocks(L.Callback):
    """Compiles each block of the networks, and the last norm; without a C++ compiler there is a warning, and no harm.

    Sets `compile` in `pl_module.parallel_plan`, which the modules of llama2_pl follow when they build their networks.
    It pays where many steps have rows of one length: pretraining and SFT. The first step takes up to a minute, less
    in later runs, and each new length of rows is compiled again, up to eight; then blocks run as they are.
    FSDPStrategySelector has the same option, `compile`; with both callbacks this one stands behind it, for it leaves a
    plan that is there already as it is.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        plan = plan_of(pl_module, "CompiledBlocks")
        pl_module.parallel_plan = replace(plan, compile=True)  # type: ignore[assignment]
