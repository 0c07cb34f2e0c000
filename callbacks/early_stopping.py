"""HeldOutPromptEarlyStopping: PPO's stop, "early stopping by evaluations on held-out prompts" (Llama 2 §3.2.3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from llama2_pl.callbacks.common import attribute, autocast_of, find_language_model
from llama2_pl.callbacks.held_out import HeldOut, Sampling, fitting_prompts, held_out_rows, look
from llama2_pl.callbacks.rewards import Reward, check_reward, find_reward
from llama2_pl.checkpoints.saving import finish_saving, together
from llama2_pl.checkpoints.sharded import put_in_place
from llama2_pl.checkpoints.verified import clear, move_checkpoint, previous_of
from llama2_pl.data.readers.prompts import PromptRow
from llama2_pl.files import replacing
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.tokenizer import Tokenizer


class HeldOutPromptEarlyStopping(L.Callback):
    """Answers held-out prompts with the current policy, keeps the best policy, and stops with a reason.

    Llama 2 §3.2.3: 200 to 400 iterations, stopped early by held-out prompts. What stops it is our choice: the
    reward has not risen for `patience` looks, the KL to the starting policy is above `kl_limit`, or answers have
    become longer or shorter than `length_drift_limit` allows. A policy beyond a limit is never kept, however high
    its reward: that is how a policy that games the reward model looks.

    An iteration is a training batch, whatever the number of optimizer steps in it. The starting policy is looked at
    first and is the first best, so `best.ckpt` exists from the start. Logs `held_out/reward`, `held_out/kl`,
    `held_out/length` and `held_out/finished`, by iteration, and to W&B a table of sample answers. All ranks answer
    the same prompts, as sharded weights need, and rank 0's figures count. Answers that were cut off count as the
    module's `truncated` says, where it is a hyper-parameter.

    Args:
        prompts: file of prompts (formats of `read_prompts`) or list of texts, none of which is trained on.
        tokenizer: path of a SentencePiece tokenizer.model.
        dirpath: folder of `best.ckpt`.
        reward: function (prompts, answers) -> numbers; see `llama2_pl.callbacks.Reward`. Without it, the checkpoints
            below, or else the reward models in the module's `rewards`.
        helpfulness_reward: checkpoint of the helpfulness reward model.
        safety_reward: checkpoint of the safety reward model.
        every_n_iterations: looks are this many training batches apart.
        max_new_tokens: most tokens of an answer.
        max_prompts: look at the first so many prompts; None: all.
        patience: stop after this many looks without a new best.
        min_delta: what counts as a new best is above the old by more than this.
        kl_limit: in nats per answer; None: no limit.
        length_drift_limit: 0.5 stops where answers are half as long again, or half as long, as at the start.
        policy_attribute: where the module has its policy, dots allowed; by default `policy`, else `model`.
        reference_attribute: where it has the starting policy, if it has; else a frozen copy is made, and kept in
            `dirpath` for a resume.
        temperature: of the answers.
        top_p: of the answers.
        seed: of the answers.
        max_batch: most answers in work at a time.
    """

    def __init__(
        self,
        prompts: str | list[str],
        tokenizer: str,
        dirpath: str,
        reward: Callable[[Sequence[PromptRow], Sequence[str]], Sequence[float]] | None = None,
        helpfulness_reward: str | None = None,
        safety_reward: str | None = None,
        every_n_iterations: int = 10,
        max_new_tokens: int = 256,
        max_prompts: int | None = None,
        patience: int = 5,
        min_delta: float = 0.0,
        kl_limit: float | None = None,
        length_drift_limit: float | None = None,
        policy_attribute: str | None = None,
        reference_attribute: str = "reference",
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_batch: int = 64,
    ) -> None:
        super().__init__()
        counts = {"every_n_iterations": every_n_iterations, "patience": patience, "max_batch": max_batch}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        check_reward(reward, helpfulness_reward, safety_reward)
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.dirpath = dirpath
        self.reward: Reward | None = reward
        self.helpfulness_reward = helpfulness_reward
        self.safety_reward = safety_reward
        self.every_n_iterations = every_n_iterations
        self.max_prompts = max_prompts
        self.patience = patience
        self.min_delta = min_delta
        self.kl_limit = kl_limit
        self.length_drift_limit = length_drift_limit
        self.policy_attribute = policy_attribute
        self.reference_attribute = reference_attribute
        self.sampling = Sampling(max_new_tokens, temperature, top_p, seed, max_batch)
        self.iterations = 0
        self.best_reward = -math.inf
        self.best_iteration = 0
        self.looks_without_best = 0
        self.start_length = math.nan
        self.stopping_reason = ""
        self._look: Callable[[], HeldOut] | None = None

    @property
    def best_model_path(self) -> str:
        """The checkpoint of the best policy so far."""
        return str(Path(self.dirpath) / "best.ckpt")

    # Hooks ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After every kind of restore, unlike on_fit_start, which comes before that of sharded strategies."""
        if self.every_n_iterations % trainer.accumulate_grad_batches:
            raise ValueError(
                f"every_n_iterations is {self.every_n_iterations} and accumulate_grad_batches "
                f"{trainer.accumulate_grad_batches}: a checkpoint inside an accumulation window loses gradients; "
                "give a multiple"
            )
        self._look = self._prepare(trainer, pl_module)
        if self.stopping_reason:
            self._stop(trainer, f"{self.stopping_reason} (in the run that is resumed)")
        elif self.iterations == 0:
            start = self._look_now(trainer)
            self.start_length = start.length
            self._judge(trainer, start)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.iterations += 1
        if self.iterations % self.every_n_iterations == 0:
            found = self._look_now(trainer)
            pl_module.log_dict(found.metrics(), logger=False, on_step=True, on_epoch=False, batch_size=1)
            self._judge(trainer, found)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look = None  # and with it the copy of the starting policy

    def state_dict(self) -> dict[str, Any]:
        return {
            "iterations": self.iterations,
            "best_reward": self.best_reward,
            "best_iteration": self.best_iteration,
            "looks_without_best": self.looks_without_best,
            "start_length": self.start_length,
            "stopping_reason": self.stopping_reason,
            "limits": self._limits(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iterations = state_dict["iterations"]
        self.best_reward = state_dict["best_reward"]
        self.best_iteration = state_dict["best_iteration"]
        self.looks_without_best = state_dict["looks_without_best"]
        self.start_length = state_dict["start_length"]
        # whoever resumes a stopped run with other limits wants it to go on
        unchanged = state_dict["limits"] == self._limits()
        self.stopping_reason = state_dict["stopping_reason"] if unchanged else ""

    # Parts ------------------------------------------------------------------------------------------------------

    def _limits(self) -> list[float | None]:
        return [self.patience, self.min_delta, self.kl_limit, self.length_drift_limit]

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Callable[[], HeldOut]:
        """Everything that a look needs, gathered once."""
        names = [self.policy_attribute] if self.policy_attribute else ["policy", "model"]
        policy = find_language_model(pl_module, names, "policy_attribute")
        reference = self._reference(trainer, pl_module, policy)
        tokenizer = Tokenizer(self.tokenizer)
        reward = find_reward(self.reward, self.helpfulness_reward, self.safety_reward, tokenizer, pl_module)
        if reward is None:
            raise ValueError(
                "HeldOutPromptEarlyStopping has no reward: give reward or helpfulness_reward, or a module with "
                "`rewards` (helpfulness and safety models)"
            )
        rows = held_out_rows(self.prompts, self.max_prompts)
        room = policy.config.max_seq_len - self.sampling.max_new_tokens
        fitting, ids = fitting_prompts(rows, tokenizer, room)
        if not fitting:
            raise ValueError(
                f"none of {len(rows)} held-out prompts leaves room for max_new_tokens "
                f"{self.sampling.max_new_tokens} in a context of {policy.config.max_seq_len}; lower it"
            )
        if len(fitting) < len(rows):
            rank_zero_warn(
                f"{len(rows) - len(fitting)} held-out prompts are longer than {room} tokens: left out"
            )

        how = self.sampling._replace(truncated=cast(Any, pl_module.hparams).get("truncated", "score"))

        def look_now() -> HeldOut:
            with autocast_of(trainer):
                return look(policy, reference, fitting, ids, tokenizer, reward, how)

        return look_now

    def _reference(
        self, trainer: L.Trainer, pl_module: L.LightningModule, policy: LanguageModel
    ) -> LanguageModel:
        """The starting policy: the module's own, or a frozen copy whose weights survive a resume in a file."""
        own = attribute(pl_module, self.reference_attribute)
        if own is not None:
            return cast(LanguageModel, own)
        if any(isinstance(parameter, DTensor) for parameter in policy.parameters()):
            raise ValueError(
                "the policy's weights are sharded and cannot be copied: give reference_attribute, where the module "
                "has its starting policy"
            )
        path = Path(self.dirpath) / "starting_policy.safetensors"
        snapshot = copy.deepcopy(policy).eval().requires_grad_(False)
        if self.iterations == 0:
            if trainer.is_global_zero:
                with replacing(path) as temporary:
                    save_file({k: v.contiguous() for k, v in snapshot.state_dict().items()}, temporary)
        elif path.exists():
            snapshot.load_state_dict(load_file(path))
        else:
            raise ValueError(
                f"{path} is not there, so the KL of this resumed run has nothing to be measured from; put it back, "
                "or start a new run"
            )
        return snapshot

    def _look_now(self, trainer: L.Trainer) -> HeldOut:
        assert self._look is not None
        found = trainer.strategy.broadcast(self._look())
        step = self.iterations // trainer.accumulate_grad_batches
        for logger in trainer.loggers:
            logger.log_metrics(found.metrics(), step=step)
            if isinstance(logger, WandbLogger):
                columns = ["prompt", "answer", "reward"]
                logger.log_table("held_out/samples", columns=columns, data=list(found.samples), step=step)
        return found

    def _judge(self, trainer: L.Trainer, found: HeldOut) -> None:
        """Keep the policy, or count a look without a new best; stop where a limit is passed."""
        reason = self._beyond_limits(found)
        if not reason and found.reward > self.best_reward + self.min_delta:
            self.best_reward, self.best_iteration = found.reward, self.iterations
            self.looks_without_best = 0
            self._keep(trainer)
        elif not reason:
            self.looks_without_best += 1
            if self.looks_without_best >= self.patience:
                reason = f"no higher reward than {self.best_reward:.4g} in {self.patience} looks"
        if reason:
            self._stop(trainer, reason)

    def _beyond_limits(self, found: HeldOut) -> str:
        if not math.isfinite(found.reward):
            return f"the reward is {found.reward}"
        if self.kl_limit is not None and not found.kl <= self.kl_limit:
            return f"KL {found.kl:.4g} is above kl_limit {self.kl_limit:g}"
        drift = abs(found.length / self.start_length - 1)
        if self.length_drift_limit is not None and drift > self.length_drift_limit:
            return (
                f"answers have {found.length:.4g} tokens, {self.start_length:.4g} at the start: a drift of {drift:.2g} "
                f"is above length_drift_limit {self.length_drift_limit:g}"
            )
        return ""

    def _stop(self, trainer: L.Trainer, reason: str) -> None:
        self.stopping_reason = reason
        trainer.should_stop = True
        rank_zero_info(
            f"Stopped after {self.iterations} iterations: {reason}. Best: iteration {self.best_iteration}, "
            f"{self.best_model_path}"
        )

    def _keep(self, trainer: L.Trainer) -> None:
        """Write `best.ckpt` beside its name and rename it, so that the last best is there until the new one is."""
        path = Path(self.best_model_path)
        temporary = path.with_name(f".{path.name}.new")
        trainer.save_checkpoint(temporary, weights_only=False)
        finish_saving(trainer.strategy)
        together(lambda: trainer.is_global_zero and _replace(temporary, path), path, trainer.strategy)


def _replace(new: Path, path: Path) -> None:
    """Rename over what is there, a file or a folder of shards."""
    if new.is_dir():
        put_in_place(new, path)
        clear(previous_of(path))
    else:
        move_checkpoint(new, path)
