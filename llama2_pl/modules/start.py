"""What a stage starts from: the network of another stage's checkpoint, at the size that the run asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.model.transformer import extend_context
from llama2_pl.text.tokenizer import Tokenizer

_weights_follow: ContextVar[bool] = ContextVar("weights_follow", default=False)


@contextmanager
def weights_following() -> Iterator[None]:
    """Inside, networks are made for weights that a checkpoint will give them."""
    before = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(before)


def weights_follow() -> bool:
    """Whether that is so: the files that a module's options name are not read, and need not be there any more."""
    return _weights_follow.get()


def starting_model(
    path: str, backbone: Mapping[str, Any] | None, max_seq_len: int | None, tokenizer: Tokenizer | None
) -> LanguageModel:
    """The language model of a checkpoint, made to read a longer context where the run asks for one.

    Args:
        path: as `load_language_model` takes it.
        backbone: the size that it must have, but for the context; None: whatever it has.
        max_seq_len: with `backbone` None: the context; None: the checkpoint's.
        tokenizer: refuse a checkpoint that was trained with another one.

    Raises:
        ValueError: naming the first size in which the checkpoint differs; also for a context longer than asked for.
    """
    model = load_language_model(path, tokenizer=tokenizer)
    wanted = ModelConfig.of(backbone or model.config.with_context(max_seq_len))
    if wanted.max_seq_len > model.config.max_seq_len:
        extend_context(model, wanted.max_seq_len)
    for name, value, other in wanted.differences(model.config):
        raise ValueError(
            f"{path}: its {name} is {other!r} and this run asks for {value!r}; leave out model.backbone and "
            "model.max_seq_len to take the checkpoint's"
        )
    return model


def with_scalar_head(chat: LanguageModel) -> ScalarModel:
    """A scalar model on a copy of a chat model's backbone, with a new head. Llama 2 §3.2.2."""
    # Where checkpoints are read to; inside configure_model the default device may be a GPU.
    with torch.device("cpu"):
        model = ScalarModel(chat.config)
    model.backbone.load_state_dict(chat.backbone.state_dict())
    return model
