"""VerifiedCheckpointIO: no kill halves a checkpoint, no flipped bit passes, the one before stands in."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from llama2_pl.checkpoints import verified
from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.checkpoints.sharded import recover
from llama2_pl.checkpoints.verified import (
    DamagedCheckpoint,
    VerifiedCheckpointIO,
    damage,
    hash_file,
    move_checkpoint,
    previous_of,
    write_checkpoint,
)


def content(number: int) -> dict:
    generator = torch.Generator().manual_seed(number)
    return {"state_dict": {"weight": torch.randn(7, 5, generator=generator)}, "number": number}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


def save(path: Path, *numbers: int, **options) -> None:
    for number in numbers:
        VerifiedCheckpointIO(**options).save_checkpoint(content(number), path)


def load(path: Path) -> int:
    found = VerifiedCheckpointIO().load_checkpoint(path)
    assert torch.equal(found["state_dict"]["weight"], content(found["number"])["state_dict"]["weight"])
    return found["number"]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def test_the_newest_is_loaded_and_the_one_before_is_kept(path):
    save(path, 1, 2, 3)
    assert load(path) == 3
    assert load(previous_of(path)) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "last.ckpt", "last.ckpt.previous", "last.ckpt.previous.sha256", "last.ckpt.sha256",
    ]  # fmt: skip


def test_its_hash_is_that_of_sha256sum(path):
    save(path, 1)
    printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] in hash_file(path).read_text()


def test_no_flipped_bit_passes_and_the_one_before_stands_in(path):
    save(path, 1, 2)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(60):
        flip(path, chance.randrange(8 * len(whole)))
        with pytest.warns(UserWarning, match=r"last\.ckpt: damaged, its SHA-256 .* going on from .*previous"):
            assert load(path) == 1
        path.write_bytes(whole)
    assert load(path) == 2


def test_a_flipped_bit_without_one_before_is_refused_by_name(path):
    save(path, 1)
    flip(path, 8 * 300)
    with pytest.raises(DamagedCheckpoint, match=r"last\.ckpt: damaged, .* give an older checkpoint"):
        load(path)


def test_a_flipped_bit_in_the_hash_never_loads_anything_else(path):
    save(path, 1, 2)
    whole, chance = hash_file(path).read_bytes(), random.Random(1)
    for _ in range(60):
        flip(hash_file(path), chance.randrange(8 * len(whole)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verified, "rank_zero_warn", lambda text: None)
            assert load(path) in (1, 2)
        hash_file(path).write_bytes(whole)


@pytest.mark.parametrize("size", [0, 10, -1])
def test_a_cut_file_is_found(path, size):
    save(path, 1, 2)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.warns(UserWarning, match="going on from the checkpoint before"):
        assert load(path) == 1


def test_a_missing_file_is_found(path):
    save(path, 1, 2)
    path.unlink()
    with pytest.warns(UserWarning, match="no such checkpoint; going on"):
        assert load(path) == 1


def test_both_damaged_are_refused(path):
    save(path, 1, 2)
    flip(path, 4000)
    flip(previous_of(path), 4000)
    with pytest.raises(DamagedCheckpoint, match=r"there is no sound last\.ckpt\.previous either"):
        load(path)


KILLED = """
import os, sys
from pathlib import Path
import llama2_pl.checkpoints.verified as verified, llama2_pl.files as files
sys.path.insert(0, {folder!r})
import torch
path, calls = Path(sys.argv[1]), [0]

def counted(real, last):
    def call(*args, **options):
        calls[0] += 1
        if calls[0] == last:
            os._exit(9)
        return real(*args, **options)
    return call

names = ("replace", "fsync", "link", "open", "chmod", "unlink")
for last in range(1, 200):
    child = os.fork()
    if child == 0:
        for name in names:
            setattr(os, name, counted(getattr(os, name), last))
        verified.write_checkpoint({{"number": 3}}, path)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    number = verified.VerifiedCheckpointIO().load_checkpoint(path)["number"]
    assert verified.damage(path) is None, last
    before = verified.previous_of(path)
    assert not before.exists() or verified.damage(before) is None, last
    print(last, status, number)
    if status == 0:
        break
    verified.write_checkpoint({{"number": 1}}, path)
    verified.write_checkpoint({{"number": 2}}, path)
