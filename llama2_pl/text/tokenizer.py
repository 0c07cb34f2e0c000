"""The SentencePiece tokenizer: text to ids by number only, and how to train one.

Llama 2 §2.2 and the proto of the released tokenizer.model.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from llama2_pl.files import write_bytes
from llama2_pl.text.proto import specs

# The options of the released model's proto. What is not here has SentencePiece's own default, and that
# default is the released value too (unk_surface, seed_sentencepiece_size, shrinking_factor, ...).
LLAMA2_TRAINER_OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "seed_sentencepiece_size": 1_000_000,
    "shrinking_factor": 0.75,
    "num_sub_iterations": 2,
    "max_sentence_length": 4192,
    "max_sentencepiece_length": 16,
    "split_by_unicode_script": True,
    "split_by_whitespace": True,
    "split_by_number": True,
    "split_digits": True,
    "treat_whitespace_as_suffix": False,
    "allow_whitespace_only_pieces": True,
    "byte_fallback": True,
    "hard_vocab_limit": True,
    "vocabulary_output_piece_score": True,
    "unk_surface": " \u2047 ",
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
}

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Text to ids and back with a SentencePiece BPE model.

    Llama 2 §2.2; ids 0 <unk>, 1 <s>, 2 </s>, then 256 bytes, then merges.

    BOS and EOS are added by number and never parsed from text: the text "<s>" stays four characters.
    A model that is not BPE, has no byte fallback, or numbers BOS and EOS differently cannot hold the
    Llama 2 format and is refused.

    Args:
        path: of the ``tokenizer.model``.
        require_llama: False loads any SentencePiece model all the same, for looking at it.
    """

    def __init__(self, path: str | Path, *, require_llama: bool = True) -> None:
        self.path = Path(path)
        model = _read_model(self.path)
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = _load(model, self.path)
        if require_llama:
            _require_llama(model, self._processor, self.path)

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def unk_id(self) -> int:
        return self._processor.unk_id()

    @property
    def bos_id(self) -> int:
        return self._processor.bos_id()

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def pad_id(self) -> int:
        """-1 in Llama 2: there is no padding token; batches pad with any id and mask it."""
        return self._processor.pad_id()

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of ``text``, with BOS before and EOS after where asked."""
        _check_text(text)
        # One text: for a list sentencepiece makes threads, which take ten times as long as a sentence.
        ids = self._processor.encode_as_ids(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; BOS and EOS stand for no text and are left out."""
        kept = [self._checked(i) for i in ids]
        return self._processor.decode([i for i in kept if not self._processor.is_control(i)])

    def piece(self, index: int) -> str:
        """The piece with this id as the model writes it: "▁the", "<0x0A>", "</s>"."""
        return self._processor.id_to_piece(self._checked(index))

    def _checked(self, index: int) -> int:
        index = int(index)
        if not 0 <= index < self.vocab_size:
            raise ValueError(
                f"{self.path}: id {index} is outside the vocabulary of {self.vocab_size}; cut padding before decoding"
            )
        return index


def train_tokenizer(
    inputs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    vocab_size: int = 32_000,
    input_sentence_size: int = 200_000_000,
    seed: int = 0,
    num_threads: int = 2,
) -> Tokenizer:
    """Train a tokenizer with Llama 2's options; write tokenizer.model and tokenizer.vocab to ``out_dir``.

    Llama 2 §2.2 and the released proto (``LLAMA2_TRAINER_OPTIONS``).

    Args:
        inputs: texts (``str``) and UTF-8 text files (``Path``), in any mixture. Each line is a sentence. Files of
            other formats: ``llama2_pl.data.vocabulary.train_tokenizer_on_files``.
        out_dir: where to write; both files appear whole or not at all.
        vocab_size: pieces in all, with 3 control pieces and 256 bytes.
        input_sentence_size: most sentences to look at, a random sample beyond that.
        seed: of that sample. Our choice; the paper has none.
        num_threads: of the trainer; it does not change the result.
    """
    if vocab_size <= 259:
        raise ValueError(
            f"vocab_size {vocab_size}: 3 control pieces and 256 bytes come first; ask for 260 or more"
        )
    model, failed = io.BytesIO(), list[ValueError]()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_noting(failed, _sentences(inputs)),
            model_writer=model,
            vocab_size=vocab_size,
            input_sentence_size=input_sentence_size,
            shuffle_input_sentence=True,
            num_threads=num_threads,
            minloglevel=2,
            **LLAMA2_TRAINER_OPTIONS,
        )
    except RuntimeError as error:
        if failed:  # SentencePiece tells it as a fault of its own
            raise failed[0] from None
        raise ValueError(_training_advice(str(error), vocab_size)) from error
    return _write_model(model.getvalue(), Path(out_dir))


