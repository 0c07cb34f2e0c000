"""Folders of shards: whole or not at all, verified, with the one before; two real processes over gloo."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama2_pl.checkpoints import sharded
from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.checkpoints.schema import KEY
from llama2_pl.checkpoints.sharded import MANIFEST, commit, folder_damage, recover, verified_folder
from llama2_pl.checkpoints.verified import DamagedCheckpoint, VerifiedCheckpointIO, previous_of

NAMES = ("__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt")


def save(path: Path, number: int) -> None:
    """A folder as the strategy writes it, its bytes those of a number."""
    staging = path.with_name(f".{path.name}.saving")
    staging.mkdir(parents=True)
    for name in NAMES:
        (staging / name).write_bytes(random.Random(f"{number} {name}").randbytes(512))
    assert commit(staging, path) is None


def number_in(folder: Path) -> int:
    found = {number for number in range(9) for name in NAMES
             if (folder / name).read_bytes() == random.Random(f"{number} {name}").randbytes(512)}  # fmt: skip
    assert len(found) == 1, "shards of two saves in one folder"
    return found.pop()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow on a busy disk
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2)
    return path


def test_the_newest_folder_stands_and_the_one_before_is_kept(path):
    assert number_in(verified_folder(path)) == 2 and number_in(previous_of(path)) == 1
    save(path, 3)
    assert number_in(verified_folder(path)) == 3 and number_in(previous_of(path)) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]
    line = hashlib.sha256((path / "meta.pt").read_bytes()).hexdigest()
    assert line in (path / MANIFEST).read_text()


def test_no_flipped_bit_of_any_file_passes_and_the_one_before_stands_in(path):
    draw = random.Random(0)
    for name in (*NAMES, MANIFEST):
        whole = (path / name).read_bytes()
        for _ in range(20):
            place, bit = draw.randrange(len(whole)), draw.randrange(8)
            (path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.warns(UserWarning, match=r"last\.ckpt/.*going on from .*last\.ckpt\.previous"):
                assert number_in(verified_folder(path)) == 1
        (path / name).write_bytes(whole)
    assert folder_damage(path) is None


@pytest.mark.parametrize("harm", ["cut", "empty", "gone"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_or_missing_file_is_named(path, name, harm):
    file = path / name
    file.write_bytes({"cut": file.read_bytes()[:100]}.get(harm, b""))
    if harm == "gone":
        file.unlink()
    with pytest.warns(UserWarning, match=rf"last\.ckpt/{name}"):
        assert number_in(verified_folder(path)) == 1
    (previous_of(path) / name).write_bytes(b"")
    with pytest.raises(
        DamagedCheckpoint, match=rf"last\.ckpt/{name}.*there is no sound last\.ckpt\.previous"
    ):
        verified_folder(path)


def test_a_folder_of_ours_without_its_manifest_is_damaged_and_one_of_lightning_alone_is_not(path):
    (path / MANIFEST).unlink()
    assert number_in(verified_folder(path)) == 2
    torch.save({KEY: 1}, path / "meta.pt")
    with pytest.warns(UserWarning, match=r"manifest\.json: no such file, and every save .* going on from"):
        assert number_in(verified_folder(path)) == 1
    (previous_of(path) / MANIFEST).unlink()
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json: no such file"):
        verified_folder(path)


def test_a_manifest_cannot_name_files_outside_the_folder(path):
    (path / MANIFEST).write_text('{"sha256": {"../x": "0"}}')
    assert "manifest.json: not the hashes" in str(folder_damage(path))


def test_a_missing_folder_is_that_before_it_and_recover_gives_it_back_its_name(path):
    os.rename(path, path.parent / "elsewhere")
    with pytest.warns(UserWarning, match="no such checkpoint"):
        assert number_in(verified_folder(path)) == 1
    with pytest.warns(UserWarning, match="the checkpoint before it is back"):
        recover(path.parent)
    assert number_in(path) == 1 and not previous_of(path).exists()


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_save_over_a_damaged_folder_keeps_the_good_one_before_it(path, exchanges, monkeypatch):
    shard = next(path.glob("__0_*"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    sharded._WRITTEN.clear()  # the next process goes on from number 1
    if not exchanges:
        monkeypatch.setattr(sharded, "_exchange", lambda *_: False)
    save(path, 3)
    assert number_in(path) == 3 and number_in(previous_of(path)) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]


def test_retention_removes_folders_and_survives_a_failure(path, monkeypatch):
    def busy(*_):
        raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", busy)
        with pytest.warns(UserWarning, match="could not be removed"):
            VerifiedCheckpointIO().remove_checkpoint(path)
    VerifiedCheckpointIO().remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def test_a_failed_write_leaves_what_stood_there(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    staging = path.with_name("staging")
    staging.mkdir()
    (staging / "__0_0.distcp").write_bytes(b"new")
    monkeypatch.setattr(sharded, "flush", full)
    assert "No space left" in str(commit(staging, path))
    assert number_in(path) == 2


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import test_sharded
from test_sharded import number_in, recover, save, sharded, verified_folder
os.fsync = lambda descriptor: None  # a process is killed here, not the power cut
path, calls, exchange = Path(sys.argv[1]), [0], sys.argv[2] == "exchange"
if not exchange:
    sharded._exchange = lambda one, other: False

def counted(real, last):
    def call(*args, **options):
        calls[0] += 1
        if calls[0] == last:
            os._exit(9)
        return real(*args, **options)
    return call

save(path, 1)
for last in range(1, 200):
    save(path, 2)
    child = os.fork()
    if child == 0:
        for name in ("rename", "fsync", "open", "replace", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name), last))
        sharded._exchange = counted(sharded._exchange, last)
        save(path, 3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    recover(path.parent)
    assert exchange is False or path.exists(), last
    print(last, status, number_in(verified_folder(path)))
    if status == 0:
        break
    sharded.clear(path.with_name(".last.ckpt.saving"))
    save(path, 1)
"""


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_kill_at_every_system_call_leaves_a_whole_folder(tmp_path, how):
    script = KILLED.format(folder=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path / "last.ckpt", how],
        capture_output=True, text=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) > 10 and lines[-1][1:] == (0, 3)
    assert {number for _, _, number in lines} <= {1, 2, 3} and {2, 3} <= {number for _, _, number in lines}


