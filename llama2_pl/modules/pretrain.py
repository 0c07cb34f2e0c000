"""Pretraining. Llama 2 §2."""

from __future__ import annotations

from llama2_pl.model.config import ModelConfig
from llama2_pl.modules.base import plain_arguments
from llama2_pl.modules.language import LanguageModule


class PretrainModule(LanguageModule):
    """Predict every token of packed documents from those before it in its document.

    Llama 2 §2.2: AdamW, betas 0.9 and 0.95, eps 1e-5; cosine schedule with 2000 warm-up steps down to 10 % of
    the peak; weight decay 0.1; gradient clipping 1.0 (`trainer.gradient_clip_val`); 4M tokens per step.

    Args:
        backbone: the architecture; None: that of `init_from`.
        lr: peak learning rate; the paper's 3e-4 for 7B and 13B, 1.5e-4 for 34B and 70B.
        min_lr_ratio: last learning rate as a share of the peak.
        warmup_steps: optimizer steps of linear warm-up.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of every matrix; gains of norms do not decay.
        init_from: a checkpoint to start from; None: the documented random init.
        max_seq_len: longest context in tokens, no shorter than that of `init_from`; None: the architecture's.
    """

    def __init__(
        self,
        backbone: ModelConfig | None = None,
        lr: float = 3e-4,
        min_lr_ratio: float = 0.1,
        warmup_steps: int = 2000,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
        init_from: str | None = None,
        max_seq_len: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(plain_arguments(locals()))