def _noting(failed: list[ValueError], sentences: Iterator[str]) -> Iterator[str]:
    """The sentences; what is wrong with an input is noted before it is raised."""
    try:
        yield from sentences
    except ValueError as error:
        failed.append(error)
        raise


def _sentences(inputs: Iterable[str | Path]) -> Iterator[str]:
    """The lines of all inputs that hold something; SentencePiece takes a line for a sentence."""
    found = False
    for item in inputs:
        for line in _lines(item):
            if line.strip():
                found = True
                yield from _cut(line)
    if not found:
        raise ValueError("there is no text to train a tokenizer on: every input is empty")


def _lines(item: str | Path) -> Iterator[str]:
    if isinstance(item, Path):
        with item.open(encoding="utf-8-sig") as file:
            try:
                yield from (_check_text(line.rstrip("\n")) for line in file)
            except ValueError as error:  # UnicodeDecodeError is one
                raise ValueError(
                    f"{item}: {error}; give UTF-8 text, or read the file and pass texts"
                ) from error
    elif os.path.isfile(item):
        raise ValueError(f"{item!r} is taken for a text and is the name of a file: give Path({item!r})")
    else:
        yield from _check_text(item).split("\n")


def _cut(line: str, characters: int = 1024) -> Iterator[str]:
    """A line in parts that fit max_sentence_length (4 bytes a character at most), cut at a space if it has one.

    Our choice: SentencePiece passes over longer lines in silence, and no piece crosses a space anyway.
    """
    while len(line) > characters:
        end = line.rfind(" ", 1, characters)
        end = end if end > 0 else characters
        yield line[:end]
        line = line[end:]
    yield line


def _training_advice(message: str, vocab_size: int) -> str:
    """SentencePiece's error as one line that says what to do."""
    too_high = re.search(r"value <= (\d+)", message)
    if too_high:
        return (
            f"vocab_size {vocab_size} is too large for this text: at most {too_high.group(1)}. "
            "Give more text or a smaller vocab_size."
        )
    too_low = re.search(r"smaller than required_chars\D*(\d+) vs (\d+)", message)
    if too_low:
        return f"vocab_size {vocab_size} is too small for the characters of this text: at least {too_low.group(2)}."
    return f"SentencePiece could not train (vocab_size {vocab_size}): {message}"


def _write_model(model: bytes, out_dir: Path) -> Tokenizer:
    out_dir.mkdir(parents=True, exist_ok=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    rows = (
        f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in range(processor.get_piece_size())
    )
    write_bytes(out_dir / "tokenizer.vocab", "".join(rows).encode("utf-8"))
    write_bytes(out_dir / "tokenizer.model", model)
    return Tokenizer(out_dir / "tokenizer.model")


def _check_text(text: str) -> str:
    """``text`` itself, or one clear error where SentencePiece has an odd one or none."""
    if not isinstance(text, str):
        raise ValueError(f"expected text, got {type(text).__name__}: {text!r:.60}")
    surrogate = _SURROGATE.search(text)
    if surrogate:
        raise ValueError(
            f"the text holds the lone surrogate U+{ord(surrogate.group()):04X} at character {surrogate.start()}, "
            "which is not a Unicode character; repair or drop the row"
        )
    return text


def _read_model(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer file; give the path of a tokenizer.model")
    return path.read_bytes()


def _load(model: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a SentencePiece model ({error}); give a tokenizer.model file"
        ) from error


def _require_llama(model: bytes, processor: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Refuse a model that cannot hold the Llama 2 format, naming everything that differs."""
    trainer, normalizer = specs(model)
    found = []
    if trainer.get(3, 1) != 2:
        found.append(f"it is {_MODEL_TYPES.get(trainer.get(3, 1), 'unknown')}, not BPE")
    if not trainer.get(35, 0):
        found.append("it has no byte fallback")
    if (processor.bos_id(), processor.eos_id()) != (1, 2):
        found.append(f"BOS and EOS are {processor.bos_id()} and {processor.eos_id()}, not 1 and 2")
    if not normalizer.get(3, 1) or normalizer.get(4, 1):
        found.append("it adds no leading space or removes spaces, so the chat format would lose its own")
    if found:
        raise ValueError(
            f"{path}: not a Llama 2 tokenizer: {'; '.join(found)}. Train one with train_tokenizer."
        )
