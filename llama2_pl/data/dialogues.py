"""DialogueDataModule: dialogues to packed rows with the loss on answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info

from llama2_pl.data.base import NumberedDataModule, require_at_least, require_share
from llama2_pl.data.cache import Files, build_once, describe_files, fingerprint
from llama2_pl.data.loader import BatchLoader
from llama2_pl.data.packed import DocumentSet, WholeBatches
from llama2_pl.data.packing import RowPlan, pack_whole
from llama2_pl.data.readers import dialog_to_row, read_dialogues
from llama2_pl.data.sampling import RowStream, is_held_out
from llama2_pl.data.token_file import TokenFile, TokenFileWriter
from llama2_pl.text.chat import Dialog, encode_dialog
from llama2_pl.text.tokenizer import Tokenizer

TrainOn = Literal["answers", "last_answer"]
Tags = Literal["refuse", "neutralise"]


class PackingReport(NamedTuple):
    """What packing did with the dialogues; a repeated one counts each time."""

    dialogues: int
    truncated: int
    """Cut at the end because they were longer than a row."""
    dropped: int
    """Left out because no answer begins within a row."""
    rows: int
    fill: float
    """Share of the rows' tokens that is not padding."""

    def __str__(self) -> str:
        return (
            f"{self.dialogues} in {self.rows} rows, {self.fill:.1%} filled; "
            f"{self.truncated} cut at the end of a row, {self.dropped} left out"
        )


class PackedDialogues(NamedTuple):
    """Dialogues ready to be drawn."""

    documents: DocumentSet
    plan: RowPlan
    report: PackingReport


class DialogueDataModule(NumberedDataModule):
    """SFT data: dialogues packed whole into rows, the loss on answers.

    Llama 2 §3.1: 2 epochs, batch size 64, sequence length 4096, loss zeroed on prompt tokens.

    All epochs are one Lightning epoch (``max_epochs=1``), so that a run has one length and one position; each
    epoch has an order of its own. Dialogues longer than a row lose their end.

    Args:
        train: path, folder of one format, glob, or list of them; formats of ``read_dialogues``.
        tokenizer: path of a SentencePiece ``tokenizer.model``.
        val: files to validate on.
        val_fraction: share of ``train`` held out instead, by a hash of the first user message.
        seq_len: tokens per row.
        batch_size: rows per micro-batch over all devices.
        epochs: passes over the dialogues.
        train_on: "answers" for all of them, "last_answer" for the last one only.
        tags: what to do with a message that holds [INST] and the like: "refuse" or "neutralise".
        format: of all files; "auto" tells it from their keys.
        seed: of packing and orders.
        cache_dir: where encoded dialogues are kept.
        num_workers: processes that prepare batches; batches do not depend on it.
    """

    late_settings = ("added",)

    def __init__(
        self,
        train: str | list[str],
        tokenizer: str,
        val: str | list[str] | None = None,
        val_fraction: float = 0.0,
        seq_len: int = 4096,
        batch_size: int = 64,
        epochs: int = 2,
        train_on: Literal["answers", "last_answer"] = "answers",
        tags: Literal["refuse", "neutralise"] = "refuse",
        format: str = "auto",
        seed: int = 0,
        cache_dir: str = ".cache/llama2_pl",
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        # Not logged: Lightning raises when model and data have a hyper-parameter of one name and two values.
        self.save_hyperparameters(logger=False)
        require_at_least(2, seq_len=seq_len)  # a row of one token has no target
        require_at_least(1, epochs=epochs)
        refuse_two_validation_sets(val, val_fraction)
        self.train = train
        self.tokenizer = tokenizer
        self.val = val
        self.val_fraction = val_fraction
        self.seq_len = seq_len
        self.epochs = epochs
        self.train_on: TrainOn = train_on
        self.tags: Tags = tags
        self.format = format
        self.seed = seed
        self.cache_dir = cache_dir
        self._files: dict[str, TokenFile] = {}
        self._added: list[tuple[TokenFile, int]] = []
        self._packed: dict[str, PackedDialogues] = {}

    def prepare_data(self) -> None:
        """Encode the dialogues unless the cache has them."""
        self._folder(Tokenizer(self.tokenizer))

    def setup(self, stage: str | None = None) -> None:
        if self._files:
            return
        tokenizer = Tokenizer(self.tokenizer)
        self._tokenizer_sha256 = tokenizer.sha256
        folder = self._folder(tokenizer)
        files = {part: TokenFile(folder / part) for part in ("train", "val")}
        if not len(files["train"]):
            raise ValueError(f"data.train: no dialogue to train on in {self.train}")
        if self.val and not len(files["val"]):
            raise ValueError(f"data.val: no dialogue in {self.val}")
        self._files = files

    def add_dialogues(
        self, dialogues: Iterable[Dialog], train_on: TrainOn = "last_answer", repeat: int = 1
    ) -> None:
        """Train on these too, ``repeat`` times per epoch. After ``setup`` and before the training loader is made.

        Llama 2 §3.3: Ghost Attention adds dialogues whose last answer alone is trained. On several ranks each must
        add the same ones; on resume they must be added again, and other ones are refused.
        """
        tokenizer = Tokenizer(self.tokenizer)
        rows = list(dialogues)
        made_from = [tokenizer.sha256, train_on, self.tags, [dialog_to_row(row) for row in rows]]

        def build(folder: Path) -> None:
            encode_all({"added": rows}, folder / "train", tokenizer, train_on, self.tags)

        folder = build_once(self.cache_dir, "dialogues-added", made_from, build)
        self._added.append((TokenFile(folder / "train"), repeat))
        self._packed.pop("train", None)

    @property
    def report(self) -> PackingReport:
        """What packing did with the training dialogues. Available after ``setup``."""
        return self._part("train").report

    def settings(self) -> dict[str, int | str]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "tokenizer": self._tokenizer_sha256,
            "train": self._files["train"].sha256,
            "added": fingerprint([[file.sha256, repeat] for file, repeat in self._added]),
        }

    def paths(self) -> dict[str, Files]:
        return {"tokenizer": self.tokenizer, "train": self.train}

    @property
    def longest(self) -> int:
        """Tokens of a row: all are filled up to as many."""
        return self.seq_len

    def train_batches(self) -> WholeBatches:
        rows = len(self._part("train").plan)
        return self._batches("train", RowStream(rows, self.batch_size, self.epochs * rows, self.seed))

    def val_dataloader(self) -> BatchLoader | list:
        """Every held-out dialogue once."""
        if not len(self._files["val"]):
            return []
        rows = len(self._part("val").plan)
        return self.eval_loader(self._batches("val", RowStream(rows, self.batch_size, rows, shuffle=False)))

    def _batches(self, part: str, stream: RowStream) -> WholeBatches:
        packed = self._part(part)
        return WholeBatches(packed.documents, packed.plan, stream, self.seq_len, *self.ranks())

    def _part(self, part: str) -> PackedDialogues:
        if part not in self._packed:
            added = self._added if part == "train" else []
            self._packed[part] = pack_dialogues([(self._files[part], 1), *added], self.seq_len, self.seed)
            rank_zero_info(f"{part} dialogues: {self._packed[part].report}")
        return self._packed[part]

    def _folder(self, tokenizer: Tokenizer) -> Path:
        train = describe_files(self.train, "data.train")
        val = describe_files(self.val, "data.val") if self.val else []
        options = [tokenizer.sha256, self.format, self.train_on, self.tags, self.val_fraction]

        def build(folder: Path) -> None:
            args = (tokenizer, self.train_on, self.tags)
            encode_all(self._read(train, held_out=False), folder / "train", *args)
            held_out = self._read(val, held_out=False) if val else self._read(train, held_out=True)
            encode_all(held_out, folder / "val", *args)

        return build_once(self.cache_dir, "dialogues", [train, val, options], build)

    def _read(self, files: list, held_out: bool) -> dict[str, Iterable[Dialog]]:
        def keep(dialog: Dialog) -> bool:
            return is_held_out(opening(dialog), self.val_fraction) == held_out

        return {file[0]: _filtered(lambda f=file[0]: read_dialogues(f, self.format), keep) for file in files}


