"""Readers: files as they are found to documents, dialogues, preference pairs and prompts."""

from llama2_pl.data.readers.common import Limits, ReadReport, write_jsonl
from llama2_pl.data.readers.dialogues import dialog_to_row, read_dialogues
from llama2_pl.data.readers.documents import Document, read_documents
from llama2_pl.data.readers.preferences import PreferenceRow, preference_to_row, read_preferences
from llama2_pl.data.readers.prompts import PromptRow, prompt_to_row, read_prompts
from llama2_pl.data.readers.samples import EvaluationSample, SampleKeys, read_samples

__all__ = [
    "Document",
    "EvaluationSample",
    "Limits",
    "PreferenceRow",
    "PromptRow",
    "ReadReport",
    "SampleKeys",
    "dialog_to_row",
    "preference_to_row",
    "prompt_to_row",
    "read_dialogues",
    "read_documents",
    "read_preferences",
    "read_prompts",
    "read_samples",
    "write_jsonl",
]
