"""Packed files of a stranger: what they unpack to is bounded, and nothing is written outside memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import corpus  # type: ignore[import-not-found]  # put on the path by conftest.py
import pytest

from llama2_pl.data.readers import Limits, ReadReport, read_documents


@pytest.mark.parametrize("craft", corpus.READERS, ids=lambda craft: craft.__name__)
def test_a_packed_file_that_is_a_bomb_or_not_read_is_refused_by_name(craft: Callable, tmp_path: Path) -> None:
    crafted = craft(tmp_path)
    with pytest.raises(ValueError, match=crafted.refusal):
        crafted.open()


def test_members_that_leave_the_folder_are_read_in_memory_and_links_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = corpus.tar_that_leaves_the_folder(folder)
    documents = list(read_documents(path))
    assert [document.text for document in documents] == ["kept in memory\n"]
    assert documents[0].source_file == f"{path}!../../escaped.txt"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["corpus.tar"]


def test_a_limit_is_an_argument(tmp_path: Path) -> None:
    crafted = corpus.tar_bomb(tmp_path)
    with pytest.raises(ValueError, match="max_ratio"):
        crafted.open()
    (document,) = read_documents(tmp_path / "corpus.tar.gz", limits=Limits(max_ratio=2000))
    assert document.text == "a" * 20_000_000


def test_a_member_of_a_tar_is_no_longer_than_a_document_may_be(tmp_path: Path) -> None:
    corpus.tar_that_leaves_the_folder(tmp_path)
    with pytest.raises(ValueError, match=r"corpus\.tar:3: \.\./\.\./escaped\.txt: larger than 4 bytes"):
        list(read_documents(tmp_path / "corpus.tar", limits=Limits(max_document_bytes=4)))


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[[list[str]], Path]:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(texts: list[str]) -> Path:
        path = tmp_path / "corpus.parquet"
        parquet.write_table(pa.table({"text": texts}), path, compression="zstd")
        return path

    return write


def test_a_column_that_says_it_is_a_bomb_is_refused_before_it_is_unpacked(parquet: Callable) -> None:
    path = parquet(["a" * 50_000_000])
    assert path.stat().st_size < 100_000
    with pytest.raises(
        ValueError, match=r"corpus\.parquet: 5\d{7} bytes out of \d+ read, more than max_ratio"
    ):
        list(read_documents(path))


def test_a_long_cell_that_repeats_is_counted_each_time_and_held_once(tmp_path: Path) -> None:
    """500 kB in the dictionary, 4000 times: 2 GB. A batch of them as pyarrow gives it would be 500 MB."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array(["a" * 500_000]))
    path = tmp_path / "corpus.parquet"
    parquet.write_table(pa.table({"text": texts}), path, compression="zstd", store_schema=False)
    usual, measured = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(measured)
    try:
        with pytest.raises(ValueError, match="more than max_ratio"):
            list(read_documents(path))
    finally:
        pa.set_memory_pool(usual)
    assert 500_000 < measured.max_memory() < 50_000_000


def test_ordinary_columns_are_read(parquet: Callable) -> None:
    texts = [f"document {n} of some length" for n in range(3000)] + ["again"] * 3000
    report = ReadReport()
    assert [d.text for d in read_documents(parquet(texts), report=report)] == texts
    assert report.read == 6000
