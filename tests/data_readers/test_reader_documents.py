"""Corpus files in the wild become documents."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from llama2_pl.data.readers import Document, Limits, ReadReport, read_documents
from llama2_pl.data.readers.markup import strip_html, strip_latex


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def _texts(path: Path | str, **options: object) -> list[str]:
    return [document.text for document in read_documents(path, **options)]  # type: ignore[arg-type]


def test_a_text_file_is_one_document_without_bom_and_crlf(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", "\ufeffone\r\ntwo\rthree\n")
    assert list(read_documents(path)) == [Document("one\ntwo\nthree\n", str(path), 0)]


def test_latin_1_is_read_only_when_asked_for(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", b"one\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r'a\.txt:2: byte 0xE9 at offset 7 is not utf-8; .*"latin-1"'):
        _texts(path)
    assert _texts(path, encoding="latin-1") == ["one\ncafé\n"]


GUTENBERG = (
    "The Project Gutenberg EBook of X\n\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\nCaf\u00e9.\nThe end.\n\n"
    "End of Project Gutenberg's X\n\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***\n*** START: FULL LICENSE ***\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_gutenberg_frame_is_cut_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    path = _write(tmp_path / "b.txt", GUTENBERG.replace("\n", "\r\n").encode(encoding))
    assert _texts(path) == ["Café.\nThe end.\n"]


def test_a_book_without_its_start_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"START OF THIS PROJECT GUTENBERG"):
        _texts(_write(tmp_path / "b.txt", "no frame"), format="gutenberg")


def test_json_rows_are_located_and_empty_ones_counted(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ({"text": "a", "id": 1}, {"text": " "}, {"text": "b"}))
    path = _write(tmp_path / "000.json.gz", gzip.compress(lines.encode()))
    report = ReadReport()
    rows = list(read_documents(path, report=report))
    assert [(row.text, row.line_or_index) for row in rows] == [("a", 1), ("b", 3)]
    assert report.unusable == {"empty document": 1}
    with pytest.raises(ValueError, match=r"json\.gz:1: key 'body' is missing"):
        _texts(path, text_key="body")


def test_wikiextractor_documents_with_a_title_alone_are_counted(tmp_path: Path) -> None:
    doc = '<doc id="{0}" url="u" title="T {0} "quoted"">\nT {0}\n{1}\n</doc>\n'
    path = _write(
        tmp_path / "wiki_00", doc.format(1, "\nText.\n") + doc.format(2, "") + doc.format(3, "More.")
    )
    report = ReadReport()
    rows = list(read_documents(path, report=report))
    assert [(row.text, row.line_or_index) for row in rows] == [("T 1\n\nText.\n", 1), ("T 3\nMore.\n", 11)]
    assert report.unusable == {"empty document": 1}


def test_a_cut_wikiextractor_file_is_reported(tmp_path: Path) -> None:
    path = _write(tmp_path / "wiki_00", '<doc id="1" url="u" title="T">\nT\n\nText')
    with pytest.raises(ValueError, match=r"wiki_00:1: the file ends inside"):
        _texts(path)


POSTS = """\ufeff<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" Score="3" Title="Why?" Body="&lt;p&gt;Is 1 &amp;lt; 2?&lt;/p&gt;" />
  <row Id="2" PostTypeId="2" ParentId="1" Score="-1" Body="&lt;p&gt;No.&lt;/p&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" Score="5" Body="&lt;p&gt;Yes.&lt;/p&gt;" />
  <row Id="4" PostTypeId="5" Score="0" Body="a tag wiki" />
