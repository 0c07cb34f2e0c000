"""Batched sampling with a KV cache."""

from llama2_pl.generation.sampler import Rollout, generate, responses

__all__ = ["Rollout", "generate", "responses"]
