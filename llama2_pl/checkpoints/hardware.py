"""Where the tool commands' models run, and in what precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.processor import has_bf16_units
from llama2_pl.text.tokenizer import Tokenizer

Network = TypeVar("Network", bound=nn.Module)
TYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16}


@dataclass(frozen=True)
class Hardware:
    """One device; training and `predict` have the Trainer's options instead.

    Args:
        device: auto (a GPU where there is one), cpu, cuda, or cuda:1 and so on.
        precision: of weights and products: 32-true, bf16-true, or auto (bf16-true on a GPU that has units for it,
            otherwise 32-true).
    """

    device: str = "auto"
    precision: Literal["auto", "32-true", "bf16-true"] = "auto"

    def words(self) -> list[str]:
        """The options of a command for it; "auto" is left out."""
        return [f"--hardware.{name}={value}" for name, value in asdict(self).items() if value != "auto"]

    def load(self, path: str, tokenizer: Tokenizer | None = None) -> LanguageModel:
        """A checkpoint's language model, placed."""
        return self.place(load_language_model(path, tokenizer=tokenizer))

    def place(self, model: Network) -> Network:
        """The model there, ready to answer or to judge. ValueError where there is no such device."""
        device = self._device()
        plain = "bf16-true" if device.type == "cuda" and has_bf16_units("cuda") else "32-true"
        dtype = TYPES[plain if self.precision == "auto" else self.precision]
        return model.to(device, dtype).eval()

    def _device(self) -> torch.device:
        gpus = torch.cuda.device_count()
        if self.device == "auto":
            return torch.device("cuda" if gpus else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"hardware.device is {self.device!r}: give auto, cpu, cuda or cuda:N") from error
        if device.type == "cuda" and (device.index or 0) >= gpus:
            raise ValueError(
                f"hardware.device is {self.device!r} and torch sees {gpus} GPUs: give auto or cpu"
            )
        return device


HARDWARE = Hardware()
