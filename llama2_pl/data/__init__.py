"""Data: readers, token files, mixing, packing, and the four LightningDataModules."""

from llama2_pl.data.batches import Batch, PreferenceBatch, PromptBatch
from llama2_pl.data.corpus import CorpusDataModule
from llama2_pl.data.dialogues import DialogueDataModule
from llama2_pl.data.preferences import PreferenceDataModule
from llama2_pl.data.prompts import PromptDataModule
from llama2_pl.data.token_file import TokenFile, TokenFileWriter

__all__ = [
    "Batch",
    "CorpusDataModule",
    "DialogueDataModule",
    "PreferenceBatch",
    "PreferenceDataModule",
    "PromptBatch",
    "PromptDataModule",
    "TokenFile",
    "TokenFileWriter",
]
