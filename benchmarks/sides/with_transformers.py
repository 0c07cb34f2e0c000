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
    model, prompts = build(options).eval(), steps.random_tokens(options)
    eos_id, samples = options["model"]["vocab_size"] - 1, options.get("samples", 1)
    if "ends" in options:
        blocks = model.model.layers
        outputs = [b.self_attn.o_proj.weight for b in blocks] + [b.mlp.down_proj.weight for b in blocks]
        weights = model.model.embed_tokens.weight, outputs, model.lm_head.weight
        steps.end_by_chance(*weights, eos_id, options["ends"])
    choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": samples}
    choice |= {"eos_token_id": eos_id if "ends" in options else None, "pad_token_id": 0}

    @torch.inference_mode()
    def step() -> float:
        mask = torch.ones_like(prompts)
        rows = model.generate(prompts, attention_mask=mask, max_new_tokens=options["new"], **choice)
        answers = rows[:, prompts.shape[1] :]
        ended = (answers == eos_id).long().cumsum(1) - (answers == eos_id).long()  # EOS itself counts
        steps.finish(options.get("device", "cpu"))
        return float((ended == 0).sum()) if "ends" in options else float(answers.numel())

    repeat(step, turns)


if __name__ == "__main__":
    serve({"train": train, "sample": sample})
