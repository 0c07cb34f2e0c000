"""AdamW and the cosine schedule, the same in every stage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

FUSED_DEVICES = ("cpu", "cuda")  # others may have fused kernels for some dtypes only


def decay_groups(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay, gains of the norms do not.

    Llama 2 §2.2 gives weight decay 0.1 and not what it applies to. Our choice: every matrix, embedding and
    head included; a gain has nothing to overfit with and its natural place is 1, not 0.
    """
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float] | list[float], eps: float) -> AdamW:
    """AdamW over the groups that hold parameters, one kernel per step. Llama 2 §2.2: betas 0.9 and 0.95, eps 1e-5."""
    held = [group for group in groups if group["params"]]
    fused = all(p.device.type in FUSED_DEVICES for group in held for p in group["params"])
    optimizer = AdamW(held, betas=(betas[0], betas[1]), eps=eps, fused=fused)
    # Fused steps could also unscale fp16 gradients, and Lightning refuses to clip for an optimizer that says so. It
    # unscales before clipping where this is False, which is when ours are scaled by their count of targets as well.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def cosine_with_warmup(step: int, warmup_steps: int, total_steps: int, final_ratio: float) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0).

    Llama 2 §2.2: linear warm-up, then a cosine down to `final_ratio` of the peak. The last warm-up step has
    the peak, step total_steps - 1 the final rate, and every later step too.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step + 1 - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine_schedule(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, final_ratio: float, option: str
) -> dict[str, Any]:
    """What `configure_optimizers` returns as its scheduler: one update per optimizer step.

    `option` names what set warmup_steps, for the warning.
    """
    if warmup_steps >= total_steps > 1:
        rank_zero_warn(
            f"warm-up takes {warmup_steps} steps and the run has {total_steps}: "
            f"the learning rate never reaches its peak; lower {option}"
        )
    schedule = LambdaLR(
        optimizer, lambda step: cosine_with_warmup(step, warmup_steps, total_steps, final_ratio)
    )
    return {"scheduler": schedule, "interval": "step"}


def planned_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of the whole run: the Trainer's max_steps, else what the data module's batches make.

    Not `trainer.estimated_stepping_batches`: read in configure_optimizers it sets up the data loader before
    the checkpoint is restored, and a resumed run starts its data again at batch 1.
    """
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches = getattr(getattr(trainer, "datamodule", None), "num_train_batches", None)
    if batches is None:
        raise ValueError(
            f"trainer.max_steps is {trainer.max_steps} and the cosine schedule needs the run's length: set "
            "trainer.max_steps, or use a data module that has num_train_batches"
        )
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    passes = max(1, trainer.max_epochs or 1)  # -1: without end, and then only the first is scheduled
    return math.ceil(batches / trainer.accumulate_grad_batches) * passes
