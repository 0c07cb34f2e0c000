"""Toxicity of a document by a classifier of one's own: the mean over its lines (Llama 2 §4.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_BATCH = 32  # lines, of like lengths


def toxicity_scorer(folder: str, label: int = 1) -> Callable[[str], float]:
    """Document -> mean over its lines of the probability of ``label``, 0 to 1; blank lines have no say.

    A classifier with one label gives that label's probability by itself. A line is cut at what the classifier can read.

    Args:
        folder: a Hugging Face folder of a sequence classifier with its tokenizer.
        label: number of the label that means toxic.
    """
    if not Path(folder, "config.json").is_file():
        raise ValueError(
            f"toxicity: {folder} has no config.json; give the folder of a Hugging Face classifier"
        )
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise ImportError("toxicity needs transformers: pip install 'llama2-pl[hf]'") from error
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    labels = model.config.num_labels
    if labels > 1 and not 0 <= label < labels:
        names = ", ".join(f"{number} {name}" for number, name in model.config.id2label.items())
        raise ValueError(f"toxicity_label is {label}: {folder} has the labels {names}")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))

    @torch.no_grad()
    def probabilities(lines: list[str]) -> torch.Tensor:
        inputs = tokenizer(lines, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        logits = model(**inputs.to(model.device)).logits.float()
        return logits[:, 0].sigmoid() if labels == 1 else logits.softmax(dim=-1)[:, label]

    def score(text: str) -> float:
        lines = sorted((line.strip() for line in text.split("\n") if line.strip()), key=len)
        batches = (lines[start : start + _BATCH] for start in range(0, len(lines), _BATCH))
        return sum(float(probabilities(batch).sum()) for batch in batches) / max(1, len(lines))

    return score
