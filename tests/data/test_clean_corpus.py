"""`data clean`: what is planted goes and is counted, the rest stays, and the folder is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama2_pl.cli import main
from llama2_pl.data import CorpusDataModule
from llama2_pl.data.cleaning import clean, clean_corpus
from llama2_pl.data.cleaning.duplicates import DuplicateRules
from llama2_pl.data.cleaning.personal import PersonalRules
from llama2_pl.data.cleaning.rules import CodeRules, TextRules, WebRules
from llama2_pl.data.readers import read_documents
from llama2_pl.text import Tokenizer

OFF: dict[str, Any] = {
    "text": TextRules(None, None, None),
    "web": WebRules(False, False, None, False, None, False),
    "code": CodeRules(False, None, None, None),
    "duplicates": DuplicateRules(False, None, 5, []),
    "personal": PersonalRules(False, False, False, False, None),
}
PROSE = (
    "The river rose in March and carried the old bridge away. Nobody in the village had seen such water, "
    "and the miller spoke of nothing else until the summer came."
)
EDITED = PROSE.replace("summer", "winter")  # 30 words, 26 grams, of which the last two differ: 24 / 28
WRITTEN = "Mail a@b.de, b@b.de, c@b.de, d@b.de, e@b.de"

# group, option, value, kind of source, documents, what is left of them
RULES: list[tuple[str, str, Any, str, list[str], list[str]]] = [
    ("text", "min_characters", 20, "text", ["Stub.", PROSE], [PROSE]),
    ("text", "max_repeated_lines", 0.3, "text", [PROSE, "Menu\nMenu\nMenu"], [PROSE]),
    ("text", "min_alphanumeric", 0.6, "web", [PROSE, "+--+--+ a +--+--+"], [PROSE]),
    ("web", "boilerplate", True, "web", [f"{PROSE}\nWe use cookies."], [PROSE]),
    ("web", "lorem_ipsum", True, "web", [PROSE, "Lorem ipsum dolor sit amet."], [PROSE]),
    ("web", "min_sentences", 2, "web", [PROSE, "One only."], [PROSE]),
    ("web", "terminal_punctuation", True, "web", [f"Home\n{PROSE}"], [PROSE]),
    ("web", "min_line_words", 3, "web", [f"Read more.\n{PROSE}"], [PROSE]),
    ("web", "curly_brackets", True, "web", [PROSE, "if (a) { b }"], [PROSE]),
    ("code", "licence_headers", True, "code", ["# Copyright A\na = 1"], ["a = 1"]),
    ("code", "max_line", 20, "code", ["a = 1", "b = " + "1" * 20], ["a = 1"]),
    ("code", "max_mean_line", 10, "code", ["a = 1", "b = 1\nc = " + "1" * 20], ["a = 1"]),
    ("code", "min_alphanumeric", 0.4, "code", ["a = 1", "{[(]})"], ["a = 1"]),
    ("duplicates", "documents", True, "text", [PROSE, f" {PROSE}\n"], [PROSE]),
    ("duplicates", "near", 0.85, "code", [PROSE, EDITED], [PROSE]),
    ("duplicates", "lines", ["text"], "text", ["One\nTwo", "two!\nThree"], ["One\nTwo", "Three"]),
    ("personal", "emails", True, "text", ["Mail a@b.de."], ["Mail [email address]."]),
    ("personal", "cards", True, "text", ["4111 1111 1111 1111"], ["[card number]"]),
    ("personal", "ips", True, "text", ["at 203.1.78.9"], ["at [IP address]"]),
    ("personal", "phones", True, "text", ["+49 30 1234567"], ["[phone number]"]),
]


@pytest.fixture
def cleaned(tmp_path: Path, write_rows: Callable[[str, list], str]) -> Callable[..., tuple[list[str], dict]]:
    """Documents through the rules: what is left, and the account of their source."""

    def clean_them(texts: list[str], kind: str = "text", **options: Any) -> tuple[list[str], dict]:
        path = write_rows("in.jsonl", [{"text": text} for text in texts])
        out = tmp_path / "out"
        clean_corpus({"source": {"path": path, "kind": kind}}, str(out), **options)
        ledger = json.loads((out / "ledger.json").read_text(encoding="utf-8"))
        left = [
            document.text
            for file in ledger["sources"]["source"]["files"]
            for document in read_documents(out / file)
        ]
        return left, ledger["sources"]["source"]

    return clean_them


@pytest.mark.parametrize(
    ("group", "option", "value", "kind", "texts", "left"), RULES, ids=lambda v: str(v)[:20]
)
def test_each_rule_alone_takes_what_is_planted_and_none_takes_nothing(
    cleaned: Callable, group: str, option: str, value: Any, kind: str, texts: list[str], left: list[str]
) -> None:
    assert cleaned(texts, kind, **OFF)[0] == texts
    alone = {**OFF, group: replace(OFF[group], **{option: value})}
    assert cleaned(texts, kind, **alone)[0] == left


def test_the_rule_of_dense_personal_data_needs_a_kind_and_comes_before_its_words(cleaned: Callable) -> None:
    kept = replace(OFF["personal"], emails=True)
    assert cleaned([PROSE, WRITTEN], **{**OFF, "personal": kept})[0] == [
        PROSE,
        "Mail " + ", ".join(["[email address]"] * 5),
    ]
    dense = replace(kept, max_per_1000_words=20.0)
    assert cleaned([PROSE, WRITTEN], **{**OFF, "personal": dense})[0] == [PROSE]


def test_every_rule_of_the_options_is_tried_above() -> None:
    tried = {(group, option) for group, option, *_ in RULES} | {("personal", "max_per_1000_words")}
    numbers = {("personal", "min_found"), ("duplicates", "words")}  # of other rules, tried with those
    fields = {(group, option) for group, options in OFF.items() for option in options.__dataclass_fields__}
    assert fields - numbers == tried


def test_the_ledger_adds_up_and_names_what_each_rule_took(cleaned: Callable, tokenizer: Tokenizer) -> None:
    page = PROSE.replace("river", "Rhine") + "\nWrite to a@b.de today."
    texts = [
        "Stub.",
        PROSE,
        f"{PROSE}\n",
        f"We use cookies.\n{page}",
        f"{page.replace('miller', 'mayor')}\nNew.",
    ]
    left, account = cleaned(
        texts,
        "web",
        web=WebRules(min_sentences=2),
        duplicates=DuplicateRules(near=None),
        tokenizer=str(tokenizer.path),
    )
    placed = page.replace("a@b.de", "[email address]")
    mayor = placed.splitlines()[0].replace("miller", "mayor")
    assert left == [PROSE, placed, f"{mayor}\nNew."]
    taken = {name: found for name, found in account["taken"].items() if any(found.values())}
    assert taken == {
        "emails": {
            "documents": 0,
            "changed": 2,
            "lines": 0,
            "characters": 2 * (len("a@b.de") - len("[email address]")),
        },
        "boilerplate lines": {
            "documents": 0,
            "changed": 1,
            "lines": 1,
            "characters": len("We use cookies.\n"),
        },
        "too few sentences": {"documents": 1, "changed": 0, "lines": 0, "characters": len("Stub.")},
        "same document": {"documents": 1, "changed": 0, "lines": 0, "characters": len(PROSE) + 1},
        "same lines": {
            "documents": 0,
            "changed": 1,
            "lines": 1,
            "characters": len("Write to [email address] today.\n"),
        },
    }
    into, out = account["in"], account["out"]
    for what in ("documents", "characters"):
        assert into[what] == out[what] + sum(found[what] for found in account["taken"].values())
    assert into["tokens"] == sum(len(tokenizer.encode(text, bos=True, eos=True)) for text in texts)
    assert out["tokens"] == sum(len(tokenizer.encode(text, bos=True, eos=True)) for text in left)


def test_a_source_of_which_nothing_is_left_is_told(
    cleaned: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cleaned(["short"])[0] == []
    assert "source: nothing is left of it" in capsys.readouterr().out
    cleaned([PROSE])
    assert "nothing is left" not in capsys.readouterr().out


def test_of_duplicates_in_two_sources_the_one_named_first_keeps_its_text(
    tmp_path: Path, write_rows: Callable[[str, list], str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: write_rows(f"{name}.jsonl", [{"text": PROSE}, {"text": f"{name} " * 30}]) for name in "ab"}
    sources = {name: {"path": paths[name], "weight": 2} for name in ("b", "a")}
    clean_corpus(sources, str(tmp_path / "out"), text=TextRules(None, None, None))
    texts = {name: [d.text for d in read_documents(tmp_path / "out" / name)] for name in "ab"}
    assert texts == {"b": [PROSE, "b " * 30], "a": ["a " * 30]}
    assert "a       same document          1        0      0         159\n" in capsys.readouterr().out


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_same_input_gives_the_same_bytes_in_place_of_the_old_ones(
    cleaned: Callable, tmp_path: Path
) -> None:
    cleaned([PROSE, EDITED])
    first = files_of(tmp_path / "out")
    assert sorted(first) == ["ledger.json", "source/00000.jsonl.gz"]
    assert first["source/00000.jsonl.gz"][3:8] == bytes(5)  # RFC 1952: no name, no time
    cleaned([PROSE, EDITED])
    assert files_of(tmp_path / "out") == first
    cleaned([PROSE, EDITED], compress=False)
    assert sorted(files_of(tmp_path / "out")) == ["ledger.json", "source/00000.jsonl"]


def test_large_sources_lie_in_several_files_in_order(
    cleaned: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean, "SHARD_BYTES", 100)
    texts = [f"{letter * 40}" for letter in "abcde"]  # rows of 53 bytes: one fits, two do not
    left, account = cleaned(texts, **OFF)
    assert left == texts
    assert account["files"] == [f"source/0000{number}.jsonl.gz" for number in range(5)]


def test_a_run_that_stops_leaves_the_old_folder_and_nothing_beside_it(
    cleaned: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned([PROSE])
    before = files_of(tmp_path)
    (tmp_path / "in.jsonl").write_text(f'{{"text": "{PROSE}"}}\n{{"text": 7}}\n', encoding="utf-8")
    source = {"a": {"path": str(tmp_path / "in.jsonl")}}
    with pytest.raises(ValueError, match=r"in\.jsonl:2: key 'text' is int 7"):
        clean_corpus(source, str(tmp_path / "out"))
    assert {name: made for name, made in files_of(tmp_path).items() if name != "in.jsonl"} == {
        name: made for name, made in before.items() if name != "in.jsonl"
    }


def test_a_run_that_was_killed_between_two_renames_is_put_right(cleaned: Callable, tmp_path: Path) -> None:
    cleaned([PROSE])
    first = files_of(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.new").mkdir()
    (tmp_path / ".out.new" / "half").write_text("x")
    with pytest.raises(ValueError, match="no file"):
        clean_corpus({"a": {"path": str(tmp_path / "nowhere")}}, str(tmp_path / "out"))
    assert files_of(tmp_path / "out") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out"]


def test_a_folder_with_a_strangers_file_is_not_replaced(cleaned: Callable, tmp_path: Path) -> None:
    cleaned([PROSE])
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: holds notes\.txt, which no ledger"):
        cleaned([PROSE])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        clean_corpus({"a": {"path": str(tmp_path / "in.jsonl")}}, str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({}, "sources is empty"),
        (
            {"a": {"path": "x", "kind": "page"}},
            r"sources\.a\.kind is 'page'; a source is one of text, web, code",
        ),
        ({"a": {"path": "x", "kidn": "web"}}, r"sources\.a: unknown key 'kidn'; keys are path, .*kind"),
        ({"../a": {"path": "x"}}, r"sources\.\.\./a: .* give a plain word"),
    ],
)
def test_wrong_sources_are_refused_by_name(tmp_path: Path, sources: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        clean_corpus(sources, str(tmp_path / "out"))


@pytest.mark.parametrize("character", ["a", "é", "\n", "\x1f"])
def test_a_text_goes_where_its_row_is_longer_than_our_readers_take(character: str, tmp_path: Path) -> None:
    size = len(json.dumps(character, ensure_ascii=False).encode()) - 2
    most = (16 * 2**20 - len('{"text": ""}\n')) // size
    assert clean._that_fits(character * most) is not None
    assert clean._that_fits(character * (most + 1)) is None


def test_pretraining_reads_what_is_written(cleaned: Callable, tmp_path: Path, tokenizer: Tokenizer) -> None:
    _, account = cleaned([PROSE, PROSE.replace("river", "Rhine") * 2], tokenizer=str(tokenizer.path))
    data = CorpusDataModule(
        {"a": {"path": str(tmp_path / "out" / "source")}},
        str(tokenizer.path),
        seq_len=8,
        num_batches=1,
        val_fraction=0,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup()
    assert len(data.train_files["a"].tokens) == account["out"]["tokens"]


def test_the_command_takes_its_options_from_the_line(
    tmp_path: Path, write_rows: Callable[[str, list], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows("in.jsonl", [{"text": "One."}, {"text": PROSE}])
    options = [
        "--text.min_characters",
        "null",
        "--web.min_sentences",
        "2",
        "--duplicates.near",
        "0.9",
        "--personal.emails",
        "false",
    ]
    main(
        [
            "data",
            "clean",
            "--sources",
            f"{{web: {{path: {path}, kind: web}}}}",
            "--out",
            str(tmp_path / "out"),
            *options,
        ]
    )
    assert "web             2     1" in capsys.readouterr().out
    rules = json.loads((tmp_path / "out" / "ledger.json").read_text(encoding="utf-8"))["rules"]
    assert rules["duplicates"] == {"documents": True, "near": 0.9, "words": 5, "lines": ["web"]}
    assert (rules["text"]["min_characters"], rules["personal"]["emails"]) == (None, False)


def test_real_files_of_every_format_pass_and_two_editions_of_a_book_become_one(
    shared_data: Path, tmp_path: Path
) -> None:
    books = str(shared_data / "pretrain/books/gutenberg/Frankenstein_84*.txt")
    clean_corpus({"books": {"path": books}}, str(tmp_path / "out"), duplicates=DuplicateRules(near=0.9))
    account = json.loads((tmp_path / "out" / "ledger.json").read_text(encoding="utf-8"))["sources"]["books"]
    assert (account["in"]["documents"], account["out"]["documents"]) == (2, 1)
    assert account["taken"]["near duplicate"]["documents"] == 1
