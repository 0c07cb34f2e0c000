"""What stands on the backbone: a language-model head, or one scalar per position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama2_pl.model.cache import KVCache
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.layers import Linear
from llama2_pl.model.transformer import Transformer


class LanguageModel(nn.Module):
    """Backbone and untied output head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Transformer(config)
        self.head = Linear(config.dim, config.vocab_size)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        branches: Tensor | None = None,
        key_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(B, T) -> logits (B, T, V) float32. Arguments as for `Transformer`."""
        hidden = self.hidden(
            tokens,
            positions=positions,
            document_ids=document_ids,
            branches=branches,
            key_mask=key_mask,
            cache=cache,
        )
        return self.head(hidden).float()

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        branches: Tensor | None = None,
        key_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, D): for losses that never hold all logits at once."""
        return self.backbone(
            tokens,
            positions=positions,
            document_ids=document_ids,
            branches=branches,
            key_mask=key_mask,
            cache=cache,
        )


class ScalarModel(nn.Module):
    """Backbone and a scalar regression head in place of the next-token head (Llama 2 §3.2.2): reward and value."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Transformer(config)
        self.head = Linear(config.dim, 1)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        branches: Tensor | None = None,
        key_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T) float32, one value per position. Arguments as for `Transformer`."""
        hidden = self.backbone(
            tokens,
            positions=positions,
            document_ids=document_ids,
            branches=branches,
            key_mask=key_mask,
            cache=cache,
        )
        return self.head(hidden).squeeze(-1).float()

    def score(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Right-padded rows (B, T) and their lengths (B,) -> (B,): the value at each row's last real token.

        Our choice: the paper does not say where it pools; the last token, EOS, has seen the whole dialogue.
        """
        hidden = self.backbone(tokens)
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return self.head(last).squeeze(-1).float()
