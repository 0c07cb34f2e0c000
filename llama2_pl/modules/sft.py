"""Supervised fine-tuning. Llama 2 §3.1."""

from __future__ import annotations

from llama2_pl.model.config import ModelConfig
from llama2_pl.modules.base import plain_arguments
from llama2_pl.modules.language import LanguageModule


class SFTModule(LanguageModule):
    """Learn the answers of dialogues; the loss of prompt tokens is zeroed by the batch's loss_mask.

    Llama 2 §3.1: cosine schedule from 2e-5, weight decay 0.1, batches of 64 sequences of 4096 tokens, 2 epochs.
    Warm-up, final rate and betas are not stated. Our choice: those of the paper's reward models and base model.
    Rejection-sampling fine-tuning (§3.2.3) and Ghost Attention (§3.3) are this module on other dialogues.

    Args:
        backbone: the architecture; None: that of `init_from`.
        init_from: the pretrained checkpoint; None: random weights.
        lr: peak learning rate.
        min_lr_ratio: last learning rate as a share of the peak.
        warmup_ratio: share of the run's optimizer steps that warm up.
        min_warmup_steps: but at least so many.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of every matrix; gains of norms do not decay.
        max_seq_len: longest context in tokens, no shorter than that of `init_from`; None: the architecture's.
    """

    def __init__(
        self,
        backbone: ModelConfig | None = None,
        init_from: str | None = None,
        lr: float = 2e-5,
        min_lr_ratio: float = 0.1,
        warmup_ratio: float = 0.03,
        min_warmup_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
        max_seq_len: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(plain_arguments(locals()))
