"""PPODoctor: looks at every PPO iteration and names what is wrong with it in words."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from llama2_pl.callbacks import doctor_numbers as measure
from llama2_pl.callbacks.common import RunStopped
from llama2_pl.callbacks.rewards import Reward
from llama2_pl.data.readers.prompts import PromptRow
from llama2_pl.evaluation.answers import decode_responses
from llama2_pl.evaluation.doctor import Finding, Limits, diagnose
from llama2_pl.files import append_line
from llama2_pl.model.parallel import data_group
from llama2_pl.text.tokenizer import Tokenizer

WORST = ("ratio_error", "ratio_max_error", "value_loss")  # over the ranks
SUMMED = ("reward_count", "reward_sum", "reward_squares")  # likewise; other numbers are averaged
KEPT = ("entropy", "length")  # of the first iteration, to compare with


class PPODoctor(L.Callback):
    """On every iteration of `PPOModule`: measures, logs, warns in words, and stops at what cannot be right.

    Llama 2 §3.2.3 names what its PPO does, not how to see that it does it; what is measured, and every limit, is our
    choice (docs/doctor.md). Logs `doctor/<number>`, to W&B a table of findings, and one line per iteration to
    `dirpath/doctor.jsonl`. A module of one's own needs `last_iteration` as `PPOModule` keeps it, and its
    hyper-parameters' names.

    Args:
        dirpath: folder of doctor.jsonl; None: no file.
        general: an independent general reward model, or any function (prompts, answers) -> numbers, that is not
            trained against; see `rewards.CheckpointReward`.
        gold: the same for the true quality, where a program knows it; see `rewards.OracleReward`.
        stop: raise at a fatal finding, with its advice; False: warn.
        limits: where healthy ends; see `evaluation.doctor.Limits`.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        general: Callable[[Sequence[PromptRow], Sequence[str]], Sequence[float]] | None = None,
        gold: Callable[[Sequence[PromptRow], Sequence[str]], Sequence[float]] | None = None,
        stop: bool = True,
        limits: Limits | None = None,
    ) -> None:
        super().__init__()
        self.dirpath = dirpath
        self.judges: dict[str, Reward] = {
            name: judge for name, judge in (("general", general), ("gold", gold)) if judge is not None
        }
        self.stop = stop
        self.limits = Limits() if limits is None else limits
        self.start: dict[str, float] = {}
        self.judge_start: dict[str, dict[str, float]] = {}
        self.seen: Counter[str] = Counter()
        self.findings: list[Finding] = []
        """Of the last iteration."""
        self._tokenizer: Tokenizer | None = None
        self._answers: Tensor | None = None
        self._ranks: dist.ProcessGroup | None = None

    # Hooks ------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not hasattr(pl_module, "last_iteration"):
            raise ValueError(
                f"PPODoctor looks at `last_iteration`, which {type(pl_module).__name__} has not: use it with "
                "PPOModule, or keep an llama2_pl.modules.experience.Iteration there"
            )
        if self.judges and not hasattr(getattr(trainer, "datamodule", None), "rows"):
            raise ValueError(
                f"PPODoctor: {' and '.join(self.judges)} need the prompts' text: fit with a data module that has "
                "`rows`, like PromptDataModule"
            )
        self._tokenizer = Tokenizer(cast(Any, pl_module.hparams)["tokenizer"])
        self._ranks = data_group(pl_module.device_mesh)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        iteration = cast(Any, pl_module).last_iteration
        numbers = over_ranks(self._measure(trainer, pl_module, iteration, batch), self._ranks)
        # Those of a tensor-parallel group may differ in the last digit, and all ranks must stop or none.
        numbers = trainer.strategy.broadcast(numbers)
        self._look_at_whitening(numbers)
        self._compare_with_start(numbers)
        limits = self.limits.settled(full_precision="32" in str(trainer.precision))
        early = iteration.number < limits.value_warmup
        judged = {k: v for k, v in numbers.items() if not (early and k == "explained_variance")}
        self.findings = diagnose(judged, limits)
        pl_module.log_dict(
            {f"doctor/{name}": value for name, value in numbers.items()},
            on_step=True,
            on_epoch=False,
            batch_size=1,
        )
        self._report(trainer, iteration.number, numbers)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "judge_start": self.judge_start, "seen": dict(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.judge_start = state_dict["start"], state_dict["judge_start"]
        self.seen = Counter(state_dict["seen"])

    # Parts ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(
        self, trainer: L.Trainer, pl_module: L.LightningModule, iteration: Any, batch: Any
    ) -> measure.Numbers:
        """Every number of this rank's answers."""
        assert self._tokenizer is not None
        hp = cast(Any, pl_module.hparams)
        rollout, mask = iteration.rollout, iteration.rollout.response_mask
        numbers = measure.prompt_numbers(batch.prompts, self._tokenizer.bos_id)
        numbers |= measure.prompt_errors(batch.prompts, rollout)
        numbers |= measure.rollout_numbers(rollout, self._tokenizer.eos_id)
        numbers |= measure.mask_numbers(batch.prompts, rollout, iteration.experience.mask, hp["truncated"])
        numbers |= measure.distance_numbers(iteration, mask)
        numbers |= measure.reward_numbers(
            iteration, batch.is_safety, hp["beta"], hp["truncated"], hp["safety_threshold"]
        )
        numbers |= measure.update_numbers(iteration)
        if self._answers is not None and torch.equal(self._answers, rollout.tokens):
            numbers["repeat_logprob"] = (iteration.outputs.logprobs * mask).sum().item()
        self._answers = rollout.tokens
        for name, judge in self.judges.items():
            numbers |= self._ask(name, judge, trainer, iteration, batch)
        return numbers

    def _ask(
        self, name: str, judge: Reward, trainer: L.Trainer, iteration: Any, batch: Any
    ) -> measure.Numbers:
        """The judge's opinion of the answers, against the reward's."""
        assert self._tokenizer is not None
        rows = [cast(Any, trainer).datamodule.rows[i] for i in batch.index.tolist()]
        scores = list(judge(rows, decode_responses(iteration.rollout, self._tokenizer)))
        reward = iteration.scored.scores
        judged = torch.tensor(scores, dtype=torch.float32, device=reward.device)
        if name not in self.judge_start:  # of all ranks, because a checkpoint keeps rank 0's
            of_all = (of_all_ranks(scores, self._ranks) for scores in (reward, judged))
            self.judge_start[name] = measure.judge_start(*of_all)
        return measure.judge_numbers(name, reward, judged, self.judge_start[name])

    def _look_at_whitening(self, numbers: measure.Numbers) -> None:
        """Mean and spread of the answers that count, of all ranks: "drop" leaves them different numbers."""
        count, total, squares = (numbers.pop(name) for name in SUMMED)
        if not count:
            return
        mean, square = total / count, squares / count
        spread = math.sqrt(max(0.0, square - mean**2))
        # equal scores are whitened to zeros, which is flat and not wrong
        flat = numbers["score_sd"] < self.limits.flat_reward
        numbers |= {"reward_mean": mean, "reward_square": square}
        numbers["whitening_error"] = abs(mean) if flat else max(abs(mean), abs(spread - 1))

    def _compare_with_start(self, numbers: measure.Numbers) -> None:
        """Entropy and length as multiples of the first iteration's."""
        for name in KEPT:
            self.start.setdefault(name, numbers[name])
        if self.start["entropy"] > 0:
            numbers["entropy_share"] = numbers["entropy"] / self.start["entropy"]
        if self.start["length"] > 0 and numbers["length"] > 0:
            factor = numbers["length"] / self.start["length"]
            numbers["length_drift"] = max(factor, 1 / factor)

    def _report(self, trainer: L.Trainer, number: int, numbers: measure.Numbers) -> None:
        """Into the file, the loggers and the terminal; a warning is said once, a fatal finding ends the run."""
        if trainer.is_global_zero and self.dirpath is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            line = {
                "iteration": number,
                "numbers": finite,
                "findings": [finding._asdict() for finding in self.findings],
            }
            append_line(Path(self.dirpath) / "doctor.jsonl", json.dumps(line, default=str))
        for finding in self.findings:
            self.seen[finding.name] += 1
        self._tables(trainer, number)
        fatal = [f"{f.name}: {f.words}" for f in self.findings if f.severity == "fatal"]
        if fatal and self.stop:
            raise RunStopped(
                f"PPO iteration {number}: "
                + "\n".join(fatal)
                + "\n(PPODoctor stop: false goes on all the same)"
            )
        for finding in self.findings:
            if self.seen[finding.name] == 1:
                rank_zero_warn(f"PPO iteration {number}, {finding.name}: {finding.words}")

    def _tables(self, trainer: L.Trainer, number: int) -> None:
        columns = ["iteration", "finding", "severity", "value", "threshold", "words"]
        rows = [[number, *finding] for finding in self.findings]
        for logger in trainer.loggers:
            if rows and isinstance(logger, WandbLogger):
                logger.log_table("doctor/findings", columns=columns, data=rows)


def gathered(value: Any, ranks: dist.ProcessGroup | None) -> list[Any]:
    """The value of each of these ranks, in their order; of all where None."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    parts = [None] * dist.get_world_size(ranks)
    dist.all_gather_object(parts, value, ranks)
    return parts


def of_all_ranks(scores: Tensor, ranks: dist.ProcessGroup | None) -> Tensor:
    """(B,) of each rank -> (B of all ranks,), on the CPU."""
    return torch.cat(gathered(scores.detach().cpu(), ranks))


def over_ranks(numbers: measure.Numbers, ranks: dist.ProcessGroup | None) -> measure.Numbers:
    """The mean over all ranks, or the worst; a number that one rank does not know is the others'."""
    parts = gathered(numbers, ranks)
    if len(parts) == 1:
        return numbers
    merged = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        merged[name] = _merged(name, values) if all(map(math.isfinite, values)) else math.nan
    return merged


def _merged(name: str, values: Sequence[float]) -> float:
    if name in WORST:
        return max(values)
    return sum(values) if name in SUMMED else sum(values) / len(values)
