"""Broken rows are reported with file and line; strict stops, lenient skips and counts."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from llama2_pl.data.readers import Limits, ReadReport, read_dialogues, write_jsonl

GOOD = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
SMALL = Limits(max_line_bytes=200, max_skipped_share=0.5)

FAULTS = {
    "bad UTF-8": (b'{"messages": "caf\xe9"}', "byte 0xE9 at offset 17 is not utf-8"),
    "raw NUL": (b'{"messages": "a\0b"}', r"NUL \(U\+0000\) at character 15"),
    "escaped NUL": (GOOD.replace(b'"q"', b'"q\\u0000"'), r"holds U\+0000"),
    "lone surrogate": (GOOD.replace(b'"q"', b'"\\ud800"'), r"holds U\+D800"),
    "surrogate in a key": (GOOD[:-1] + b', "\\udfff": 1}', r"holds U\+DFFF"),
    "empty line": (b"", "the line is empty"),
    "missing key": (b'{"other": 1}', r"key 'messages' is missing; the row has \['other'\]"),
    "wrong type of a key": (b'{"messages": "text"}', "key 'messages' is str 'text', and must be an array"),
    "wrong type of a message": (b'{"messages": [1]}', "a message is int 1, and must be an object"),
    "wrong type of a text": (GOOD.replace(b'"q"', b"7"), "key 'content' is int 7, and must be a string"),
    "wrong type of a row": (b"[1, 2]", r"the row is list \[1, 2\], and must be an object"),
    "over-long line": (b'{"messages": "' + b"x" * 300 + b'"}', "longer than 200 bytes"),
    "NaN": (GOOD[:-1] + b', "score": NaN}', "NaN is not a JSON number"),
    "infinity": (GOOD[:-1] + b', "score": -Infinity}', "-Infinity is not a JSON number"),
    "not JSON": (b'{"messages": ', "not JSON: Expecting value"),
    "deep nesting": (b"[" * 150_000, "longer than"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_reported_with_file_and_line(tmp_path: Path, fault: str) -> None:
    bad, message = FAULTS[fault]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + bad + b"\n" + GOOD + b"\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: .*{message}.*strict: false"):
        list(read_dialogues(path, limits=SMALL))
    report = ReadReport()
    assert len(list(read_dialogues(path, strict=False, report=report, limits=SMALL))) == 2
    assert (report.read, report.malformed) == (2, 1)
    assert report.examples[0].startswith(f"{path}:2: ")


def test_deep_nesting_inside_the_line_limit_is_an_error_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + b'{"messages": ' + b"[" * 500_000 + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        list(read_dialogues(path))


def test_a_surrogate_is_found_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"messages": ' + b"[" * 900 + b'"\\ud800"' + b"]" * 900 + b"}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: .*U\+D800"):
        list(read_dialogues(path))


def test_numbers_with_too_many_digits_are_an_error_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"messages": ' + b"9" * 5000 + b"}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: not JSON"):
        list(read_dialogues(path))


def test_byte_order_mark_and_crlf_are_read_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\r\n")
    report = ReadReport()
    assert len(list(read_dialogues(path, report=report))) == 2
    assert report.repaired == {"byte order mark": 1, "CRLF line end": 2}


def test_empty_lines_at_the_end_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n\n \n")
    assert len(list(read_dialogues(path))) == 1


def test_empty_file_gives_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert list(read_dialogues(tmp_path / "rows.jsonl")) == []


def test_array_rows_are_located_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"[\n" + GOOD + b",\n\n" + GOOD.replace(b'"q"', b"NaN") + b",\n" + GOOD + b"]\n")
    with pytest.raises(ValueError, match=r"rows\.json:4: NaN"):
        list(read_dialogues(path))
    assert len(list(read_dialogues(path, strict=False, limits=SMALL))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" + GOOD, "after this item of the array stands ''"),
        (b"[" + GOOD + b",", "does not end"),
        (b"[" + GOOD + b" 7]", "stands '7"),
        (b"[\n{]", r"rows\.json:2: this item of the array is not JSON"),
        (b'[\n"caf\xe9"]', r"rows\.json:2: byte 0xE9"),
    ],
)
def test_broken_arrays_stop_even_lenient_reading(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_dialogues(path, strict=False))


def test_lenient_reading_stops_when_too_many_rows_are_malformed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes((GOOD + b"\n") * 9 + b"{\n")
    with pytest.raises(ValueError, match=r"1 of 10 rows are malformed, more than the share of 0\.05"):
        list(read_dialogues(path, strict=False))
    assert len(list(read_dialogues(path, strict=False, limits=Limits(max_skipped_share=0.1)))) == 9


def test_a_mostly_broken_stream_stops_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + b"{\n" * 5000)
    report = ReadReport()
    with pytest.raises(ValueError, match="999 of 1000 rows"):
        list(read_dialogues(path, strict=False, report=report))


def test_the_count_of_skipped_rows_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n{\n")
    with caplog.at_level(logging.WARNING):
        list(read_dialogues(path, strict=False, limits=SMALL))
    assert "1 rows skipped; so far: 1 read; 1 malformed" in caplog.text


def test_a_decompression_bomb_is_stopped_by_its_ratio(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + b"\n" + b" " * 20_000_000))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: .* max_ratio 200"):
        list(read_dialogues(path, strict=False, limits=Limits(max_line_bytes=2**30)))


def test_total_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes((GOOD + b"\n") * 100)
    with pytest.raises(ValueError, match="max_total_bytes 1000"):
        list(read_dialogues(path, limits=Limits(max_total_bytes=1000)))


def test_cut_gzip_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD + b"\n") * 100)[:-20])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: broken gzip"):
        list(read_dialogues(path))
    with pytest.raises(ValueError, match="absent: no such file"):
        list(read_dialogues(tmp_path / "absent"))


def test_gzip_is_seen_by_its_bytes_and_not_by_the_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(GOOD))
    assert len(list(read_dialogues(path))) == 1


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format 'alpacca': choose auto or one of .*alpaca"):
        read_dialogues(tmp_path / "x", format="alpacca")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the keys \['a'\] fit no known format"):
        list(read_dialogues(path))


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    assert write_jsonl(path, [{"a": "é"}, {"a": "\n"}]) == 2
    before = path.read_bytes()
    assert before == '{"a": "é"}\n{"a": "\\n"}\n'.encode()
    for bad in (float("nan"), "\ud800", {1}):
        with pytest.raises(ValueError, match=r"rows\.jsonl:2: cannot write"):
            write_jsonl(path, [{"a": 1}, {"a": bad}])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]
    assert json.loads(before.splitlines()[1]) == {"a": "\n"}
