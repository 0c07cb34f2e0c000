"""LossGuard: what is no number, or far from all before, never reaches the weights."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llama2_pl.callbacks.common import RunStopped
from llama2_pl.checkpoints.saving import finish_saving
from llama2_pl.files import append_line


class Event(NamedTuple):
    """One update that was not made."""

    step: int
    kind: str
    """"loss" or "gradient" (not finite), or "spike"."""
    value: float
    """The mean loss over all ranks."""
    usual: float
    """The median of those before."""
    batches: tuple[int, ...]
    """Numbers of the batches of the accumulation window, from the start of the run."""


class LossGuard(L.Callback):
    """Looks at loss and gradients before every update, on all ranks, and keeps a bad one from the weights.

    One NaN gradient makes all of them NaN in clipping, and then the weights. A batch is bad where its loss or a
    gradient is not finite on any rank, or its loss is above `spike` times the median of the last ones. All ranks
    agree first. The paper names none of this; all limits are our choice. It waits for the loss in every step,
    which on a GPU costs some overlap.

    Args:
        policy: "skip": leave the weights and the optimizer's state as they are and go on; "stop": raise;
            "rewind": go back to the weights and optimizer state of the last checkpoint, and on with the next batches.
        spike: factor over the median that counts as a spike; None: only what is not finite is bad. Not looked for in
            PPO (manual optimization), whose loss lies around zero.
        window: losses that the median is taken of.
        warmup: steps before spikes are looked for, for the first losses fall fast.
        limit: raise at the event after so many in the whole run.
        dirpath: folder of guard.jsonl, one line per event with the numbers of its batches; None: no file.
    """

    def __init__(
        self,
        policy: Literal["skip", "stop", "rewind"] = "skip",
        spike: float | None = 10.0,
        window: int = 64,
        warmup: int = 20,
        limit: int = 20,
        dirpath: str | None = None,
    ) -> None:
        super().__init__()
        if policy not in ("skip", "stop", "rewind"):
            raise ValueError(f"policy is {policy!r}; give skip, stop or rewind")
        if spike is not None and spike <= 1:
            raise ValueError(f"spike is {spike}; give a factor above 1, or null")
        self.policy = policy
        self.spike = spike
        self.warmup = max(1, warmup)
        self.limit = limit
        self.dirpath = dirpath
        self.usual: deque[float] = deque(maxlen=window)
        self.events: list[Event] = []
        self._losses: list[Tensor] = []
        self._batches: list[int] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self._batches.append(trainer.fit_loop.epoch_loop.total_batch_idx)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        losses, batches = self._losses, tuple(dict.fromkeys(self._batches))
        self._losses, self._batches = [], []
        loss, bad_losses, bad_gradients = self._measure(trainer, pl_module, losses, optimizer)
        median = statistics.median(self.usual) if self.usual else math.nan
        kind = ""
        if bad_losses:
            kind = "loss"
        elif bad_gradients:
            kind = "gradient"
        elif (
            self.spike is not None
            and pl_module.automatic_optimization
            and len(self.usual) >= self.warmup
            and loss > self.spike * abs(median)
        ):
            kind = "spike"
        if not kind:
            self.usual.append(loss)
            return
        self._act(trainer, optimizer, Event(trainer.global_step, kind, loss, median, batches))

    def state_dict(self) -> dict[str, Any]:
        return {"usual": list(self.usual), "events": [list(event) for event in self.events]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.usual.clear()
        self.usual.extend(state_dict["usual"])
        self.events = [Event._make([*event[:-1], tuple(event[-1])]) for event in state_dict["events"]]

    # Parts ------------------------------------------------------------------------------------------------------

    def _measure(
        self, trainer: L.Trainer, pl_module: L.LightningModule, losses: list[Tensor], optimizer: Optimizer
    ) -> tuple[float, bool, bool]:
        """Mean loss, whether a loss and whether a gradient is not finite; the same on all ranks."""
        # Lightning divides the loss by the window: their sum is its mean
        loss = torch.stack([part.float() for part in losses]).sum()
        # our modules back-propagate sums, of more or fewer targets
        window = getattr(pl_module, "window_loss", None)
        total, count = (loss, torch.ones_like(loss)) if window is None else window
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norms = (
            torch.stack([torch.linalg.vector_norm(_local(g), dtype=torch.float32) for g in gradients])
            if gradients
            else loss.new_zeros(1)
        )
        bad = [(~loss.isfinite()).float(), (~norms.isfinite().all()).float()]
        found = torch.stack([total, count, *bad])
        finite = torch.where(found.isfinite(), found, torch.zeros_like(found))  # a NaN would hide in the sum
        reduced = trainer.strategy.reduce(finite, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        total_loss, counted, bad_losses, bad_gradients = reduced.tolist()
        mean = math.nan if bad_losses else total_loss / max(counted, 1.0)
        return mean, bad_losses > 0, bad_gradients > 0

    def _act(self, trainer: L.Trainer, optimizer: Optimizer, event: Event) -> None:
        self.events.append(event)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # the optimizer's step then changes nothing
        words = f"step {event.step}, batches {list(event.batches)}: {_said(event)}"
        if self.dirpath is not None and trainer.is_global_zero:
            line = event._asdict() | {"value": _or_none(event.value), "usual": _or_none(event.usual)}
            append_line(Path(self.dirpath) / "guard.jsonl", json.dumps({**line, "policy": self.policy}))
        if self.policy == "stop":
            raise RunStopped(
                f"{words}; nothing of it is in the weights. Look at these batches, or lower the rate"
            )
        if len(self.events) > self.limit:
            raise RunStopped(
                f"{words}; that is more than limit {self.limit} such updates in this run. Lower the "
                "learning rate, look at the batches, or raise limit"
            )
        if self.policy == "rewind":
            words += f"; back to {self._rewind(trainer)}"
        rank_zero_warn(f"{words}; the update is left out")

    def _rewind(self, trainer: L.Trainer) -> str:
        """Weights and optimizer state of the last checkpoint; the data goes on."""
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        paths = [saver.last_model_path or saver.best_model_path for saver in savers]
        path = next((path for path in paths if path), None)
        if path is None:
            raise RunStopped(
                "LossGuard: policy is rewind and no ModelCheckpoint has saved yet; give one with a shorter "
                "every_n_train_steps, or policy skip"
            )
        finish_saving(trainer.strategy)
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
        trainer.strategy.load_model_state_dict(checkpoint, strict=True)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        return path


def _local(gradient: Tensor) -> Tensor:
    """This rank's part of a sharded gradient."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _said(event: Event) -> str:
    if event.kind == "spike":
        return f"the loss is {event.value:.4g}, usual are {event.usual:.4g}"
    return "the loss is not a finite number" if event.kind == "loss" else "a gradient is not a finite number"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
