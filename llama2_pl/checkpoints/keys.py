"""The one table of parameter names: ours, Hugging Face's, Meta's, and how Meta splits each over shards."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Entry(NamedTuple):
    """One parameter under its three names.

    Attributes:
        meta_split: dimension along which Meta's model-parallel shards divide it; None: every shard holds all of it.
    """

    ours: str
    hugging_face: str
    meta: str
    meta_split: int | None


# Row-parallel matrices are split by columns (1), column-parallel ones by rows (0). Meta splits the embedding by its
# width and the head by its vocabulary.
_BLOCK = (
    Entry("attention.wq.weight", "self_attn.q_proj.weight", "attention.wq.weight", 0),
    Entry("attention.wk.weight", "self_attn.k_proj.weight", "attention.wk.weight", 0),
    Entry("attention.wv.weight", "self_attn.v_proj.weight", "attention.wv.weight", 0),
    Entry("attention.wo.weight", "self_attn.o_proj.weight", "attention.wo.weight", 1),
    Entry("feed_forward.w1.weight", "mlp.gate_proj.weight", "feed_forward.w1.weight", 0),
    Entry("feed_forward.w2.weight", "mlp.down_proj.weight", "feed_forward.w2.weight", 1),
    Entry("feed_forward.w3.weight", "mlp.up_proj.weight", "feed_forward.w3.weight", 0),
    Entry("attention_norm.weight", "input_layernorm.weight", "attention_norm.weight", None),
    Entry("ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight", None),
)
_EMBEDDING = Entry("backbone.embedding.weight", "model.embed_tokens.weight", "tok_embeddings.weight", 1)
_NORM = Entry("backbone.norm.weight", "model.norm.weight", "norm.weight", None)
HEAD = Entry("head.weight", "lm_head.weight", "output.weight", 0)
SCORE = HEAD._replace(hugging_face="score.weight")  # of a ScalarModel; Meta released none


def entries(n_layers: int, head: Entry = HEAD) -> list[Entry]:
    """Every parameter of a LanguageModel, in the order in which a token meets them; with SCORE of a ScalarModel."""
    blocks = [
        Entry(
            f"backbone.layers.{i}.{e.ours}",
            f"model.layers.{i}.{e.hugging_face}",
            f"layers.{i}.{e.meta}",
            e.meta_split,
        )
        for i in range(n_layers)
        for e in _BLOCK
    ]
    return [_EMBEDDING, *blocks, _NORM, head]


def adjacent_to_half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of Meta's wq or wk (heads * K, D) in our order: within a head, row c * K/2 + j is Meta's row 2 j + c.

    Meta rotates adjacent pairs (2 j, 2 j + 1); we and Hugging Face rotate the pairs (j, j + K/2).
    """
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
