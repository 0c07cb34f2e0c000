"""PreemptionCheckpoint: a signal saves at the next step boundary, and the run goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from llama2_pl.callbacks import PreemptionCheckpoint
from llama2_pl.callbacks.preemption import restart, slurm_job
from llama2_pl.checkpoints.saving import Interrupted
from llama2_pl.data.base import NumberedDataModule

STEPS = 8


class Numbers(NumberedDataModule):
    """Batch n holds numbers drawn from n."""

    def __init__(self) -> None:
        super().__init__(batch_size=4, num_workers=0)

    def setup(self, stage: str | None = None) -> None:
        pass

    def settings(self):
        return {}

    def train_batches(self):
        class Batches:
            def __len__(self) -> int:
                return 16

            def __getitem__(self, n: int) -> torch.Tensor:
                return torch.randn(4, 3, generator=torch.Generator().manual_seed(n))

        return Batches()


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return (self.layer(batch) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Kill(L.Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, batch: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.batch, self.number = batch, number

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


def trainer(tmp_path: Path, *callbacks: L.Callback, window: int = 1, saver: bool = False) -> L.Trainer:
    if saver:
        callbacks += (ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=100, save_top_k=0),)
    return L.Trainer(
        accelerator="cpu", devices=1, max_steps=STEPS, accumulate_grad_batches=window, logger=False,
        default_root_dir=tmp_path, callbacks=[*callbacks], enable_checkpointing=saver,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize(("window", "batch", "step"), [(1, 2, 3), (2, 4, 3), (2, 5, 3)])
def test_it_saves_at_the_next_step_and_the_resumed_run_equals_an_unbroken_one(
    tmp_path, number, window, batch, step
):
    whole, resumed = Line(), Line()
    trainer(tmp_path, window=window).fit(whole, datamodule=Numbers())
    with pytest.raises(Interrupted if number == signal.SIGINT else SIGTERMException):
        stopped = trainer(tmp_path, Kill(batch, number), PreemptionCheckpoint(), window=window)
        stopped.fit(Line(), datamodule=Numbers())
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == step
    trainer(tmp_path, window=window).fit(resumed, datamodule=Numbers(), ckpt_path=path)
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_saves_where_the_model_checkpoint_does(tmp_path):
    with pytest.raises(SIGTERMException):
        trainer(tmp_path, Kill(1), PreemptionCheckpoint(), saver=True).fit(Line(), datamodule=Numbers())
    assert (tmp_path / "saved/last.ckpt").exists()


class Counts(L.Callback):
    """Remembers how many batches it has seen, in the checkpoint."""

    seen = 0

    def on_train_batch_end(self, *_) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}


def test_the_checkpoint_holds_the_last_step_of_callbacks_listed_behind_it(tmp_path):
    with pytest.raises(SIGTERMException):
        trainer(tmp_path, Kill(3), PreemptionCheckpoint(), Counts(), saver=True).fit(
            Line(), datamodule=Numbers()
        )
    content = torch.load(tmp_path / "saved/last.ckpt", weights_only=True)
    assert content["global_step"] == content["callbacks"]["Counts"]["seen"] == 4


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start"])
def test_a_signal_before_the_first_step_waits_for_it(tmp_path, hook):
    """Lightning's own handler would ask all ranks there and then."""
    early = L.Callback()
    setattr(early, hook, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    module, run = Line(), trainer(tmp_path, PreemptionCheckpoint(), early)
    with pytest.raises(SIGTERMException):
        run.fit(module, datamodule=Numbers())
    assert not run.received_sigterm
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.parametrize("batch", [None, 2])
def test_handlers_are_put_back(tmp_path, batch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    callbacks = [] if batch is None else [Kill(batch)]
    with nullcontext() if batch is None else pytest.raises(SIGTERMException):
        trainer(tmp_path, *callbacks, PreemptionCheckpoint()).fit(Line(), datamodule=Numbers())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_slurm_job_is_put_back_into_the_queue(tmp_path, monkeypatch):
    fake = tmp_path / "bin/scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # so that Lightning takes no part
    with pytest.raises(SIGTERMException):
        trainer(tmp_path, Kill(1), PreemptionCheckpoint()).fit(Line(), datamodule=Numbers())
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


def test_a_second_ctrl_c_stops_at_once(tmp_path, capfd):
    class Twice(Kill):
        def on_before_backward(self, trainer, pl_module, loss) -> None:
            for _ in range(2):
                super().on_before_backward(trainer, pl_module, loss)

    with pytest.raises(SystemExit):  # Lightning's answer to KeyboardInterrupt
        trainer(tmp_path, Twice(1, signal.SIGINT), PreemptionCheckpoint()).fit(Line(), datamodule=Numbers())
    assert not (tmp_path / "last.ckpt").exists()
    assert capfd.readouterr().err.count("this step is finished and saved; again stops at once") == 1


def test_jobs_and_commands_by_hand(monkeypatch):
    for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12; rm -r x")
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm_job() == "12_3"
    monkeypatch.setattr(sys, "argv", ["llama2-pl"])  # all that is left of it while LightningCLI runs
    monkeypatch.setattr(sys, "orig_argv", ["/x/bin/python", "/x/bin/llama2-pl", "fit", "-c", "a b.yaml"])
    assert restart(Path("x.ckpt")) == "llama2-pl fit -c 'a b.yaml' --ckpt_path last"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "llama2_pl", "fit", "--ckpt_path=x"])
    assert restart(Path("x.ckpt")) == "llama2-pl fit --ckpt_path=x"
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--steps", "3"])
    assert (
        restart(Path("x.ckpt")) == 'python train.py --steps 3, and in it trainer.fit(..., ckpt_path="x.ckpt")'
    )


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="'SIGNONE' is no signal"):
        PreemptionCheckpoint(signals=("SIGNONE",))
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        PreemptionCheckpoint(every_n_steps=0)


TWO = """
import os, signal, sys
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from llama2_pl.callbacks import PreemptionCheckpoint


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_steps=500, logger=False,
        default_root_dir=sys.argv[1], callbacks=[PreemptionCheckpoint(every_n_steps=2)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    try:
        trainer.fit(Line(), torch.utils.data.DataLoader(torch.randn(4000, 3), batch_size=2))
    except SIGTERMException:
        open(f"{sys.argv[1]}/left-{trainer.global_rank}", "w").write(str(trainer.global_step))
        raise SystemExit(143)
"""


def test_a_signal_to_rank_1_alone_ends_both_ranks_with_a_checkpoint(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "two.py", str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr[-2000:]
    deadline = time.monotonic() + 20  # rank 1 may write its note a moment after rank 0 has left
    while not (tmp_path / "left-1").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [(tmp_path / f"left-{rank}").read_text() for rank in (0, 1)] == ["4", "4"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
