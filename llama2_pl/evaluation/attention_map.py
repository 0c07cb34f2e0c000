"""How strongly a dialogue's later tokens look at its system message (Llama 2 §3.3, fig. 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llama2_pl.model.elementwise import Rotation, rotate
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.layers import Attention
from llama2_pl.text.chat import Dialog, encode_dialog, system_tokens
from llama2_pl.text.tokenizer import Tokenizer


class Look(NamedTuple):
    """What a model looks at in one dialogue.

    Attributes:
        strongest: (T, T) float32, see `strongest_attention`.
        by_turn: for each answer, the largest weight on a token of the system message from the positions that the
            answer's tokens are predicted from.
    """

    strongest: Tensor
    by_turn: list[float]


@torch.no_grad()
def strongest_attention(model: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """(T,) ids -> (T, T) float32: [t, s] is the largest weight over all layers and heads with which t reads s.

    Fig. 10: "maximum activations across the network". Attention itself keeps no weights, so each layer's are
    computed again from its input.
    """
    device = next(model.parameters()).device
    found = torch.zeros(len(tokens), len(tokens), device=device)

    def look(attention: nn.Module, arguments: tuple) -> None:
        assert isinstance(attention, Attention)
        x, rotation = arguments[:2]
        torch.maximum(found, attention_weights(attention, x, rotation).amax((0, 1)), out=found)

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, Attention)]
    try:
        model.hidden(torch.tensor([tokens], device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return found.cpu()


def attention_weights(attention: Attention, x: Tensor, rotation: Rotation) -> Tensor:
    """Input (B, T, D) of an attention layer -> its causal weights (B, H, T, T), in fp32."""
    size = attention.config.head_dim
    queries, keys = (
        rotate(part(x).unflatten(-1, (-1, size)).transpose(1, 2), rotation).float()
        for part in (attention.wq, attention.wk)
    )
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    scores = queries @ keys.transpose(2, 3) / math.sqrt(size)
    later = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(1)
    return scores.masked_fill(later, -math.inf).softmax(-1)


def look_at_system(model: LanguageModel, tokenizer: Tokenizer, dialog: Dialog) -> Look:
    """What the model looks at while it reads a dialogue that has a system message and ends with an answer."""
    tokens, answers = encode_dialog(dialog, tokenizer, tags="neutralise")
    system = system_tokens(dialog, tokenizer, tags="neutralise")
    strongest = strongest_attention(model, tokens)
    on_system = strongest[:, system.start : system.stop].amax(1)
    return Look(strongest, [on_system[span.start - 1 : span.stop - 1].max().item() for span in runs(answers)])


def runs(mask: Sequence[bool]) -> list[range]:
    """The stretches of True."""
    edges = [i for i in range(len(mask) + 1) if (i < len(mask) and mask[i]) != (i > 0 and mask[i - 1])]
    return [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def in_bins(strongest: Tensor, size: int) -> list[list[float | None]]:
    """(T, T) -> the largest entry of each square of `size` neighbouring tokens, None above the diagonal.

    Fig. 10 bins neighbouring tokens; the largest, not the mean, is our choice: one strong look among many is kept.
    """
    steps = len(strongest)
    bins = math.ceil(steps / size)
    padded = nn.functional.pad(strongest, (0, bins * size - steps) * 2)
    largest = padded.view(bins, size, bins, size).amax((1, 3)).tolist()
    return [[round(v, 4) if s <= t else None for s, v in enumerate(row)] for t, row in enumerate(largest)]
