"""`llama2-pl data clean`: sources of a corpus through the rules, to files of our own and a ledger."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from llama2_pl.data.cleaning.duplicates import DuplicateRules, NearDuplicates, SameDocuments, SameLines
from llama2_pl.data.cleaning.ledger import Account, rule_table, size_table
from llama2_pl.data.cleaning.personal import PersonalRules, personal_rules
from llama2_pl.data.cleaning.rules import (
    CodeRules,
    Rule,
    TextRules,
    WebRules,
    check_options,
    code_rules,
    length_rule,
    line_rules,
    text_rules,
    web_rules,
)
from llama2_pl.data.readers import Document, ReadReport
from llama2_pl.data.readers.common import DEFAULT_LIMITS
from llama2_pl.data.sources import KINDS, documents, of_kinds
from llama2_pl.files import Busy, flush, lock, write_json
from llama2_pl.text.tokenizer import Tokenizer

LEDGER = "ledger.json"
SHARD_BYTES = 2**28  # of text before compression; a file of it is read in seconds


def clean_corpus(
    sources: dict[str, dict[str, Any]],
    out: str,
    text: TextRules = TextRules(),  # noqa: B008, frozen
    web: WebRules = WebRules(),  # noqa: B008, frozen
    code: CodeRules = CodeRules(),  # noqa: B008, frozen
    duplicates: DuplicateRules = DuplicateRules(),  # noqa: B008, frozen
    personal: PersonalRules = PersonalRules(),  # noqa: B008, frozen
    tokenizer: str | None = None,
    compress: bool = True,
) -> None:
    """Write out/SOURCE/00000.jsonl.gz, …, which pretraining reads, and out/ledger.json: what each rule took.

    Llama 2 §2.1, Llama 1 §2.1. Sources are read in the order given, documents in the order of their files, and of
    duplicates the first stays, so put the source that is to keep a text first. One process, 1.7 MB a second on a slow
    core; memory grows by about 1.8 KB a document that stays and 140 bytes a line of a web page, so 10 million documents
    are for a machine with 32 GB, and web scale is for the library datatrove. Until all is written the old folder
    stands; the same input gives the same bytes.

    Args:
        sources: name -> ``{"path": …, "kind": "text" | "web" | "code"}`` and the other keys of pretraining's sources.
        out: folder to make; one that this command made is replaced.
        text: rules for texts and web pages; the least length is for code too.
        web: rules for web pages.
        code: rules for code.
        duplicates: rules for what stands in the corpus twice.
        personal: rules for personal data.
        tokenizer: tokenizer.model, to count tokens in and out; takes most of the time.
        compress: gzip the files.
    """
    for group, options in (("text", text), ("web", web), ("code", code)):
        check_options(group, options)
    found = of_kinds(sources)
    if odd := [name for name in found if Path(name).name != name or name.startswith(".") or name == LEDGER]:
        raise ValueError(f"sources.{odd[0]}: {odd[0]!r} is to be a folder's name; give a plain word")
    words = Tokenizer(tokenizer) if tokenizer else None
    options = {"text": text, "web": web, "code": code, "duplicates": duplicates, "personal": personal}
    with _replaced(Path(out)) as draft, tempfile.TemporaryFile(dir=draft) as grams:
        kinds = _pipelines(text, web, code, duplicates, personal, grams)
        accounts, ledger = dict[str, Account](), dict[str, Any]()
        for name, source in found.items():
            report = ReadReport()
            cleaner = _Cleaner(kinds[source["kind"]], words)
            with _Shards(draft / name, compress) as shards:
                for document in documents(source, report):
                    if (left := cleaner(document)) is not None:
                        shards.write(left)
            accounts[name] = cleaner.account
            files = [f"{name}/{path.name}" for path in shards.paths]
            ledger[name] = {
                **cleaner.account.to_dict(),
                "kind": source["kind"],
                "read": str(report),
                "files": files,
            }
        rules = {group: asdict(chosen) for group, chosen in options.items()}
        write_json(draft / LEDGER, {"sources": ledger, "rules": rules})
    print(f"{size_table(accounts)}\n\n{rule_table(accounts)}\n\n{Path(out) / LEDGER}")
    for name in (name for name, account in accounts.items() if not account.size_out.documents):
        print(f"{name}: nothing is left of it; leave it out of the sources of pretraining")


def _pipelines(
    text: TextRules,
    web: WebRules,
    code: CodeRules,
    duplicates: DuplicateRules,
    personal: PersonalRules,
    grams: BinaryIO,
) -> dict[str, list[Rule]]:
    """The rules of each kind of source, in their order; those on duplicates are shared.

    Whole documents are compared before lines are taken. CCNet takes lines alone, and leaves of a copy that was edited
    the edits, which nobody can read.
    """
    own = {
        "text": text_rules(text),
        "web": [*line_rules(web), *web_rules(web), *text_rules(text)],
        "code": code_rules(code),
    }
    first = [Rule("too long", _that_fits), *personal_rules(personal)]
    short, same = length_rule(text), []
    if duplicates.documents:
        same.append(Rule("same document", SameDocuments()))
    if duplicates.near is not None:
        same.append(Rule("near duplicate", NearDuplicates(grams, duplicates.near, duplicates.words)))
    lines = [Rule("same lines", SameLines()), *short]
    return {
        kind: [*first, *own[kind], *short, *same, *(lines if kind in duplicates.lines else [])]
        for kind in KINDS
    }


def _row(text: str) -> bytes:
    return (json.dumps({"text": text}, ensure_ascii=False) + "\n").encode()


def _that_fits(text: str) -> str | None:
    """A text that our readers take back as one line of JSON."""
    sure = len(text) * 6 + 64 < DEFAULT_LIMITS.max_line_bytes  # \u001f, the longest way to write a character
    return text if sure or len(_row(text)) <= DEFAULT_LIMITS.max_line_bytes else None


class _Cleaner:
    """Puts one document after the other through rules, and keeps the account."""

    def __init__(self, rules: list[Rule], words: Tokenizer | None) -> None:
        self._rules, self._words = rules, words
        self.account = Account([rule.name for rule in rules])

    def __call__(self, document: Document) -> str | None:
        text = document.text
        self.account.size_in.add(text, self._tokens(text))
        for rule in self._rules:
            left = rule.apply(text)
            left = left if left and not left.isspace() else None
            self.account.taken[rule.name].add(text, left)
            if left is None:
                return None
            text = left
        self.account.size_out.add(text, self._tokens(text))
        return text

    def _tokens(self, text: str) -> int | None:
        """As pretraining counts them, BOS and EOS among them."""
        return len(self._words.encode(text, bos=True, eos=True)) if self._words else None


class _Shards:
    """Files 00000.jsonl(.gz), … of a folder; a document is in one of them."""

    def __init__(self, folder: Path, compress: bool) -> None:
        self.paths: list[Path] = []
        self._folder, self._compress = folder, compress
        self._raw: BinaryIO | None = None
        self._file: Any = None
        self._size = 0
        folder.mkdir()

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def write(self, text: str) -> None:
        row = _row(text)
        if self._raw is None or self._size + len(row) > SHARD_BYTES:
            self._close()
            self._open()
        self._file.write(row)
        self._size += len(row)

    def _open(self) -> None:
        suffix = ".jsonl.gz" if self._compress else ".jsonl"
        self.paths.append(self._folder / f"{len(self.paths):05}{suffix}")
        self._raw, self._size = self.paths[-1].open("wb"), 0
        # neither name nor time in it, so that the same text gives the same bytes
        self._file = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if self._compress else self._raw

    def _close(self) -> None:
        if self._raw is not None:
            self._file.close()
            self._raw.close()
            flush(self.paths[-1])
        self._raw = self._file = None


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write in, renamed to ``out`` when all is written, else removed.

    A folder at ``out`` must be empty or hold what a ledger names, and nothing else.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(out)
    try:
        held = lock(out.with_name(f".{out.name}.lock"))
    except Busy as holder:
        raise ValueError(f"{out}: {holder} is cleaning to it; wait for it, or give another folder") from None
    draft, old = (out.with_name(f".{out.name}.{part}") for part in ("new", "old"))
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
        _put_back(old, out)
        draft.mkdir()
        yield draft
        if out.exists():
            out.rename(old)
        draft.rename(out)
        flush(out.parent)
    finally:
        _put_back(old, out)
        shutil.rmtree(draft, ignore_errors=True)
        if held:
            held.release()


def _put_back(old: Path, out: Path) -> None:
    """End what stopped between two renames: the old folder comes back unless the new one stands."""
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    """ValueError where ``out`` is no folder, or holds a file that no ledger of it names."""
    if not out.exists():
        return
    found = (
        {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        if out.is_dir()
        else None
    )
    if found is None:
        raise ValueError(f"{out}: is a file; give a folder")
    ours = {LEDGER, *_files_of(out / LEDGER)} if LEDGER in found else set()
    if foreign := sorted(found - ours):
        raise ValueError(
            f"{out}: holds {foreign[0]}, which no ledger of this command names; give another folder, or move it away"
        )


def _files_of(ledger: Path) -> list[str]:
    try:
        sources = json.loads(ledger.read_text(encoding="utf-8"))["sources"]
        return [file for source in sources.values() for file in source["files"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