def refuse_two_validation_sets(val: Files | None, val_fraction: float) -> None:
    """Raise ValueError where both ``val`` and ``val_fraction`` are given, or the fraction is none."""
    require_share(val_fraction)
    if val and val_fraction:
        raise ValueError("data.val and data.val_fraction are both given: give one of them")


def opening(dialog: Dialog) -> str:
    """What decides on which side of the train/validation split a dialogue falls: its first user message.

    Our choice: continuations of one conversation, and other answers to one question, stay on one side.
    """
    return next(message.content.strip() for message in dialog.messages if message.role == "user")


def encode_all(
    dialogues: dict[str, Iterable[Dialog]], folder: Path, tokenizer: Tokenizer, train_on: TrainOn, tags: Tags
) -> None:
    """Encode dialogues, given by the name of the file they come from, to a token file with its loss mask."""
    writer = TokenFileWriter(folder, tokenizer.vocab_size, tokenizer.sha256, with_mask=True)
    for name, rows in dialogues.items():
        for number, dialog in enumerate(rows):
            try:
                writer.add(*encode_dialog(dialog, tokenizer, train_on=train_on, tags=tags))
            except ValueError as error:
                raise ValueError(f"{name}: dialogue {number} ({opening(dialog)[:40]!r}): {error}") from error
    writer.close(list(dialogues))


def pack_dialogues(files: Sequence[tuple[TokenFile, int]], seq_len: int, seed: int) -> PackedDialogues:
    """Rows of whole dialogues from token files, each with the number of times its dialogues are taken."""
    file_of = np.concatenate([np.full(len(file) * times, i) for i, (file, times) in enumerate(files)])
    start_of = np.concatenate([np.tile(file.offsets[:-1], times) for file, times in files])
    full = np.concatenate([np.tile(file.lengths, times) for file, times in files])
    lengths = np.minimum(full, seq_len)
    documents = DocumentSet([file for file, _ in files], file_of, start_of, lengths)
    long = np.flatnonzero(full > seq_len)
    dropped = np.array([d for d in long.tolist() if not _has_target(documents, d)], dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(lengths)), dropped)
    if not len(kept):
        raise ValueError(
            f"no answer of {len(lengths)} dialogues begins within data.seq_len={seq_len}: raise it"
        )
    plan = pack_whole(lengths[kept], seq_len, seed)
    plan = RowPlan(kept[plan.documents], plan.starts)
    fill = float(lengths[kept].sum() / (len(plan) * seq_len))
    report = PackingReport(len(lengths), len(long) - len(dropped), len(dropped), len(plan), round(fill, 4))
    return PackedDialogues(documents, plan, report)


def _has_target(documents: DocumentSet, document: int) -> bool:
    file, start, stop = documents.segment(document)
    assert file.mask is not None
    return bool(file.mask[start + 1 : stop].any())


def _filtered(read: Callable[[], Iterator[Dialog]], keep: Callable[[Dialog], bool]) -> Iterator[Dialog]:
    return (dialog for dialog in read() if keep(dialog))
