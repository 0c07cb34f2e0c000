"""Lightning's Trainer for the command line and the tools: it knows the precision "auto"."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.fabric.connector import _PRECISION_INPUT
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.accelerators import Accelerator

from llama2_pl.model.processor import best_precision, device_type_there, has_bf16_units


def device_type_of(accelerator: str | Accelerator) -> str:
    """torch's name for what Lightning will train on."""
    name = accelerator if isinstance(accelerator, str) else accelerator.name()
    return device_type_there() if name in {"auto", "gpu"} else name


class Trainer(L.Trainer):
    """Lightning's, which also takes the precision "auto": see `best_precision`."""

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: _PRECISION_INPUT | Literal["auto"] | None = None,
        **kwargs: Any,
    ) -> None:
        device_type = device_type_of(accelerator)
        if precision == "auto":
            precision = best_precision(device_type)
        elif device_type == "cpu" and str(precision).startswith("bf16") and not has_bf16_units("cpu"):
            rank_zero_warn(
                f"precision is {precision} and this processor has no units for bf16: steps may take a hundred times as "
                "long as in 32-true; give auto"
            )
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)