</posts>
"""


def test_stack_exchange_answers_follow_their_question_by_score(tmp_path: Path) -> None:
    path = _write(tmp_path / "Posts.xml", POSTS.replace("\n", "\r\n"))
    assert [d[0::2] for d in read_documents(path)] == [("Why?\n\nIs 1 < 2?\n\nYes.\n\nNo.\n", 3)]


def test_a_broken_row_and_an_entity_of_its_own_are_errors_of_the_row(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE p [<!ENTITY a "aaaa">]>\n'
    path = _write(
        tmp_path / "Posts.xml", POSTS.replace("<posts>\n", bomb + "<posts>\n").replace("No.", "&a;")
    )
    with pytest.raises(ValueError, match=r"Posts\.xml:5: not a <row/> of posts: ParseError undefined entity"):
        _texts(path)


def test_html_becomes_readable_text() -> None:
    html = "<p>A <b>bold</b>\nword &amp; <a href='x'>link</a></p>\n<ul><li>one</li><li>two</li></ul>"
    html += "<pre><code>x  = 1\n  y</code></pre><script>bad()</script>"
    assert strip_html(html) == "A bold word & link\n\n- one\n- two\n\nx  = 1\n  y"


def test_latex_keeps_sections_and_drops_preamble_comments_and_bibliography() -> None:
    source = "\\documentclass{a}\n% note\n\\section{One} % why\n100\\% sure\n% gone\nText.\n\\bibliography{x}\nrest"
    assert strip_latex(source) == "\\section{One} \n100\\% sure\nText.\n"


def test_latex_without_a_section_is_counted(tmp_path: Path) -> None:
    report = ReadReport()
    path = _write(tmp_path / "macros.tex", "\\newcommand{\\a}{b}")
    assert list(read_documents(path, report=report)) == []
    assert report.unusable == {"LaTeX without a section": 1}


def _tar(path: Path, members: dict[str, bytes | None]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_tar_members_are_read_in_place_and_links_passed_over(tmp_path: Path) -> None:
    members = {
        "a/x.md": b"---\ntitle: t\n---\n\n# X\n",
        "link.md": None,
        "LICENSE": b"l",
        "../../up.md": b"up",
    }
    path = _tar(tmp_path / "m.tar.gz", members)
    report = ReadReport()
    rows = list(read_documents(path, report=report))
    assert [(row.text, row.source_file) for row in rows] == [
        ("# X\n", f"{path}!a/x.md"),
        ("up", f"{path}!../../up.md"),
    ]
    assert report.unusable == {"member of an unknown kind": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["m.tar.gz"]


def test_bad_and_large_members_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"m\.tar\.gz:0: x\.md:2: byte 0xE9"):
        _texts(_tar(tmp_path / "m.tar.gz", {"x.md": b"a\n\xe9"}))
    with pytest.raises(ValueError, match=r"x\.md: larger than 10 bytes"):
        _texts(_tar(tmp_path / "m.tar.gz", {"x.md": b"a" * 11}), limits=Limits(max_document_bytes=10))
    with pytest.raises(ValueError, match=r"n\.tar: broken tar archive"):
        _texts(_write(tmp_path / "n.tar", b"x" * 2000))


def test_a_tar_bomb_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_ratio"):
        _texts(_tar(tmp_path / "m.tar.gz", {"x.md": b"a" * 20_000_000}))


def test_a_folder_gives_its_known_files_in_order_and_no_link_or_hidden_file(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.md", "a/.hidden.py", ".git/c.py", "x.bin"):
        _write(tmp_path / "tree" / name, name)
    (tmp_path / "tree" / "link.py").symlink_to(tmp_path / "tree" / "b.py")
    report = ReadReport()
    assert [d.text for d in read_documents(tmp_path / "tree", report=report)] == ["a/z.md", "b.py"]
    assert report.unusable == {"file of an unknown kind": 1}


def test_a_pattern_gives_its_files_and_none_is_an_error(tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.txt", "c.md"):
        _write(tmp_path / name, name)
    assert _texts(f"{tmp_path}/**/*.txt") == ["a.txt", "deep/b.txt"]
    with pytest.raises(ValueError, match="no file to read"):
        _texts(f"{tmp_path}/*.absent")


def test_lenient_reading_skips_a_bad_file_of_a_folder(tmp_path: Path) -> None:
    _write(tmp_path / "a.py", b"caf\xe9")
    _write(tmp_path / "b.py", "good")
    report = ReadReport()
    assert _texts(tmp_path, strict=False, report=report, limits=Limits(max_skipped_share=1)) == ["good"]
    assert report.malformed == 1


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", " ", "b"], "n": [1, 2, 3]}), path)
    assert [d[0::2] for d in read_documents(path)] == [("a", 0), ("b", 2)]
    with pytest.raises(ValueError, match=r"no column 'body' in \['text', 'n'\]"):
        _texts(path, text_key="body")
    with pytest.raises(ValueError, match=r"a\.parquet:0: key 'n' is int 1"):
        _texts(path, text_key="n")
    with pytest.raises(ValueError, match=r"b\.parquet: not a readable parquet file"):
        _texts(_write(tmp_path / "b.parquet", "text"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'llama2-pl\[data\]'"):
        _texts(_write(tmp_path / "a.parquet", "x"))


# Files, or rows less the empty ones, as the notes beside the data count them.
REAL = {
    "web/18f_posts.tar.gz": 510,
    "web/c4_demo.jsonl": 230,
    "web/dolma": 30,
    "web/rust_book.tar.gz": 112,
    "wikipedia/wikiextractor-zh": 722,
    "wikipedia/wikitext-2/valid.txt": 1,
    "books/gutenberg": 7,
    "books/botchan.txt": 1,
    "arxiv/hott-book": 13,
    "stackexchange/datascience.meta": 257,
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_they_are(shared: Path, name: str) -> None:
    report = ReadReport()
    rows = list(read_documents(shared / "pretrain" / name, report=report))
    assert (len(rows), report.malformed) == (REAL[name], 0)
    assert not any("\r" in row.text or "START OF THIS PROJECT GUTENBERG" in row.text for row in rows)


def test_stack_exchange_questions_are_those_of_a_second_parser(shared: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    path = shared / "pretrain" / "stackexchange" / "beer" / "Posts.xml"
    posts = [row.attrib for row in ElementTree.parse(path).getroot()]
    rows = list(read_documents(path))
    titles = [post["Title"] for post in posts if post["PostTypeId"] == "1"]
    assert [row.text.split("\n")[0] for row in rows] == [title.strip() for title in titles]
