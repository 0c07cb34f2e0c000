"""litgpt's side."""

from __future__ import annotations

import torch
from litgpt import GPT, Config
from torch.nn import functional as F

from benchmarks.sides import steps
from benchmarks.sides.protocol import Turns, serve


def train(options: dict, turns: Turns) -> None:
    shape = options["model"]
    config = Config(
        block_size=shape["max_seq_len"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_layer=shape["n_layers"],
        n_head=shape["n_heads"],
        n_query_groups=shape["kv_heads"],
        n_embd=shape["dim"],
        intermediate_size=shape["ffn_hidden"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model, tokens = GPT(config), steps.random_tokens(options)
    forward = torch.compile(model) if options.get("compile") else model

    def loss() -> torch.Tensor:
        logits = forward(tokens)[:, :-1].flatten(0, 1).float()
        return F.cross_entropy(logits, tokens[:, 1:].flatten())

    steps.train(model, loss, options, turns)


if __name__ == "__main__":
    serve({"train": train})
