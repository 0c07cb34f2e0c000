"""`llama2-pl profile`: where the time of a stage goes, on random rows through the stage's own module and Trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function
from torch.utils.data import DataLoader

from llama2_pl.data.batches import Batch, PreferenceBatch, PromptBatch
from llama2_pl.generation.sampler import generate
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import ParallelPlan
from llama2_pl.model.processor import best_precision
from llama2_pl.modules.base import LlamaModule
from llama2_pl.modules.ppo import PPOModule
from llama2_pl.modules.pretrain import PretrainModule
from llama2_pl.modules.reward import RewardModule
from llama2_pl.modules.sft import SFTModule
from llama2_pl.text.tokenizer import train_tokenizer

Stage = Literal["pretrain", "sft", "reward", "ppo", "sampling"]
Row = tuple[str, int, float]  # name, calls, milliseconds; all of one step

WARMUP = 2  # steps before the trace: compilation, the optimizer's state, the allocator's first pages
OPERATIONS = 20  # lines of the table
# A stage's methods whose time is shown as a part; what is left is the optimizer and the Trainer.
LANGUAGE = ("loss", "backward", "configure_gradient_clipping")
PARTS = {
    "pretrain": LANGUAGE,
    "sft": LANGUAGE,
    "reward": ("forward", *LANGUAGE),
    "ppo": ("sample", "score", "read_rollout", "experience", "learn"),
    "sampling": (),
}


def profile(
    stage: Stage,
    backbone: str = "demo",
    rows: int = 16,
    length: int = 256,
    steps: int = 3,
    precision: str = "auto",
    compile: bool = False,
    out: str = "runs/profile",
) -> None:
    """Trace a stage and print a table of where its time goes; both are written, as STAGE.json.gz and STAGE.md.

    The trace opens in chrome://tracing or ui.perfetto.dev. Weights and tokens are random, so that no file is needed;
    answers then hardly ever end before their limit, which is the most that sampling and PPO can take.

    Args:
        stage: pretrain: full rows; sft: four documents to a row, half of the tokens count; reward: pairs; ppo: one
            iteration per step, in four minibatches; sampling: prompts of half the length, answers of the other half.
        backbone: name of a preset.
        rows: rows, pairs or prompts of a step.
        length: tokens of a row.
        steps: steps in the trace, after two that are not.
        precision: of the Trainer; auto: bf16-mixed where the device has units for it, otherwise 32-true.
        compile: compile the blocks, as CompiledBlocks does.
        out: folder of the two files.
    """
    if stage not in get_args(Stage):
        raise ValueError(f"--stage {stage}: there are {', '.join(get_args(Stage))}")
    if min(rows, steps) < 1 or length < 4:
        raise ValueError(
            f"--rows {rows}, --steps {steps}, --length {length}: give at least 1, 1 and 4 of them"
        )
    config, folder = ModelConfig.of(backbone), Path(out)
    if length > config.max_seq_len:
        raise ValueError(
            f"--length {length}: backbone {backbone} reads at most {config.max_seq_len}; give less"
        )
    folder.mkdir(parents=True, exist_ok=True)
    precision = best_precision() if precision == "auto" else precision
    tracer = Tracer(PARTS[stage])
    if stage == "sampling":
        _sample(config, rows, length, precision, steps, tracer)
    else:
        with TemporaryDirectory() as models:
            module = _module(stage, config, rows, length, Path(models))
            module.parallel_plan = ParallelPlan(compile=compile)
            _fit(module, _batch(stage, config, rows, length), precision, steps, tracer)
    tracer.profiler.export_chrome_trace(str(folder / f"{stage}.json.gz"))
    size = f"{backbone}, {rows} x {length}, {precision}{', compiled' if compile else ''}"
    text = table(f"{stage}: {size}", tracer.seconds * 1e3 / steps, *tracer.rows(steps))
    (folder / f"{stage}.md").write_text(text, encoding="utf-8")
    print(text)


def table(title: str, step: float, parts: list[Row], operations: list[Row]) -> str:
    """Markdown: the parts of a step and its operations, with their share of the step's milliseconds."""
    lines = [f"# {title}", "", f"{step:.1f} ms a step."]
    for head, rows in (("part", parts), ("operation, without those that it calls", operations)):
        if rows:
            lines += ["", f"| {head} | calls | ms | share |", "|---|---:|---:|---:|"]
            lines += [f"| {name} | {calls} | {ms:.2f} | {ms / step:.1%} |" for name, calls, ms in rows]
    return "\n".join(lines) + "\n"


