"""Hashes of files: what they see, and when a file is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama2_pl.rlhf import fingerprints
from llama2_pl.rlhf.fingerprints import fingerprint
from llama2_pl.rlhf.runner import run_stages
from llama2_pl.rlhf.stages import Stage


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Nothing is known yet."""
    known: dict = {}
    monkeypatch.setattr(fingerprints, "_known", known)
    return known


def written(path: Path, text: str, ago: float) -> Path:
    """A file of so many seconds ago, at no whole second."""
    path.write_text(text)
    at = (time.time_ns() - int(ago * 1e9)) // 1000 * 1000 + 1
    os.utime(path, ns=(at, at))
    return path


def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Path, *_: object) -> None:
        raise AssertionError(f"{self} was read again")

    monkeypatch.setattr(Path, "open", read)


def test_a_files_hash_is_that_of_its_bytes_and_a_missing_one_has_none(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "text", ago=10)
    assert fingerprint(path) == fingerprint(str(path)) == hashlib.sha256(b"text").hexdigest()
    assert fingerprint(tmp_path / "none") == ""


def test_a_folders_hash_sees_content_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "x").write_text("1")
    before = fingerprint(folder)
    (folder / "x").write_text("2")
    changed = fingerprint(folder)
    (folder / "x").write_text("1")
    (folder / "x").rename(folder / "y")
    assert len({before, changed, fingerprint(folder)}) == 3


def test_a_file_that_stayed_as_it_was_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a", "text", ago=10)
    before = fingerprint(path)
    unreadable(monkeypatch)
    assert fingerprint(path) == fingerprint(os.path.relpath(path)) == before


@pytest.mark.parametrize("how", ["length", "time", "another file"])
def test_each_sign_of_a_change_is_enough(tmp_path: Path, how: str) -> None:
    path = written(tmp_path / "a", "text", ago=10)
    before, times = fingerprint(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    if how == "another file":
        (tmp_path / "b").write_text("tent")
        os.replace(tmp_path / "b", path)
    else:
        path.write_text("longer text" if how == "length" else "tent")
    if how != "time":
        os.utime(path, ns=times)
    assert fingerprint(path) != before


@pytest.mark.parametrize(("changed", "since"), [(7_000_000_001, 10_000_000), (7_000_000_000, 900_000_000)])
def test_a_change_right_after_another_is_seen_also_where_times_are_coarse(
    tmp_path: Path, changed: int, since: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`since` the first change the file system's clock has not moved on; at whole seconds it may be a second."""
    monkeypatch.setattr(fingerprints, "time", SimpleNamespace(time_ns=lambda: changed + since))
    path = tmp_path / "a"
    for text in ("text", "tent"):
        path.write_text(text)
        os.utime(path, ns=(changed, changed))
        assert fingerprint(path) == hashlib.sha256(text.encode()).hexdigest()


def test_a_run_that_goes_on_reads_no_output_again(
    tmp_path: Path, new_process: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = tmp_path / "made", []
    source = written(tmp_path / "source", "text", ago=10)
    stage = Stage("a", "first", ("a",), (str(source),), (str(folder), str(tmp_path / "b")))

    def execute(args: list[str]) -> None:
        ran.append(args)
        folder.mkdir()
        written(folder / "one", "1", ago=5)
        written(tmp_path / "b", "2", ago=5)

    run_stages(tmp_path, [stage], execute, lambda _: None, refuse=True)
    new_process.clear()
    with monkeypatch.context() as patch:
        unreadable(patch)
        patch.setattr(Path, "read_text", lambda self, encoding: os.popen(f"cat {self}").read())
        run_stages(tmp_path, [stage], execute, lambda _: None, refuse=True)
    new_process.clear()
    written(folder / "one", "3", ago=4)
    with pytest.raises(ValueError, match="made/one changed"):
        run_stages(tmp_path, [stage], execute, lambda _: None, refuse=True)
    assert len(ran) == 1
