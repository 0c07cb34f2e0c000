"""Our side."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities import disable_possible_user_warnings
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.sides import steps
from benchmarks.sides.protocol import Turns, repeat, serve
from llama2_pl import CorpusDataModule, LanguageModel, ModelConfig, PPOModule, PretrainModule, RewardModule
from llama2_pl.callbacks import CompiledBlocks
from llama2_pl.data.batches import Batch, PromptBatch
from llama2_pl.data.packing import pack_whole
from llama2_pl.generation.sampler import generate
from llama2_pl.model.memory import keep_freed_memory
from llama2_pl.model.parallel import ParallelPlan, parallelize
from llama2_pl.objectives.language import next_token_loss_from_hidden, predicting
from llama2_pl.text.tokenizer import train_tokenizer

WORDS = "the cat sat on the mat and the dog ran to the house of the old man in a big red coat".split()
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def build(options: dict) -> LanguageModel:
    """A network as our modules make it."""
    device = options.get("device", "cpu")
    if device == "cpu":
        keep_freed_memory()
    with torch.device(device):
        model = LanguageModel(ModelConfig.of(options["model"]["fields"]))
    if options["precision"] == "bf16":
        model = model.bfloat16()
    recompute, compile = options.get("recompute", False), options.get("compile", False)
    return parallelize(model, ParallelPlan(activation_checkpointing=recompute, compile=compile))


def mean_loss(model: LanguageModel, batch: Batch) -> Tensor:
    at = predicting(batch.loss_mask)
    hidden = model.hidden(batch.tokens, document_ids=batch.document_ids, at=at)
    total, count = next_token_loss_from_hidden(hidden, model.head, batch.tokens, batch.loss_mask)
    return total / count


def train(options: dict, turns: Turns) -> None:
    model, tokens = build(options), steps.random_tokens(options)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    steps.train(model, lambda: mean_loss(model, Batch(tokens, mask, None)), options, turns)


def sample(options: dict, turns: Turns) -> None:
    model, device, ends = build(options).eval(), options.get("device", "cpu"), "mean" in options
    if ends:
        steps.count_down(model.backbone.embedding.weight, model.head.weight)
    prompts = (steps.prompts_of_lengths(options) if ends else steps.random_tokens(options)).tolist()
    recipe = {
        "max_new_tokens": options["new"],
        "eos_id": steps.EOS if ends else options["model"]["vocab_size"],  # which no token is
        "samples_per_prompt": options.get("samples", 1),
        "max_batch": options.get("together"),
    }

    def step() -> float:
        counts = [
            generate(model, prompts, **recipe).response_mask.sum() for _ in range(options.get("calls", 1))
        ]
        steps.finish(device)
        return float(sum(counts))

    repeat(step, turns)


class Turn(L.Callback):
    """Ends a repetition after so many batches."""

    def __init__(self, turns: Turns, units: float, batches: int = 1) -> None:
        self.turns, self.units, self.batches = turns, units, batches

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx % self.batches == self.batches - 1:
            self.turns.done(self.units)


class Endless(torch.utils.data.Dataset):
    """One batch again and again."""

    def __init__(self, batch: object) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, n: int) -> object:
        return self.batch


def lightning_precision(options: dict) -> str:
    return {"fp32": "32-true"}.get(options["precision"], options["precision"])


def fit(module: L.LightningModule, batch: object, callback: L.Callback, *more: L.Callback, **options) -> None:
    disable_possible_user_warnings()
    loader = torch.utils.data.DataLoader(Endless(batch), batch_size=None, collate_fn=lambda same: same)
    quiet = {**QUIET, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=10**6, callbacks=[callback, *more], **quiet, **options
    )
    trainer.fit(module, loader)


def write_tokenizer(folder: Path) -> str:
    lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    train_tokenizer(lines, folder, vocab_size=290)
    return str(folder / "tokenizer.model")


class NeverEnds(PPOModule):
    """No id is the EOS: every answer has max_new_tokens tokens, as in TRL with stop_token None."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.eos_id = self.reference.config.vocab_size


def ppo(options: dict, turns: Turns) -> None:
    """Iterations of PPOModule under a Trainer: policy, reference, value and one reward model."""
    folder, shape = Path(tempfile.mkdtemp()), ModelConfig.of(options["model"]["fields"])
    files = {"tokenizer": write_tokenizer(folder)}
    for name, kind in (("policy", PretrainModule), ("helpfulness_reward", RewardModule)):
        module = kind(shape)
        module.configure_model()
        files[name] = str(folder / f"{name}.ckpt")
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        torch.save(content, files[name])
    rows = options["rows"]
    module = NeverEnds(
        **files,
        max_new_tokens=options["new"],
        minibatch_size=options["minibatch"],
        epochs=options["epochs"],
        truncated="score",
        old_logprobs="sampler",
    )
    prompts = steps.random_tokens(options).tolist()
    batch = PromptBatch(prompts, torch.zeros(rows, dtype=torch.bool), torch.arange(rows))
    fit(
        module,
        batch,
        Turn(turns, rows),
        *([CompiledBlocks()] if options.get("compile") else []),
        precision=lightning_precision(options),
    )


