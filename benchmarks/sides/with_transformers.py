"""transformers' side."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sides import steps
from benchmarks.sides.protocol import Turns, repeat, serve


def build(options: dict) -> LlamaForCausalLM:
    shape = options["model"]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["dim"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["ffn_hidden"],
        max_position_embeddings=shape["max_seq_len"],
        attn_implementation="sdpa",
    )
    torch.set_default_dtype(torch.bfloat16 if options["precision"] == "bf16" else torch.float32)
    with torch.device(options.get("device", "cpu")):
        return LlamaForCausalLM(config)


def train(options: dict, turns: Turns) -> None:
    model, tokens = build(options), steps.random_tokens(options)
    if options.get("recompute"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    forward = torch.compile(model) if options.get("compile") else model
    steps.train(model, lambda: forward(input_ids=tokens, labels=tokens, use_cache=False).loss, options, turns)


def sample(options: dict, turns: Turns) -> None:
    model, ends = build(options).eval(), "mean" in options
    if ends:
        steps.count_down(model.model.embed_tokens.weight, model.lm_head.weight)
    prompts = steps.prompts_of_lengths(options) if ends else steps.random_tokens(options)
    choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": 0}
    choice |= {"num_return_sequences": options.get("samples", 1), "eos_token_id": steps.EOS if ends else None}

    def answer(tokens: torch.Tensor) -> float:
        mask = torch.ones_like(tokens)
        rows = model.generate(tokens, attention_mask=mask, max_new_tokens=options["new"], **choice)
        answers = rows[:, tokens.shape[1] :]
        ended = (answers == steps.EOS).long().cumsum(1) - (answers == steps.EOS).long()  # EOS itself counts
        return float((ended == 0).sum()) if ends else float(answers.numel())

    @torch.inference_mode()
    def step() -> float:
        counted = sum(answer(part) for part in prompts.split(options.get("together", len(prompts))))
        steps.finish(options.get("device", "cpu"))
        return counted

    repeat(step, turns)


if __name__ == "__main__":
    serve({"train": train, "sample": sample})
