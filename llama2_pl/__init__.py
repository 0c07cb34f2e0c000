"""The Llama 2 recipe as a PyTorch Lightning system; every public name below is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama2_pl.checkpoints.ours import load_language_model, load_reward_model
    from llama2_pl.data import CorpusDataModule, DialogueDataModule, PreferenceDataModule, PromptDataModule
    from llama2_pl.generation import generate, responses
    from llama2_pl.model.config import ModelConfig
    from llama2_pl.model.heads import LanguageModel, ScalarModel
    from llama2_pl.model.processor import best_precision
    from llama2_pl.modules import (
        DPOModule,
        PPOModule,
        PretrainModule,
        RejectionSamplingModule,
        RewardModule,
        SFTModule,
    )
    from llama2_pl.text import Dialog, Tokenizer

__version__ = "0.1.0"

# where each public name is; `import llama2_pl` itself loads neither torch nor lightning
_PLACES = {
    "CorpusDataModule": "data",
    "DPOModule": "modules",
    "Dialog": "text",
    "DialogueDataModule": "data",
    "LanguageModel": "model.heads",
    "ModelConfig": "model.config",
    "PPOModule": "modules",
    "PreferenceDataModule": "data",
    "PretrainModule": "modules",
    "PromptDataModule": "data",
    "RejectionSamplingModule": "modules",
    "RewardModule": "modules",
    "SFTModule": "modules",
    "ScalarModel": "model.heads",
    "Tokenizer": "text",
    "best_precision": "model.processor",
    "generate": "generation",
    "load_language_model": "checkpoints.ours",
    "load_reward_model": "checkpoints.ours",
    "responses": "generation",
}

__all__ = [
    "CorpusDataModule",
    "DPOModule",
    "Dialog",
    "DialogueDataModule",
    "LanguageModel",
    "ModelConfig",
    "PPOModule",
    "PreferenceDataModule",
    "PretrainModule",
    "PromptDataModule",
    "RejectionSamplingModule",
    "RewardModule",
    "SFTModule",
    "ScalarModel",
    "Tokenizer",
    "__version__",
    "best_precision",
    "generate",
    "load_language_model",
    "load_reward_model",
    "responses",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
