"""`make bench`: training and sampling against transformers at small size, alternating in one process.

Writes benchmarks/results/<name>.json: machine, versions, commit, and figures as ratios to the baseline of the same run.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llama2_pl import LanguageModel, ModelConfig
from llama2_pl.generation.sampler import generate
from llama2_pl.objectives.language import next_token_loss_from_hidden

REPEATS = 5
RESULTS = Path(__file__).parent / "results"
Step = Callable[[], object]


def twin(config: ModelConfig) -> LlamaForCausalLM:
    """transformers' model of the same size."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.ffn_hidden,
            max_position_embeddings=config.max_seq_len,
            attn_implementation="sdpa",
        )
    )


def training_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """Forward, backward, clipping and AdamW in bf16 autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_training(config: ModelConfig, tokens: torch.Tensor) -> Step:
    """One training step of ours on rows (B, T)."""
    model, mask = LanguageModel(config), torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False

    def loss() -> torch.Tensor:
        total, count = next_token_loss_from_hidden(model.hidden(tokens), model.head, tokens, mask)
        return total / count

    return training_step(model, loss)


def their_training(config: ModelConfig, tokens: torch.Tensor) -> Step:
    """The same of transformers."""
    model = twin(config)
    return training_step(model, lambda: model(input_ids=tokens, labels=tokens, use_cache=False).loss)


def training(config: ModelConfig, rows: int, length: int) -> tuple[Step, Step, int]:
    """One training step of ours and of transformers, and its tokens."""
    tokens = torch.randint(3, config.vocab_size, (rows, length))
    return our_training(config, tokens), their_training(config, tokens), tokens.numel()


def sampling(config: ModelConfig, rows: int, prompt: int, new: int) -> tuple[Step, Step, int]:
    """Sampling at a fixed length, fp32."""
    tokens = torch.randint(3, config.vocab_size, (rows, prompt))
    ours, theirs = LanguageModel(config).eval(), twin(config).eval()
    never = config.vocab_size  # no EOS: every row runs to the limit

    def our_step() -> object:
        return generate(ours, tokens.tolist(), max_new_tokens=new, eos_id=never)

    @torch.no_grad()
    def their_step() -> object:
        options = {
            "max_new_tokens": new,
            "do_sample": True,
            "top_k": 0,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        return theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **options)

    return our_step, their_step, rows * new


def compare(ours: Step, theirs: Step, tokens: int) -> dict[str, float]:
    """Median tokens per second of each, taken in turn so that a noisy moment hits both, and their ratio."""
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for number in range(REPEATS + 1):
        for name, step in (("ours", ours), ("transformers", theirs)):
            started = time.perf_counter()
            step()
            if number:  # the first is warm-up
                seconds[name].append(time.perf_counter() - started)
    rates = {
        f"{name}_tokens_per_second": tokens / statistics.median(values) for name, values in seconds.items()
    }
    return {**rates, "ratio": rates["ours_tokens_per_second"] / rates["transformers_tokens_per_second"]}


def environment() -> dict[str, object]:
    import lightning
    import transformers

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "transformers": transformers.__version__,
        "commit": commit,
    }


def main() -> None:
    torch.manual_seed(0)
    demo, middle = ModelConfig.of("demo"), ModelConfig.of("34M")
    figures = {
        "training, demo size, 16 x 256": compare(*training(demo, 16, 256)),
        "training, 34M, 4 x 512": compare(*training(middle, 4, 512)),
        "sampling, demo size, 64 rows, 32 + 64 tokens": compare(*sampling(demo, 64, 32, 64)),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "against_transformers.json"
    path.write_text(
        json.dumps({"environment": environment(), "figures": figures}, indent=1) + "\n", encoding="utf-8"
    )
    for name, row in figures.items():
        print(f"{name}: {row['ratio']:.2f} x transformers")
    print(path)


if __name__ == "__main__":
    main()
