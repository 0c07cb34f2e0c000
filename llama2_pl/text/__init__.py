"""Tokenizer and chat format: text and dialogues to ids and loss mask."""

from llama2_pl.text.chat import (
    Dialog,
    EncodedDialog,
    Message,
    encode_dialog,
    encode_prompt,
    truncate_dialog,
    validate_roles,
)
from llama2_pl.text.preview import preview, render
from llama2_pl.text.tags import find_control_tags, neutralise_control_tags, strip_control_tags
from llama2_pl.text.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "Dialog",
    "EncodedDialog",
    "Message",
    "Tokenizer",
    "encode_dialog",
    "encode_prompt",
    "find_control_tags",
    "neutralise_control_tags",
    "preview",
    "render",
    "strip_control_tags",
    "train_tokenizer",
    "truncate_dialog",
    "validate_roles",
]
