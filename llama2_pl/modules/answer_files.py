"""The files in which rejection sampling keeps its answers: one per batch and rank, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from llama2_pl.files import write_text


def run_key(hyper_parameters: dict[str, Any], fingerprints: list[str]) -> str:
    """Names what a batch file depends on: settings and weights, but not where the file lies or how it is cut."""
    free = {"out", "scoring_batch", "generation_batch"}
    settings = {key: value for key, value in hyper_parameters.items() if key not in free}
    text = json.dumps([settings, fingerprints], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_key(index: int, prompt: list[int]) -> str:
    """Names a prompt of the data in the files, by its place and its ids."""
    return hashlib.sha256(json.dumps([index, prompt]).encode()).hexdigest()


def answered_prompts(folder: Path, key: str) -> dict[str, Path]:
    """Where in a folder each prompt that this very run has answered lies."""
    paths = sorted(folder.glob("batch-*.json"))
    return {row["prompt"]: path for path in paths for row in rows_of_run(path, key)}


def rows_of_run(path: Path, key: str) -> list[dict[str, Any]]:
    """The rows of a batch file, where there is one, it is of this very run, and whole; else none, and why is said."""
    try:
        content = read_batch(path) if path.exists() else {}
    except ValueError as error:
        warnings.warn(f"{error}; its prompts are answered again", stacklevel=2)
        return []
    return content["rows"] if content.get("run") == key else []


def read_batch(path: Path) -> dict[str, Any]:
    """A batch file; ValueError where it is not what was written. One without a hash is taken as it is."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256", None)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, no JSON object ({error})") from error
    if digest is not None and digest != _digest(content):
        raise ValueError(f"{path}: damaged, its content is not what its SHA-256 names")
    return content


def write_batch(path: Path, key: str, rows: list[dict[str, Any]]) -> None:
    """The rows of a batch of the run that `key` names, with the hash by which damage is seen."""
    content = {"run": key, "rows": rows}
    write_text(path, json.dumps({**content, "sha256": _digest(content)}, ensure_ascii=False))


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_rows(folder: str) -> list[dict[str, Any]]:
    """The rows of all batch files of a folder, which must be of one run; each prompt once, in order.

    A run that went on with other batches (more devices, another batch size) leaves files of the old ones behind.
    Their answers are the same, for they depend on nothing but the run and the prompt.
    """
    paths = sorted(Path(folder).glob("batch-*.json"))
    if not paths:
        raise ValueError(
            f"{folder}: no batch-*.json in it; give the `out` folder of a RejectionSamplingModule"
        )
    contents = [read_batch(path) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if content["run"] != contents[0]["run"]:
            raise ValueError(
                f"{path}: of another run than {paths[0].name}; remove the folder and sample again"
            )
    by_index: dict[int, dict[str, Any]] = {}
    for path, content in zip(paths, contents, strict=True):
        for row in content["rows"]:
            known = by_index.setdefault(row["index"], row)
            if known["messages"] != row["messages"]:
                raise ValueError(
                    f"{path}: prompt {row['index']} is another one in an earlier file, for prompts and batches were "
                    "changed between two runs; remove the folder and sample again"
                )
    return [by_index[index] for index in sorted(by_index)]
