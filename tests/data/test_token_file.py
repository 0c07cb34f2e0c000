from __future__ import annotations

import json
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from llama2_pl.data.cache import build_once
from llama2_pl.data.token_file import TokenFile, TokenFileWriter

DOCUMENTS = [[1, 300, 2], [1, 2], [1, 499, 7, 7, 2]]


def write(path: Path, vocab_size: int = 500, mask: bool = False) -> TokenFile:
    writer = TokenFileWriter(path, vocab_size, "abc", with_mask=mask)
    for document in DOCUMENTS:
        writer.add(document, [token == 2 for token in document] if mask else None)
    writer.close(columns={"rating": np.arange(3)})
    return TokenFile(path)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_documents_come_back_as_written(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    file = write(tmp_path / "f", vocab_size)
    assert file.tokens.dtype == dtype
    assert [file.document(i).tolist() for i in range(len(file))] == DOCUMENTS
    assert file.lengths.tolist() == [3, 2, 5] and file.mask is None
    assert file.column("rating").tolist() == [0, 1, 2]


def test_the_mask_stands_beside_the_tokens(tmp_path: Path) -> None:
    file = write(tmp_path / "f", mask=True)
    assert file.mask is not None
    assert file.mask.tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 0, 1]


def test_equal_content_has_an_equal_hash_and_a_mask_counts(tmp_path: Path) -> None:
    a, b, c = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", mask=True)
    assert a.sha256 == b.sha256 != c.sha256


def test_a_pickled_file_is_a_path_and_no_copy_of_the_tokens(tmp_path: Path) -> None:
    writer = TokenFileWriter(tmp_path / "f", 500, "abc")
    writer.add(list(range(400)) * 100)
    writer.close()
    content = pickle.dumps(TokenFile(tmp_path / "f"))
    assert len(content) < 500
    assert pickle.loads(content).tokens[399] == 399


def test_an_empty_file_opens(tmp_path: Path) -> None:
    TokenFileWriter(tmp_path / "f", 500, "abc").close()
    assert len(TokenFile(tmp_path / "f")) == 0


@pytest.mark.parametrize("name", ["tokens.bin", "mask.bin"])
def test_a_truncated_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "f", mask=True)
    path = tmp_path / "f" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name} has \d+ bytes where meta.json says 10 .* tokens"):
        TokenFile(tmp_path / "f")
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        TokenFile(tmp_path / "f")


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ["tokens.bin", "mask.bin", "offsets.npy", "rating.npy", "meta.json"])
def test_no_flipped_bit_changes_what_is_read(tmp_path: Path, name: str, mask: bool) -> None:
    file = write(tmp_path / "f", mask=mask)
    expected = [file.document(i).tolist() for i in range(len(file))]
    path, chance = tmp_path / "f" / name, random.Random(0)
    if name == "mask.bin" and not mask:
        return
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        bit = chance.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:  # a bit in what nobody reads (padding of a header, a name in meta.json) may pass
            found = TokenFile(tmp_path / "f")
            assert [found.document(i).tolist() for i in range(len(found))] == expected
            assert found.column("rating").tolist() == [0, 1, 2]
            assert found.mask is None or found.mask.tolist() == file.mask.tolist()
        except ValueError as error:
            assert str(tmp_path / "f") in str(error)
            refused += 1
    assert refused == 60 if name.endswith(".bin") else refused > 10


def test_an_unfinished_file_and_another_schema_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "f")
    meta = tmp_path / "f" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match="schema 99, and this version reads 1"):
        TokenFile(tmp_path / "f")
    meta.unlink()
    with pytest.raises(ValueError, match="not a finished token file"):
        TokenFile(tmp_path / "f")


def test_the_loss_of_the_last_document_start_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "f")
    np.save(tmp_path / "f" / "offsets.npy", np.array([0, 3, 5]))
    with pytest.raises(ValueError, match=r"offsets.npy does not fit meta.json"):
        TokenFile(tmp_path / "f")


def test_of_builders_at_the_same_time_one_wins_and_all_read_the_same(tmp_path: Path) -> None:
    together = threading.Barrier(4)
    folders: list[Path] = []

    def build(folder: Path) -> None:
        write(folder / "train")
        together.wait(timeout=10)

    def run() -> None:
        folders.append(build_once(tmp_path, "corpus", ["x"], build))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4 and len(set(folders)) == 1
    assert len(TokenFile(folders[0] / "train")) == 3
    assert [p for p in tmp_path.iterdir() if p != folders[0]] == []


def test_a_failed_build_leaves_nothing_behind_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        build_once(tmp_path, "corpus", ["x"], fail)
    assert list(tmp_path.iterdir()) == []
    assert build_once(tmp_path, "corpus", ["x"], lambda folder: None).is_dir()


def test_the_folder_depends_on_what_it_is_made_from(tmp_path: Path) -> None:
    folders = {build_once(tmp_path, "corpus", [part], lambda folder: None) for part in ("a", "b", "a")}
    assert len(folders) == 2
