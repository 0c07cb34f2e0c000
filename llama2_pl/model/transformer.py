"""The one backbone: tokens in, hidden states out."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llama2_pl.model.attention import Documents
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.layers import Block, Embedding, RMSNorm, RoPE, picked


class Inputs(TypedDict, total=False):
    """What `Transformer` takes beside the tokens; see there. Heads pass it on as it is, by these names alone."""

    positions: Tensor | None
    document_ids: Tensor | None
    branches: Tensor | None
    at: Tensor | None


class Transformer(nn.Module):
    """Embedding, blocks and final norm of Llama 2 (§2.2); heads and losses live elsewhere.

    Args:
        config: sizes of the network.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.rope = RoPE(config)
        # Set by `parallelize`.
        self.flash_attention = False
        self.compiled = False

    def reset_parameters(self) -> None:
        """Every part anew."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        branches: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, D), after the final norm; with `at` (N, D).

        Args:
            tokens: ids (B, T).
            positions: (B, T); by default they count from each document's start.
            document_ids: (B, T); attention stays inside a document; None: each row is one.
            branches: (B, T); of a document that is a tree, 0 its trunk, which all its branches read, and else the
                branch, which only its own tokens read. With positions, where each branch goes on from the trunk.
            at: (N,) the places in the flattened (B * T) whose states are wanted, by default all: a reward model reads
                one of each answer. The others then go through the last block's attention only.
        """
        if branches is not None and (document_ids is None or positions is None):
            raise ValueError(
                "branches without document_ids and positions: give both, they are parts of documents"
            )
        if positions is None:
            positions = default_positions(tokens, document_ids, self.config.max_seq_len)
        if document_ids is None:
            mask = None
        elif self.flash_attention and branches is None:
            mask = bounds_of_documents(document_ids)
        else:
            mask = attention_mask(document_ids, branches)
        rotation = self.rope(positions)
        hidden = self.embedding(tokens)
        # A compiled block would be compiled again for every number of places: there they are picked at the end.
        within, behind = (None, at) if self.compiled else (at, None)
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            hidden = layer(hidden, rotation, mask, within if last else None)
        return picked(self.norm(hidden), behind)


def extend_context(model: nn.Module, max_seq_len: int) -> None:
    """Let a network read rows of `max_seq_len` tokens: of all it has, only RoPE's table knows their number.

    Llama 2 A.3.5: a model pretrained with 2048 tokens is fine-tuned with 4096.
    """
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), ModelConfig):
            module.config = replace(config, max_seq_len=max_seq_len)  # type: ignore[assignment]
        if isinstance(module, RoPE):
            module.reset_parameters()


def default_positions(tokens: Tensor, document_ids: Tensor | None, max_seq_len: int) -> Tensor:
    """Positions (B or 1, T) where the caller gave none. A GPU would report one too many as a failed assertion only."""
    steps = tokens.shape[1]
    if steps > max_seq_len:
        raise ValueError(f"{steps} tokens and max_seq_len is {max_seq_len}; shorten the rows or raise it")
    if document_ids is not None:
        return positions_in_documents(document_ids)
    return torch.arange(steps, device=tokens.device).unsqueeze(0)


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """(B, T) -> (B, T): each token's distance from the start of its document."""
    place = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    return place - torch.where(starts_of_documents(document_ids), place, 0).cummax(1).values


def starts_of_documents(document_ids: Tensor) -> Tensor:
    """(B, T) -> (B, T) bool: the first token of each document in its row, and of the padding."""
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return starts


def bounds_of_documents(document_ids: Tensor) -> Documents:
    """(B, T) -> where each document begins among the B * T tokens. The host waits for their number, once a pass."""
    first = starts_of_documents(document_ids).flatten().nonzero().flatten()
    return Documents(F.pad(first, (0, 1), value=document_ids.numel()).int(), document_ids.shape[1])


def attention_mask(document_ids: Tensor, branches: Tensor | None) -> Tensor:
    """(B, T) -> (B, 1, T, T): True where a query may read a key."""
    place = torch.arange(document_ids.shape[1], device=document_ids.device)
    mask = (place <= place.unsqueeze(1)) & (document_ids.unsqueeze(2) == document_ids.unsqueeze(1))
    if branches is not None:
        read = branches.unsqueeze(1)
        mask = mask & ((read == 0) | (read == branches.unsqueeze(2)))
    return mask.unsqueeze(1)