class Tracer(L.Callback):
    """torch's profiler over the steps after the warm-up, with methods of the module as named parts."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self.parts = parts
        self.on_gpu = torch.cuda.is_available()
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        self.profiler = torch.profiler.profile(activities=kinds)
        self.seconds = 0.0

    def start(self) -> None:
        self._wait()
        self.profiler.start()
        self.seconds = -time.perf_counter()

    def stop(self) -> None:
        self._wait()
        self.seconds += time.perf_counter()
        self.profiler.stop()

    def rows(self, steps: int) -> tuple[list[Row], list[Row]]:
        """Parts in their order, and the operations that take longest, of one step."""
        events = self.profiler.key_averages()
        on_host = {event.key: event for event in events if event.device_type == DeviceType.CPU}
        parts = [
            (name, on_host[name].count // steps, on_host[name].cpu_time_total / 1e3 / steps)
            for name in self.parts
        ]
        # On a GPU its kernels: what calls them is listed with the same time, and compiled blocks have no names.
        kind, own = (
            (DeviceType.CUDA, "self_device_time_total")
            if self.on_gpu
            else (DeviceType.CPU, "self_cpu_time_total")
        )
        operations = [
            (event.key[:60], event.count // steps, getattr(event, own) / 1e3 / steps)
            for event in events
            if event.device_type == kind and not event.is_user_annotation
        ]
        return parts, sorted(operations, key=lambda row: -row[2])[:OPERATIONS]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name in self.parts:
            setattr(pl_module, name, self._timed(name, getattr(pl_module, name)))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == WARMUP:
            self.start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop()

    def _timed(self, name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        """A GPU finishes each part before the next: the host would else be through with it at once."""

        @wraps(part)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                result = part(*args, **kwargs)
                self._wait()
            return result

        return timed

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def _module(stage: Stage, config: ModelConfig, rows: int, length: int, folder: Path) -> LlamaModule:
    """The stage's module with random weights; PPO's are written to files first, for it reads them from there."""
    if stage != "ppo":
        return {"pretrain": PretrainModule, "sft": SFTModule, "reward": RewardModule}[stage](config)
    policy, reward = folder / "policy.ckpt", folder / "reward.ckpt"
    for path, module in ((policy, SFTModule(config)), (reward, RewardModule(config))):
        module.configure_model()
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    train_tokenizer([f"{n} and {n * n}" for n in range(300)], folder, vocab_size=276)
    return PPOModule(
        str(policy),
        str(reward),
        str(folder / "tokenizer.model"),
        max_new_tokens=length // 2,
        minibatch_size=max(1, rows // 4),
    )


def _batch(
    stage: Stage, config: ModelConfig, rows: int, length: int
) -> Batch | PreferenceBatch | PromptBatch:
    if stage == "ppo":
        prompts = torch.randint(3, config.vocab_size, (rows, length // 2)).tolist()
        return PromptBatch(prompts, torch.zeros(rows, dtype=torch.bool), torch.arange(rows))
    if stage == "reward":
        tokens = torch.randint(3, config.vocab_size, (2 * rows, length))
        unknown = torch.full((2 * rows,), float("nan"))
        zeros = torch.zeros(rows, dtype=torch.int64)
        return PreferenceBatch(tokens, torch.full((2 * rows,), length), zeros, unknown, zeros)
    tokens = torch.randint(3, config.vocab_size, (rows, length))
    counts = torch.arange(length).expand(rows, -1) >= (1 if stage == "pretrain" else length // 2)
    # sft packs dialogues: four to a row here
    documents = torch.arange(length, dtype=torch.int32) * (1 if stage == "pretrain" else 4) // length
    return Batch(tokens, counts, documents.expand(rows, -1))


def _fit(module: LlamaModule, batch: Any, precision: str, steps: int, tracer: Tracer) -> None:
    total = WARMUP + steps
    trainer = L.Trainer(
        accelerator="gpu" if tracer.on_gpu else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        # PPO counts its minibatches as steps, and has no schedule that asks for their number.
        max_steps=-1 if isinstance(module, PPOModule) else total,
        max_epochs=1,
        gradient_clip_val=None if isinstance(module, PPOModule) else 1.0,
        callbacks=[tracer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():  # that these few steps warm up and validate nothing
        warnings.filterwarnings(
            "ignore", "warm-up takes|You defined a `validation_step`|The 'train_dataloader'"
        )
        trainer.fit(module, DataLoader([batch] * total, batch_size=None))  # type: ignore[arg-type]


@torch.no_grad()
def _sample(config: ModelConfig, rows: int, length: int, precision: str, steps: int, tracer: Tracer) -> None:
    device = torch.device("cuda" if tracer.on_gpu else "cpu")
    model = LanguageModel(config).to(device).eval()
    prompts = torch.randint(3, config.vocab_size, (rows, length // 2)).tolist()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        for number in range(WARMUP + steps):
            if number == WARMUP:
                tracer.start()
            # No word is the end of an answer.
            generate(model, prompts, max_new_tokens=length // 2, eos_id=config.vocab_size)
    tracer.stop()