TWO_PROCESSES = """
import sys
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from llama2_pl.data.batches import Batch
from llama2_pl.modules import PretrainModule

folder, steps, load = sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None
backbone = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=16, max_seq_len=32)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        draw = torch.Generator().manual_seed(self.trainer.global_rank)
        rows = [torch.randint(3, 64, (1, 12), generator=draw) for _ in range(4)]
        mask, document = torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, 12, dtype=torch.int32)
        batches = [Batch(row, mask, document) for row in rows]
        return torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda b: b)


class Print(L.Callback):
    def on_train_start(self, trainer, module):
        if trainer.is_global_zero:
            print("started at", trainer.global_step, flush=True)


strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
saver = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_top_k=0, enable_version_counter=False)
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy=strategy, max_steps=steps, use_distributed_sampler=False, logger=False,
    callbacks=[saver, Print()], enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
)
L.seed_everything(1)
trainer.fit(PretrainModule(backbone), datamodule=Data(), ckpt_path=load)
"""


def train(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(TWO_PROCESSES)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", str(folder), *map(str, words)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=110)


@pytest.mark.timeout(240)
def test_two_processes_save_a_folder_that_is_verified_and_fall_back_together(tmp_path):
    path = tmp_path / "last.ckpt"
    done = train(tmp_path, 3)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt", MANIFEST} == {
        p.name for p in path.iterdir()
    }
    assert verified_folder(path) == path and verified_folder(previous_of(path)) == previous_of(path)
    assert torch.load(previous_of(path) / "meta.pt")["global_step"] == 2
    assert load_language_model(path).config.dim == 32
    shard = path / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedCheckpoint, match=r"last\.ckpt/__1_0\.distcp: damaged"):
        load_language_model(path)
    done = train(tmp_path, 4, "last")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "started at 2" in done.stdout
    assert "__1_0.distcp: damaged" in done.stderr and "going on from the checkpoint before it" in done.stderr
    assert verified_folder(path) == path and torch.load(path / "meta.pt")["global_step"] == 4
