"""Direct preference optimisation. Not in Llama 2: Rafailov et al. 2023."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.data.batches import PreferenceBatch
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import weights_fingerprint
from llama2_pl.modules.base import plain_arguments
from llama2_pl.modules.experience import policy_logprobs
from llama2_pl.modules.global_mean import GlobalMeanModule
from llama2_pl.objectives.dpo import answer_mask, dpo_loss, implicit_rewards


class DPOModule(GlobalMeanModule):
    """Make the chosen answer of a pair likelier than the rejected one, measured against the frozen start.

    Rafailov et al. 2023: beta 0.1, 64 pairs per batch, peak rate 1e-6. Our choice: AdamW and the cosine schedule of
    the reward models instead of RMSprop at a constant rate; the ratings of the pairs are not used.
    On PreferenceDataModule, as the reward models. The start is not in the checkpoint: a resumed run reads it from its
    file and refuses a `policy` file whose weights have changed.

    Args:
        policy: checkpoint to start from, which is also the reference.
        beta: how dear it is to leave the reference.
        lr: peak learning rate.
        min_lr_ratio: last learning rate as a share of the peak.
        warmup_ratio: share of the run's optimizer steps that warm up.
        min_warmup_steps: but at least so many.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of every matrix; gains of norms do not decay.
        policy_backbone: size of the policy; read from its file.
    """

    batch_type = PreferenceBatch
    policy: LanguageModel

    def __init__(
        self,
        policy: str,
        beta: float = 0.1,
        lr: float = 1e-6,
        min_lr_ratio: float = 0.1,
        warmup_ratio: float = 0.03,
        min_warmup_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
        policy_backbone: ModelConfig | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(plain_arguments(locals()))
        # In a tuple, so that it is no child of this module: not in checkpoints, not among the parameters.
        self._reference: tuple[LanguageModel, ...] = ()
        self._reference_fingerprint = ""

    def setup(self, stage: str) -> None:
        if not self._reference:
            reference = load_language_model(self.hparams["policy"], tokenizer=self.find_tokenizer())
            self._reference_fingerprint = weights_fingerprint(reference)
            self._reference = (self.frozen(reference),)

    def build_networks(self) -> None:
        if not self.attached:
            self.policy = self.fresh(LanguageModel, self.saved_config("policy_backbone"))
            return
        policy = load_language_model(self.hparams["policy"], tokenizer=self.tokenizer)
        self.remember_configs(policy_backbone=policy.config)
        self.policy = self.distributed(policy)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> the policy's logits (B, T, V)."""
        return self.policy(tokens)

    def logprobs(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the answers (2N,) under the policy and under the reference."""
        mask = answer_mask(batch.tokens, batch.lengths)
        with torch.no_grad():
            reference = _answer_logprobs(self._reference[0], batch, mask)
        return _answer_logprobs(self.policy, batch, mask), reference

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        loss, pairs = self._judged(batch, "train"), len(batch.rating)
        return self.backward_part(loss * pairs, pairs, batch.lengths.sum())

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Implicit rewards (2N,) of the 2N rows."""
        return implicit_rewards(*self.logprobs(batch), self.hparams["beta"])

    def _evaluate(self, batch: PreferenceBatch, stage: str) -> None:
        loss = self._judged(batch, stage)
        self.log(f"{stage}/loss", loss, batch_size=len(batch.rating), sync_dist=True)

    def _judged(self, batch: PreferenceBatch, stage: str) -> Tensor:
        """The loss; logs the share of pairs in the right order and the mean margin of implicit rewards."""
        policy, reference = self.logprobs(batch)
        chosen, rejected = implicit_rewards(policy, reference, self.hparams["beta"]).detach().chunk(2)
        logged = {
            f"{stage}/accuracy": (chosen > rejected).float().mean(),
            f"{stage}/margin": (chosen - rejected).mean(),
        }
        self.log_dict(logged, batch_size=len(chosen), sync_dist=True)
        return dpo_loss(policy, reference, self.hparams["beta"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = self._reference_fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another start than that of the run."""
        super().on_load_checkpoint(checkpoint)
        if self._reference and checkpoint["reference"] != self._reference_fingerprint:
            raise ValueError(
                f"{self.hparams['policy']}: its weights are not those this run started from, and the loss measures the "
                "distance to those; give the original file as policy, or start a new run"
            )


def _answer_logprobs(model: LanguageModel, batch: PreferenceBatch, mask: Tensor) -> Tensor:
    return policy_logprobs(model, batch.tokens, mask, 1.0, batch.packing)[0].sum(1)
