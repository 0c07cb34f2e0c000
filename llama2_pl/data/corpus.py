"""CorpusDataModule: text files to packed rows of a weighted mix."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from llama2_pl.data.base import NumberedDataModule, require_at_least, require_share
from llama2_pl.data.cache import Files, build_once, describe_files
from llama2_pl.data.loader import BatchLoader
from llama2_pl.data.mixing import CorpusMix, SourceLedger
from llama2_pl.data.packed import MixedBatches
from llama2_pl.data.sampling import is_held_out
from llama2_pl.data.sources import checked_sources, documents, reader_options
from llama2_pl.data.token_file import TokenFile, TokenFileWriter
from llama2_pl.text.tokenizer import Tokenizer


class CorpusDataModule(NumberedDataModule):
    """Pretraining data: a weighted mix of text sources, tokenised once to memory-mapped files.

    Llama 2 §2.1-2.2. The paper gives no mix; Llama 1's Table 1 is web 67 %, C4 15, code 4.5, Wikipedia 4.5,
    books 4.5, arXiv 2.5, Stack Exchange 2.

    Args:
        sources: name -> ``{"path": file, folder, glob or list of them, "weight": number, "format": "auto"}``.
            Weights are shares of sequences once divided by their sum. All but ``path`` may be left out;
            ``encoding``, ``text_key`` and ``strict`` go to the reader as they are.
        tokenizer: path of a SentencePiece ``tokenizer.model``.
        seq_len: tokens per row.
        batch_size: rows per micro-batch over all devices; a multiple of the number of data-parallel ranks.
        num_batches: micro-batches of the run; None: ``max_steps * accumulate_grad_batches`` of the Trainer.
        val_fraction: share of documents held out, chosen by a hash of their text and never trained on.
        val_batches: most validation batches; the held-out documents are mixed by the same weights.
        seed: of the mix and of all orders.
        cache_dir: where token files are kept, keyed by source files, tokenizer and options.
        num_workers: processes that prepare batches; batches do not depend on it.
        max_tokens_per_source: stop reading a source there; None reads all.
    """

    def __init__(
        self,
        sources: dict[str, dict[str, Any]],
        tokenizer: str,
        seq_len: int = 4096,
        batch_size: int = 1,
        num_batches: int | None = None,
        val_fraction: float = 0.01,
        val_batches: int = 50,
        seed: int = 0,
        cache_dir: str = ".cache/llama2_pl",
        num_workers: int = 0,
        max_tokens_per_source: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        # Not logged: Lightning raises when model and data have a hyper-parameter of one name and two values.
        self.save_hyperparameters(logger=False)
        require_at_least(0, val_batches=val_batches)
        require_at_least(2, seq_len=seq_len)  # a row of one token has no target
        require_at_least(1, num_batches=num_batches, max_tokens_per_source=max_tokens_per_source)
        require_share(val_fraction)
        self.sources = checked_sources(sources, "data.sources")
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.num_batches = num_batches
        self.val_fraction = val_fraction
        self.val_batches = val_batches
        self.seed = seed
        self.cache_dir = cache_dir
        self.max_tokens_per_source = max_tokens_per_source
        self.train_files: dict[str, TokenFile] = {}
        self.val_files: dict[str, TokenFile] = {}

    def prepare_data(self) -> None:
        """Tokenise every source that is not in the cache."""
        tokenizer = Tokenizer(self.tokenizer)
        for name in self.sources:
            self._folder(name, tokenizer)

    def setup(self, stage: str | None = None) -> None:
        """Open the token files; builds what another node's ``prepare_data`` did not leave here."""
        if self.train_files:
            return
        tokenizer = Tokenizer(self.tokenizer)
        self._tokenizer_sha256 = tokenizer.sha256
        folders = {name: self._folder(name, tokenizer) for name in self.sources}
        files = {name: TokenFile(folder / "train") for name, folder in folders.items()}
        for name, file in files.items():
            if not len(file.tokens):
                raise ValueError(f"data.sources.{name}: no text to train on in {self.sources[name]['path']}")
        self.val_files = self._open_held_out(folders)
        self.train_files = files

    def settings(self) -> dict[str, int | float | str]:
        sources: dict[str, int | float | str] = {"sources": ", ".join(sorted(self.sources))}
        for name, source in self.sources.items():
            sources[f"sources.{name}.weight"] = source["weight"]
            sources[f"sources.{name}.path"] = self.train_files[name].sha256
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "tokenizer": self._tokenizer_sha256,
            **sources,
        }

    def paths(self) -> dict[str, Files]:
        sources = {f"sources.{name}.path": source["path"] for name, source in self.sources.items()}
        return {"tokenizer": self.tokenizer, **sources}

    @property
    def longest(self) -> int:
        """Tokens of a row: all are filled up to as many."""
        return self.seq_len

    def train_batches(self) -> MixedBatches:
        return self._batches(self.train_files, self._run_length())

    def val_dataloader(self) -> BatchLoader | list:
        """Held-out documents; up to ``val_batches``, fewer where there is less text than that."""
        if not self.val_files:
            return []
        tokens = sum(len(file.tokens) for file in self.val_files.values())
        available = -(-tokens // (self.seq_len * self.batch_size))
        return self.eval_loader(self._batches(self.val_files, min(self.val_batches, available)))

    def ledger(self, batches: int) -> dict[str, SourceLedger]:
        """Realised share, tokens and epochs of each source after this many micro-batches."""
        tokens = {name: len(file.tokens) for name, file in self.train_files.items()}
        return self.train_batches().mix.ledger(batches * self.batch_size, tokens, self.seq_len)

    def _batches(self, files: dict[str, TokenFile], num_batches: int) -> MixedBatches:
        mix = CorpusMix({name: self.sources[name]["weight"] for name in files}, self.seed)
        return MixedBatches(
            list(files.values()), mix, self.seq_len, self.batch_size, num_batches, *self.ranks()
        )

    def _run_length(self) -> int:
        if self.num_batches is not None:
            return self.num_batches
        if self.trainer is None or self.trainer.max_steps < 1:
            raise ValueError(
                "data.num_batches is not set and the Trainer has no max_steps: set trainer.max_steps (optimizer steps) "
                "or data.num_batches (micro-batches)"
            )
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _open_held_out(self, folders: dict[str, Path]) -> dict[str, TokenFile]:
        files = {name: TokenFile(folder / "val") for name, folder in folders.items()}
        empty = [name for name, file in files.items() if not len(file.tokens)]
        if empty and self.val_fraction:
            rank_zero_warn(
                f"val_fraction {self.val_fraction} holds out no document of {', '.join(empty)}: "
                "validation has no text from there; raise val_fraction"
            )
        return {name: file for name, file in files.items() if name not in empty}

    def _folder(self, name: str, tokenizer: Tokenizer) -> Path:
        source = self.sources[name]
        files = describe_files(source["path"], f"data.sources.{name}.path")
        options = [tokenizer.sha256, reader_options(source), self.val_fraction, self.max_tokens_per_source]

        def build(folder: Path) -> None:
            self._build(name, folder, files, tokenizer)

        return build_once(self.cache_dir, f"corpus-{name}", [files, options], build)

    def _build(self, name: str, folder: Path, files: list, tokenizer: Tokenizer) -> None:
        """Tokenise one source to ``folder/train`` and ``folder/val``; memory holds one text."""
        began = time.monotonic()
        args = (tokenizer.vocab_size, tokenizer.sha256)
        train, val = TokenFileWriter(folder / "train", *args), TokenFileWriter(folder / "val", *args)
        limit = self.max_tokens_per_source or float("inf")
        for document in documents(self.sources[name]):
            text = document.text
            held_out = is_held_out(text, self.val_fraction)
            (val if held_out else train).add(tokenizer.encode(text, bos=True, eos=True))
            if train.num_tokens >= limit:
                break
        train.close(files)
        val.close(files)
        rank_zero_info(
            f"{name}: {train.num_documents} documents with {train.num_tokens} tokens to train on, "
            f"{val.num_documents} with {val.num_tokens} held out, {time.monotonic() - began:.1f} s"
        )
