"""What is measured: pieces, their cases, and the sides of each case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from llama2_pl import ModelConfig
from llama2_pl.model.processor import best_precision, has_bf16_units

TRAINED = ModelConfig.of("34M")
DEMO = ModelConfig.of("demo")
SAMPLED = ModelConfig(dim=256, n_layers=6, n_heads=8, vocab_size=4096, multiple_of=8, max_seq_len=512)  # 6.8M


class Side(NamedTuple):
    """Who runs a case.

    Attributes:
        name: in the results.
        program: a module of benchmarks/sides.
        peer: the environment it runs in, a folder of benchmarks/.peers; None: this one.
        options: what differs from the other sides.
    """

    name: str
    program: str
    peer: str | None = None
    options: dict[str, Any] = {}  # noqa: RUF012


class Case(NamedTuple):
    """One comparison.

    Attributes:
        title: its row in tables.
        case: what the sides call it.
        options: of all sides.
        sides: the first is ours; ratios are to each of the others.
        measure: "rate", units a second; or something noted, of which less is better.
        unit: of the measure.
        warm_up: repetitions that do not count.
        rounds: repetitions that do.
        config: the network whose rate is set against the machine's limit; None: of none.
        limit: which: "flops" of training steps or "bandwidth" of decoding.
        alone: one side after the other, where their networks do not fit into memory together.
    """

    title: str
    case: str
    options: dict[str, Any]
    sides: list[Side]
    measure: str = "rate"
    unit: str = "tokens/s"
    warm_up: int = 2
    rounds: int = 5
    config: ModelConfig | None = None
    limit: str = "flops"
    alone: bool = False


# Of training on this CPU: bf16 where it has units for that, which all sides then use.
PRECISION = {"bf16-mixed": "bf16-mixed", "32-true": "fp32"}[best_precision("cpu")]
IN = ", fp32" if PRECISION == "fp32" else ""  # behind titles that do not name it

OURS = Side("ours", "ours")
TRANSFORMERS = Side("transformers", "with_transformers", "transformers")
LITGPT = Side("litgpt", "with_litgpt", "litgpt")
TRL = Side("TRL", "with_trl", "trl")


def shape(config: ModelConfig) -> dict[str, Any]:
    """A size in numbers that every side understands."""
    names = ("dim", "n_layers", "n_heads", "kv_heads", "vocab_size", "ffn_hidden", "max_seq_len")
    return {**{name: getattr(config, name) for name in names}, "fields": config.to_dict()}


def training(name: str, config: ModelConfig, rows: int, length: int, *sides: Side, **more: Any) -> Case:
    options = {"model": shape(config), "rows": rows, "length": length, "precision": PRECISION}
    how = ", compiled" if more.pop("compile", False) else ""
    options |= {"compile": True} if how else {}
    options |= {"steps": more.pop("steps", 1)}
    title = f"training, {name}, {rows} x {length}, {PRECISION}{how}"
    return Case(title, "train", options, list(sides), config=config, **more)


def train() -> list[Case]:
    return [
        training("34M", TRAINED, 8, 512, OURS, TRANSFORMERS, LITGPT),
        training("demo size", DEMO, 16, 256, OURS, TRANSFORMERS, LITGPT, steps=8, rounds=9),
    ]


def compiled() -> list[Case]:
    """Each side through torch.compile: ours by blocks, as CompiledBlocks does, theirs as a whole."""
    sides, how = (OURS, TRANSFORMERS, LITGPT), {"compile": True, "warm_up": 3, "rounds": 4}
    return [
        training("34M", TRAINED, 8, 512, *sides, **how),
        training("demo size", DEMO, 16, 256, *sides, **{**how, "rounds": 9}, steps=8),
    ]


def memory() -> list[Case]:
    """Peak of the resident memory over the first steps, less that of the imported libraries."""
    sides, less = (
        (OURS, TRANSFORMERS, LITGPT),
        {"measure": "peak_mib", "unit": "MiB", "warm_up": 1, "rounds": 2},
    )
    cases = []
    for vocabulary in (8192, 32_000):
        case = training("34M", replace(TRAINED, vocab_size=vocabulary), 8, 512, *sides, **less)
        cases.append(
            case._replace(
                title=f"memory of training, 34M, 8 x 512, vocabulary {vocabulary:,}{IN}", config=None
            )
        )
    return cases


def sample() -> list[Case]:
    base = {"model": shape(SAMPLED), "rows": 64, "length": 32, "new": 128}
    shared = {"rows": 4, "length": 256, "new": 32, "samples": 16}
    mixed = {"rows": 256, "together": 64, "mean": 48}
    cases = []
    for precision in ("fp32", "bf16") if has_bf16_units("cpu") else ("fp32",):
        ways = {
            "64 rows, 32 + 128 tokens": base,
            "256 answers of 1 to 128 tokens ended by EOS, 64 at a time": {**base, **mixed},
            "4 prompts of 256 tokens, 16 samples of 32 each": {**base, **shared},
        }
        cases += [
            Case(
                f"sampling, 6.8M, {precision}, {name}",
                "sample",
                {**options, "precision": precision},
                [OURS, TRANSFORMERS],
                warm_up=1,
            )
            for name, options in ways.items()
        ]
    return cases


def ppo() -> list[Case]:
    """Policy, reference, value and reward of 6.8M parameters; one epoch of four minibatches, a step on each.

    Old log-probabilities are the sampler's, as TRL takes them. TRL's trainer does not compile its networks; ours may,
    and is then compared with the same TRL.
    """
    base = {"model": shape(SAMPLED), "rows": 64, "length": 32, "new": 64, "minibatch": 16, "epochs": 1}
    cases = []
    for precision, how in dict.fromkeys((("fp32", ""), (PRECISION, ""), (PRECISION, ", compiled"))):
        options = {**base, "precision": precision, "compile": bool(how)}
        title = f"PPO, 6.8M, 64 x (32 + 64) tokens, {precision}{how}"
        cases.append(Case(title, "ppo", options, [OURS, TRL], unit="samples/s", rounds=4))
    return cases


def scaling() -> list[Case]:
    """Of ours alone: accumulation, packing, the loader, what the samples of a prompt share."""
    small = {"model": shape(DEMO), "rows": 4, "length": 256, "precision": PRECISION, "micro_batches": 64}
    counts = [
        Side(f"{n} micro-batch{'es' * (n > 1)} to a step", "ours", None, {"accumulate": n})
        for n in (64, 16, 4, 1)
    ]
    dialogues = {
        "model": shape(TRAINED),
        "rows": 8,
        "length": 512,
        "dialogues": 64,
        "precision": PRECISION,
    }
    first = {"model": shape(SAMPLED), "rows": 4, "length": 256, "new": 1, "precision": "fp32"}
    together = [
        Side("in one call", "ours", None, {"samples": 16}),
        Side("in 16 calls", "ours", None, {"calls": 16}),
    ]
    waiting = {"measure": "waited_percent", "unit": "% of the time", "warm_up": 1, "rounds": 3}
    ways = [Side(name, "ours", None, {"packed": name == "packed"}) for name in ("packed", "padded")]
    return [
        Case(f"accumulation, demo size, 4 x 256{IN}", "accumulate", small, counts, warm_up=1, rounds=3),
        Case(
            f"SFT, 34M, 64 dialogues of Alpaca-like lengths, rows of 512{IN}",
            "dialogues",
            dialogues,
            ways,
            warm_up=1,
        ),
        Case("16 samples of 4 prompts of 256 tokens, the first token", "sample", first, together, warm_up=1),
        Case(f"waiting for batches, demo size, 4 x 256{IN}", "loader", small, [OURS], **waiting),
    ]


def gpu() -> list[Case]:
    """The paper's smallest size, on one GPU of 80 GB or more: weights, gradients and AdamW in bf16 are 54 GB."""
    seven = ModelConfig.of("7B")
    base = {"model": shape(seven), "precision": "bf16", "device": "cuda"}
    limited = {"config": seven, "alone": True}
    sides = [OURS, TRANSFORMERS]
    cases = [
        Case(
            f"training, 7B, {rows} x 4096, bf16, compiled{', recomputed' * recompute}",
            "train",
            {**base, "rows": rows, "length": 4096, "recompute": recompute, "compile": True},
            sides,
            **limited,
        )
        for rows, recompute in ((1, False), (4, True))
    ]
    for rows in (1, 64):
        title = f"sampling, 7B, bf16, {rows} x (512 + 128) tokens"
        options = {**base, "rows": rows, "length": 512, "new": 128}
        cases.append(Case(title, "sample", options, sides, rounds=3, limit="bandwidth", **limited))
    return cases


PIECES = {function.__name__: function for function in (train, compiled, memory, sample, ppo, scaling, gpu)}
TINY = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=300, multiple_of=8, max_seq_len=64)
SMALL = {
    "rows": 4,
    "together": 2,
    "mean": 2,
    "length": 16,
    "new": 4,
    "minibatch": 2,
    "samples": 2,
    "calls": 2,
    "dialogues": 4,
}


def tiny(case: Case) -> Case:
    """The same case on a CPU, at a size that shows only that it runs."""
    options = {key: min(value, SMALL[key]) if key in SMALL else value for key, value in case.options.items()}
    options |= {"model": shape(TINY), "device": "cpu"}
    if not has_bf16_units("cpu"):
        options |= {"precision": "fp32"}
    return case._replace(options=options, warm_up=1, rounds=2, config=TINY if case.config else None)
