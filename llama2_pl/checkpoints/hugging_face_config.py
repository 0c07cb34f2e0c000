"""Hugging Face's config.json and generation_config.json for Llama, and what of it this backbone can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama2_pl.checkpoints.networks import read_json
from llama2_pl.model.config import ModelConfig

# Value that a feature must have where config.json names it: with any other the backbone would compute something else.
_REQUIRED: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "quantization_config": None,
}

_SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_seq_len",
}


def read_config(path: Path) -> ModelConfig:
    """The model's sizes in a config.json; features that Llama 2 does not have are refused."""
    raw = read_json(path)
    for key, value in _REQUIRED.items():
        if raw.get(key, value) != value:
            raise ValueError(
                f"{path}: {key} is {raw[key]!r}; Llama 2 has {value!r}, and so has this backbone"
            )
    for key in (*_SIZES, "intermediate_size"):
        if key not in raw:
            raise ValueError(f"{path}: {key} is missing")
    theta = _rope_theta(path, raw)
    try:
        sizes = {ours: raw[theirs] for theirs, ours in _SIZES.items()}
        kv_heads, ffn = (
            raw.get("num_key_value_heads"),
            _ffn_rule(raw["hidden_size"], raw["intermediate_size"]),
        )
        config = ModelConfig(**sizes, n_kv_heads=kv_heads, rope_theta=theta, **ffn)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
    if raw.get("head_dim") not in (None, config.head_dim):
        raise ValueError(
            f"{path}: head_dim is {raw['head_dim']}; this backbone has hidden_size / heads = {config.head_dim}"
        )
    return config


def _rope_theta(path: Path, raw: dict[str, Any]) -> float:
    """The base of RoPE; transformers 5 writes it in rope_parameters, transformers 4 beside rope_scaling."""
    rope = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    for settings in (rope, scaling):
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            raise ValueError(
                f"{path}: RoPE scaling {kind!r}; Llama 2 has none, and neither has this backbone"
            )
    theta = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    return float(theta) if isinstance(theta, int) else theta


def _ffn_rule(dim: int, hidden: int) -> dict[str, Any]:
    """multiple_of and ffn_dim_multiplier that give this hidden size; of the released models, those of the release."""
    if not isinstance(hidden, int) or hidden < 1:
        raise ValueError(f"intermediate_size is {hidden!r}; it must be a whole number of at least 1")
    for rule in ({"multiple_of": 256}, {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}):
        if ModelConfig(dim, 1, 1, **rule).ffn_hidden == hidden:
            return rule
    # Any other size is one multiple of itself, once the unrounded size is not above it.
    unrounded = int(2 * (4 * dim) / 3)
    return {"multiple_of": hidden, "ffn_dim_multiplier": hidden / unrounded if unrounded > hidden else None}


# A number for each text, at its last token that is no padding. Texts end in EOS, whose score counts: padding is <unk>,
# which no text has, as every character has a piece or bytes.
_ONE_SCORE = {
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "problem_type": "regression",
    "pad_token_id": 0,
}


def config_json(config: ModelConfig, dtype: torch.dtype, scores: bool = False) -> dict[str, Any]:
    """What LlamaForCausalLM of transformers 4 and 5, and vLLM, read; with `scores` LlamaForSequenceClassification."""
    return {
        "architectures": ["LlamaForSequenceClassification" if scores else "LlamaForCausalLM"],
        **(_ONE_SCORE if scores else {}),
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_hidden,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "initializer_range": 0.02,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


# Meta's sampling defaults (generation.py of the release).
GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
}
