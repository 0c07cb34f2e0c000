"""What stands on the backbone: a language-model head, or one scalar per position."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import Unpack

from llama2_pl.model.config import ModelConfig
from llama2_pl.model.layers import Linear
from llama2_pl.model.transformer import Inputs, Transformer


class LanguageModel(nn.Module):
    """Backbone and untied output head. Weights are drawn at random; `load_language_model` reads a checkpoint's.

    Args:
        config: sizes of the network.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Transformer(config)
        self.head = Linear(config.dim, config.vocab_size)

    def forward(self, tokens: Tensor, **inputs: Unpack[Inputs]) -> Tensor:
        """(B, T) -> logits (B, T, V) float32; with `at` (N, V). Arguments as for `Transformer`."""
        return self.head(self.hidden(tokens, **inputs)).float()

    def hidden(self, tokens: Tensor, **inputs: Unpack[Inputs]) -> Tensor:
        """(B, T) -> (B, T, D), with `at` (N, D): for losses that never hold all logits at once."""
        return self.backbone(tokens, **inputs)


class ScalarModel(nn.Module):
    """Backbone and a scalar regression head in place of the next-token head (Llama 2 §3.2.2): reward and value.

    The score of a dialogue is the value at its last token.

    Args:
        config: sizes of the network.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Transformer(config)
        self.head = Linear(config.dim, 1)

    def forward(self, tokens: Tensor, **inputs: Unpack[Inputs]) -> Tensor:
        """(B, T) -> (B, T) float32, one value per position; with `at` (N,). Arguments as for `Transformer`."""
        return self.head(self.backbone(tokens, **inputs)).squeeze(-1).float()
