"""Language and reward models from and to folders in Hugging Face's format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llama2_pl.checkpoints.hugging_face_config import GENERATION_CONFIG, config_json, read_config
from llama2_pl.checkpoints.hugging_face_tokenizer import tokenizer_config_json, tokenizer_json
from llama2_pl.checkpoints.keys import HEAD, SCORE, Entry, entries
from llama2_pl.checkpoints.networks import (
    Network,
    check_tensors,
    materialise,
    on_meta,
    other_kind,
    read_json,
    shapes_of,
)
from llama2_pl.checkpoints.untrusted import inside
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.text import Tokenizer

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = ("F32", "F16", "BF16")


@overload
def from_hugging_face(folder: str | Path, dtype: torch.dtype = torch.float32) -> LanguageModel: ...
@overload
def from_hugging_face(folder: str | Path, dtype: torch.dtype, network: type[Network]) -> Network: ...
def from_hugging_face(
    folder: str | Path, dtype: torch.dtype = torch.float32, network: Any = LanguageModel
) -> Any:
    """The language model in a folder of config.json and safetensors; with `network` ScalarModel the reward model.

    A reward model is a LlamaForSequenceClassification of one label: the number at the last token is the score. Names,
    shapes and types of all tensors are checked, from the files' headers, before anything is allocated.
    """
    folder = Path(folder)
    config = read_config(folder / "config.json")
    files = _weight_files(folder)
    model = on_meta(network, config, folder, sum(map(len, files.values())))
    ours = {entry.hugging_face: entry.ours for entry in _entries(model)}
    shapes = shapes_of(model.state_dict())
    _check_headers(folder, files, {theirs: shapes[name] for theirs, name in ours.items()})
    materialise(model, dtype)
    for path, names in files.items():
        with torch.no_grad(), safe_open(path, framework="pt") as file:
            for name in names:
                model.get_parameter(ours[name]).copy_(file.get_tensor(name))
    return model


def to_hugging_face(
    model: LanguageModel | ScalarModel,
    folder: str | Path,
    tokenizer: Tokenizer | str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that transformers and vLLM load: configs, safetensors and, given a tokenizer.model, that too.

    A reward model is a LlamaForSequenceClassification of one label, whose logit is the score.

    Args:
        model: whole on this process, all parameters of one dtype.
        folder: new or empty; it appears when everything is written.
        tokenizer: a SentencePiece tokenizer.model, opened or its path.
        max_shard_bytes: a file of weights is at most this long, unless one tensor is longer.
        dtype: of the weights in the files; None: the model's.
    """
    config, scores = model.config, isinstance(model, ScalarModel)
    dtype = model.head.weight.dtype if dtype is None else dtype
    texts: dict[str, Any] = {"config.json": config_json(config, dtype, scores)}
    if not scores:
        texts["generation_config.json"] = GENERATION_CONFIG
    if tokenizer is not None:
        tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer)
        _check_vocabulary(tokenizer, config.vocab_size)
        texts["tokenizer.json"] = tokenizer_json(tokenizer.path)
        texts["tokenizer_config.json"] = tokenizer_config_json(config.max_seq_len, pads=scores)
    with _appearing(Path(folder)) as target:
        _write_weights(model, target, max_shard_bytes, dtype)
        for name, content in texts.items():
            _write_json(target / name, content)
        if tokenizer is not None:
            shutil.copyfile(tokenizer.path, target / "tokenizer.model")


def _entries(model: LanguageModel | ScalarModel) -> list[Entry]:
    layers = model.config.n_layers
    return entries(layers, SCORE) if isinstance(model, ScalarModel) else entries(layers)


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """Each file of weights and the tensors in it that are parameters."""
    index = folder / _INDEX
    if not index.is_file():
        path = folder / _SINGLE
        if not path.is_file():
            raise ValueError(
                f"{folder}: neither {_SINGLE} nor {_INDEX} in this folder; other formats are not read, pickles "
                "(pytorch_model.bin) least of all: save the model as safetensors"
            )
        path = inside(folder, _SINGLE, path)
        return {path: _parameters(_header(path))}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: weight_map is {weight_map!r}; it maps each tensor to its file")
    files: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        # An index comes from strangers: a path in it could reach any file of the reader's.
        file = str(file)
        if file != os.path.basename(file) or not file.endswith(".safetensors") or "\\" in file:
            raise ValueError(f"{index}: {name} is in {file!r}, which is not the name of a .safetensors file")
        files.setdefault(inside(folder, file, index), []).append(name)
    return {path: _parameters(names) for path, names in files.items()}


def _parameters(names: Any) -> list[str]:
    # RoPE's table is derived, never loaded; the first conversions of Llama 2 hold it.
    return [name for name in names if not name.endswith("rotary_emb.inv_freq")]


def _header(path: Path) -> dict[str, tuple[list[int], str]]:
    """Name to (shape, dtype) of all tensors in a file, read without the tensors."""
    if not path.is_file():
        raise ValueError(f"{path}: the index names this file and it is missing; download it")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); download it again") from error


def _check_headers(folder: Path, files: dict[Path, list[str]], expected: dict[str, Any]) -> None:
    found: dict[str, Any] = {}
    for path, indexed in files.items():
        header = _header(path)
        if set(_parameters(header)) != set(indexed):
            odd = min(set(_parameters(header)) ^ set(indexed))
            raise ValueError(f"{path}: {odd} is in only one of this file and the index; download both again")
        for name in indexed:
            shape, dtype = header[name]
            if dtype not in _DTYPES:
                raise ValueError(f"{path}: {name} is of type {dtype}; readable are {', '.join(_DTYPES)}")
            found[name] = shape
    for head, wanted in ((SCORE, HEAD), (HEAD, SCORE)):
        if head.hugging_face in found and wanted.hugging_face in expected.keys() - found.keys():
            raise other_kind(folder, scores=head == SCORE)
    check_tensors(folder, expected, found)


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{tokenizer.path}: {tokenizer.vocab_size} pieces and the model has {vocab_size}; "
            "give the tokenizer that the model was trained with"
        )


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside the target, which it becomes when all is written."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: already there and not empty; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_weights(
    model: LanguageModel | ScalarModel, folder: Path, max_shard_bytes: int, dtype: torch.dtype
) -> None:
    parameters = dict(model.named_parameters())
    tensors = {entry.hugging_face: parameters[entry.ours].detach() for entry in _entries(model)}
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in tensors.items()}
    shards = _shards(sizes, max_shard_bytes)
    count = len(shards)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = _SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        content = {name: tensors[name].to(dtype).contiguous() for name in shard}
        save_file(content, folder / file, {"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes files that only their owner reads
        weight_map.update(dict.fromkeys(shard, file))
    if count > 1:
        total = sum(sizes.values())
        _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(sizes: dict[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names in order, a new shard before the one that would make it too long; sizes in bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, own in sizes.items():
        if shards[-1] and size + own > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