def accumulate(options: dict, turns: Turns) -> None:
    """Micro-batches to the optimizer step; a repetition has always as many micro-batches."""
    tokens = steps.random_tokens(options)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    batch = Batch(tokens, mask, torch.zeros(tokens.shape, dtype=torch.int32))
    callback = Turn(turns, tokens.numel() * options["micro_batches"], options["micro_batches"])
    steps_of = {"accumulate_grad_batches": options["accumulate"], "gradient_clip_val": 1.0}
    module = PretrainModule(ModelConfig.of(options["model"]["fields"]))
    fit(module, batch, callback, precision=lightning_precision(options), **steps_of)


def alpaca_like(documents: int, longest: int) -> np.ndarray:
    """Lengths of dialogues in tokens, in random order.

    Log-normal with median 85 and spread 0.59, as Code Alpaca has under Llama 2's tokenizer; at equal quantiles, for
    the longest of a few random draws would decide the result.
    """
    normal = statistics.NormalDist(np.log(85), 0.59)
    lengths = np.exp([normal.inv_cdf((n + 0.5) / documents) for n in range(documents)])
    return np.random.default_rng(0).permutation(np.clip(lengths, 16, longest).astype(np.int64))


def dialogues(options: dict, turns: Turns) -> None:
    """Training steps on the same batches of dialogues, packed into rows or padded to the longest of the batch.

    A batch has the paper's 64 dialogues (Llama 2 §3.1), drawn as an epoch draws them; a repetition is two batches.
    """
    length, vocabulary = options["length"], options["model"]["vocab_size"]
    lengths = alpaca_like(2 * options["dialogues"], length)
    batches = []
    for drawn in np.arange(len(lengths)).reshape(2, -1):
        plan = pack_whole(lengths[drawn], length, seed=0)
        packed = [drawn[plan.row(r)].tolist() for r in range(len(plan))]
        batch = rows_of(packed if options["packed"] else [[d] for d in drawn.tolist()], lengths, vocabulary)
        batches.append(batch if options["packed"] else batch._replace(document_ids=None))
    model, taken = build(options), itertools.cycle(batches)
    positions = sum(batch.tokens.numel() for batch in batches)
    counted = _Counted(turns, len(batches), int(lengths.sum()), positions)
    steps.train(model, lambda: mean_loss(model, next(taken)), options, counted)


class _Counted(Turns):
    """Counts the tokens that are no padding, of some steps together."""

    def __init__(self, turns: Turns, steps: int, real: int, positions: int) -> None:
        self.turns, self.steps, self.real, self.positions = turns, steps, real, positions
        self.taken = 0

    def done(self, units: float, **noted: float) -> None:
        self.taken += 1
        if self.taken % self.steps == 0:
            self.turns.done(self.real, fill=self.real / self.positions)


def rows_of(rows: list, lengths: np.ndarray, vocabulary: int) -> Batch:
    """Rows of dialogues as a batch; the second half of each dialogue is its answer."""
    tokens, mask, ids = [], [], []
    for row in rows:
        sizes = [int(lengths[document]) for document in row]
        tokens.append(torch.randint(3, vocabulary, (sum(sizes),)))
        mask.append(torch.cat([torch.arange(size) >= size // 2 for size in sizes]))
        ids.append(torch.cat([torch.full((size,), n, dtype=torch.int32) for n, size in enumerate(sizes)]))
    padded = [
        pad_sequence(x, batch_first=True, padding_value=v) for x, v in ((tokens, 0), (mask, 0), (ids, -1))
    ]
    return Batch(padded[0], padded[1].bool(), padded[2])


def loader(options: dict, turns: Turns) -> None:
    """Pretraining from token files: how much of an epoch's time the loop waits for the next batch."""
    folder, profiler = Path(tempfile.mkdtemp()), SimpleProfiler()
    draw = random.Random(0)
    lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=200))}) for _ in range(5000)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = CorpusDataModule(
        {"text": {"path": str(folder / "text.jsonl")}},
        write_tokenizer(folder),
        seq_len=options["length"],
        batch_size=options["rows"],
        num_batches=10**6,
        val_fraction=0.0,
        cache_dir=str(folder),
    )
    count = options["micro_batches"]

    class Waited(Turn):
        def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
            if trainer.fit_loop.epoch_loop.batch_idx % self.batches == self.batches - 1:
                waited = sum(
                    profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"][-count:]
                )
                passed = time.perf_counter() - self.turns.started
                self.turns.done(self.units, waited_percent=100 * waited / passed)

    callback = Waited(turns, options["rows"] * options["length"] * count, count)
    quiet = {**QUIET, "enable_checkpointing": False, "precision": lightning_precision(options)}
    disable_possible_user_warnings()
    more = {"max_steps": 10**6, "callbacks": [callback], "profiler": profiler}
    trainer = L.Trainer(accelerator="cpu", devices=1, **more, **quiet)
    trainer.fit(PretrainModule(ModelConfig.of(options["model"]["fields"])), datamodule=data)


CASES: dict[str, Callable[[dict, Turns], None]] = {
    "train": train,
    "sample": sample,
    "ppo": ppo,
    "accumulate": accumulate,
    "dialogues": dialogues,
    "loader": loader,
}

if __name__ == "__main__":
    serve(CASES)