"""


def test_a_kill_at_every_system_call_of_a_save_leaves_a_whole_checkpoint(path):
    save(path, 1, 2)
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(folder=str(Path(__file__).parent)), path],
        capture_output=True, text=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) > 10 and lines[-1][1:] == (0, 3)
    assert {status for _, status, _ in lines[:-1]} == {9}
    assert {number for _, _, number in lines} == {2, 3}
    assert not list(path.parent.glob(".*.tmp"))  # the next save clears what a killed one left


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rest(path, monkeypatch):
    save(path, 1, 2)
    before = sorted(path.parent.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, 3)
    assert sorted(path.parent.iterdir()) == before and load(path) == 2


def test_a_failed_write_in_the_background_is_not_hidden(path, monkeypatch):
    io = VerifiedCheckpointIO(background=True)
    io.save_checkpoint(content(1), path)
    io.save_checkpoint(content(2), path)
    io.teardown()
    assert load(path) == 2
    monkeypatch.setattr(
        torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    io.save_checkpoint(content(3), path)
    with pytest.raises(OSError, match="No space left"):
        io.teardown()
    assert load(path) == 2


def test_what_training_changes_after_a_save_in_the_background_is_not_written(path):
    io, state = VerifiedCheckpointIO(background=True), content(1)
    io.save_checkpoint(state, path)
    state["state_dict"]["weight"].zero_()
    io.teardown()
    assert load(path) == 1


def test_without_its_hash_a_damaged_file_is_found_by_the_checksums_of_the_archive(path):
    save(path, 1, 2)
    hash_file(path).unlink()
    whole = path.read_bytes()
    assert load(path) == 2
    weights = content(2)["state_dict"]["weight"].numpy().tobytes()
    for place in range(whole.index(weights), whole.index(weights) + len(weights), 9):
        flip(path, 8 * place + 3)
        with pytest.warns(UserWarning, match=r"last\.ckpt: damaged, the checksum of .* going on from"):
            assert load(path) == 1
        path.write_bytes(whole)
    for length in (0, 1, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match=r"last\.ckpt: damaged or cut short.* going on from"):
            assert load(path) == 1
    hash_file(previous_of(path)).unlink()
    with pytest.raises(DamagedCheckpoint, match=r"last\.ckpt: damaged or cut short"):
        load(path)


def test_a_checkpoint_without_a_hash_is_taken_as_it_is_and_kept_when_replaced(path):
    torch.save(content(1), path)
    assert load(path) == 1 and damage(path) is None
    save(path, 2)
    assert load(path) == 2 and load(previous_of(path)) == 1


def test_a_save_over_a_damaged_hash_works(path):
    save(path, 1)
    hash_file(path).write_text("{")
    save(path, 2)
    assert load(path) == 2


def test_removing_takes_all_parts_and_survives_a_failure(path, monkeypatch):
    save(path, 1, 2)
    VerifiedCheckpointIO().remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []
    save(path, 1)

    def busy(self, missing_ok=False):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "unlink", busy)
    with pytest.warns(UserWarning, match=r"last\.ckpt: could not be removed .*busy"):
        VerifiedCheckpointIO().remove_checkpoint(path)


def test_a_move_takes_the_hash_along(path):
    new = path.with_name(".last.ckpt.new")
    write_checkpoint(content(1), path)
    write_checkpoint(content(2), new)
    move_checkpoint(new, path)
    assert load(path) == 2 and damage(path) is None
    assert not new.exists() and not hash_file(new).exists()


def test_at_every_moment_of_a_move_a_whole_checkpoint_stands_there(path, monkeypatch):
    new, replace, found = path.with_name(".last.ckpt.new"), os.replace, []
    write_checkpoint(content(1), path)
    write_checkpoint(content(2), new)

    def watched(source, target):
        replace(source, target)
        found.append((damage(path), load(path)))

    monkeypatch.setattr(os, "replace", watched)
    move_checkpoint(new, path)
    assert {problem for problem, _ in found} == {None} and [number for _, number in found] == [1, 2, 2]


class Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(path, tmp_path):
    marker = tmp_path / "ran"
    torch.save({"state_dict": {}, "evil": Evil(str(marker))}, path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        VerifiedCheckpointIO().load_checkpoint(path)
    assert not marker.exists()


def test_networks_are_not_read_from_a_damaged_file(path):
    save(path, 1)
    flip(path, 4000)
    with pytest.raises(DamagedCheckpoint, match=r"last\.ckpt: damaged"):
        load_language_model(path)


class Line(L.LightningModule):
    """One weight that follows random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_a_trainer_falls_back_and_resumes(tmp_path):
    loader = torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=1)

    def trainer(steps: int) -> L.Trainer:
        checkpoints = L.pytorch.callbacks.ModelCheckpoint(
            dirpath=tmp_path,
            every_n_train_steps=2,
            save_last=True,
            save_top_k=0,
            enable_version_counter=False,
        )
        return L.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, logger=False, callbacks=[checkpoints],
            plugins=[VerifiedCheckpointIO()], enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    trainer(6).fit(Line(), loader)
    flip(tmp_path / "last.ckpt", 5000)
    resumed = trainer(8)
    with pytest.warns(UserWarning, match="going on from the checkpoint before"):
        resumed.fit(Line(), loader, ckpt_path="last")
    assert resumed.global_step == 8
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == 8


def test_a_save_over_a_damaged_checkpoint_keeps_the_good_one_before_it(path, monkeypatch):
    save(path, 1, 2)
    flip(path, 4000)
    assert load(path) == 1
    verified._WRITTEN.clear()  # the next process goes on from number 1, and is killed inside its first save
    monkeypatch.setattr(verified.os, "replace", killed_at_the_checkpoint(path))
    with pytest.raises(KeyboardInterrupt):
        save(path, 3)
    monkeypatch.undo()
    assert load(path) == 1
    save(path, 3)
    assert load(path) == 3 and load(previous_of(path)) == 1


def killed_at_the_checkpoint(path: Path):
    real = os.replace

    def replace(source, target):
        if Path(target) == path:
            raise KeyboardInterrupt
        real(source, target)

    return replace


def test_a_file_system_without_links_keeps_a_copy(path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(verified.os, "link", refused)
    save(path, 1, 2)
    assert load(path) == 2 and load(previous_of(path)) == 1


def test_a_deleted_checkpoint_is_that_before_it_under_its_name_again(path):
    save(path, 1, 2)
    path.unlink()
    with pytest.warns(UserWarning, match=r"last\.ckpt: missing; the checkpoint before it is back"):
        recover(path.parent)
    assert load(path) == 1 and damage(path) is None
