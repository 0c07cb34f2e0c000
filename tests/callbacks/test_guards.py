"""LossGuard: a bad update never reaches the weights, on any rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from llama2_pl import ModelConfig, PretrainModule
from llama2_pl.callbacks import LossGuard
from llama2_pl.data.batches import Batch


class Line(L.LightningModule):
    """Multiplies the loss of some batches."""

    def __init__(self, factors: dict[int, float] | None = None, only_gradient: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.factors, self.only_gradient = factors or {}, only_gradient
        self.seen: list[list[torch.Tensor]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append([p.detach().clone() for p in self.parameters()])
        loss = (self.layer(batch) - 1).square().mean() + 1
        factor = self.factors.get(batch_idx, 1.0)
        if self.only_gradient and factor != 1.0:
            loss = loss + 0 * (self.layer.weight.sum() - self.layer.weight.sum().detach()).clamp(min=0).sqrt()
            return loss
        return loss * factor

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(tmp_path, module, guard, steps=8, window=1, callbacks=(), data=None, **options):
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, accumulate_grad_batches=window, logger=False,
        default_root_dir=tmp_path, callbacks=[guard, *callbacks], enable_checkpointing=bool(callbacks),
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4) if data is None else data, **options)
    return trainer


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_changes_no_weight_and_training_goes_on(tmp_path, factor):
    module, guard = Line({3: factor}), LossGuard(dirpath=str(tmp_path))
    with pytest.warns(
        UserWarning, match=r"step 3, batches \[3\]: the loss is not a finite number; the update is"
    ):
        fit(tmp_path, module, guard)
    assert same(module.seen[3], module.seen[4]) and not same(module.seen[4], module.seen[5])
    assert all(p.isfinite().all() for p in module.parameters())
    (line,) = (tmp_path / "guard.jsonl").read_text().splitlines()
    assert json.loads(line)["batches"] == [3] and json.loads(line)["value"] is None


def test_a_gradient_that_is_no_number_is_found_too(tmp_path):
    module, guard = Line({3: 2.0}, only_gradient=True), LossGuard()
    with pytest.warns(UserWarning, match="a gradient is not a finite number"):
        fit(tmp_path, module, guard)
    assert [event.kind for event in guard.events] == ["gradient"] and same(module.seen[3], module.seen[4])


def test_a_spike_is_found_before_the_update_and_the_state_survives_a_resume(tmp_path):
    module, guard = Line({6: 50.0}), LossGuard(warmup=4)
    with pytest.warns(UserWarning, match=r"step 6, batches \[6\]: the loss is .*, usual are"):
        trainer = fit(tmp_path, module, guard)
    assert [event.kind for event in guard.events] == ["spike"] and same(module.seen[6], module.seen[7])
    path = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(path)
    again = LossGuard(warmup=4)
    fit(tmp_path, Line(), again, steps=9, ckpt_path=path)
    assert again.events == guard.events and list(again.usual)[: len(guard.usual)] == list(guard.usual)


def test_what_was_bad_is_no_part_of_what_is_usual(tmp_path):
    guard = LossGuard(warmup=3)
    with pytest.warns(UserWarning, match="the update is left out"):
        fit(tmp_path, Line({3: 50.0, 4: float("nan"), 6: 50.0}), guard)
    assert [(event.step, event.kind) for event in guard.events] == [(3, "spike"), (4, "loss"), (6, "spike")]
    assert len(guard.usual) == 5 and max(guard.usual) < 10


def test_negative_losses_have_spikes_too_and_no_loss_of_theirs_is_one(tmp_path):
    class Below(Line):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) - 10

    guard = LossGuard(warmup=3)
    with pytest.warns(UserWarning, match="the loss is"):
        fit(tmp_path, Below({6: 200.0}), guard)
    assert [(event.step, event.kind) for event in guard.events] == [(6, "spike")]


def test_a_batch_with_many_targets_is_no_spike_and_values_are_mean_losses(tmp_path):
    tokens = torch.randint(3, 60, (8, 1, 33), generator=torch.Generator().manual_seed(0))
    counts = [2, 2, 2, 2, 2, 2, 32, 2]
    masks = torch.stack([((torch.arange(33) > 0) & (torch.arange(33) <= n))[None] for n in counts])
    batches = [
        Batch(t, m, torch.zeros(t.shape, dtype=torch.int32)) for t, m in zip(tokens, masks, strict=True)
    ]
    losses, guard = [], LossGuard(warmup=4)
    module = PretrainModule(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=60, multiple_of=8), lr=1e-3)

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(trainer.callback_metrics["train/loss"].item())

    loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    fit(tmp_path, module, guard, data=loader, callbacks=[Watch()])
    assert guard.events == [] and list(guard.usual) == pytest.approx(losses)
    assert all(3 < loss < 5 for loss in losses)  # ln 60 is 4.1


def test_without_spikes_asked_for_none_are_found(tmp_path):
    guard = LossGuard(spike=None, warmup=2)
    fit(tmp_path, Line({6: 50.0}), guard)
    assert guard.events == []


def test_a_sound_run_is_the_same_with_and_without_it(tmp_path):
    with_it, without = Line(), Line()
    fit(tmp_path, with_it, LossGuard(), window=2)
    fit(tmp_path, without, L.Callback(), window=2)
    assert same(with_it.parameters(), without.parameters())


def test_one_bad_batch_of_a_window_takes_the_whole_window(tmp_path):
    module, guard = Line({5: float("nan")}), LossGuard()
    with pytest.warns(UserWarning, match=r"step 2, batches \[4, 5\]"):
        fit(tmp_path, module, guard, steps=4, window=2)
    assert same(module.seen[4], module.seen[6])


def test_stop_raises_and_leaves_the_weights(tmp_path):
    module = Line({3: float("nan")})
    with pytest.raises(RuntimeError, match=r"step 3, batches \[3\].*nothing of it is in the weights"):
        fit(tmp_path, module, LossGuard(policy="stop"))
    assert same(module.parameters(), module.seen[3])


def test_the_limit_stops_the_run(tmp_path):
    module = Line(dict.fromkeys(range(1, 8), float("nan")))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="more than limit 2 such updates"):
        fit(tmp_path, module, LossGuard(limit=2))


def test_rewind_goes_back_to_the_last_checkpoint(tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_last=True, save_top_k=0)
    module = Line({5: float("nan")})
    with pytest.warns(UserWarning, match=r"back to .*last\.ckpt; the update is left out"):
        fit(tmp_path, module, LossGuard(policy="rewind"), callbacks=[saver])
    # saved after step 4, when the weights were those that batch 4 saw
    assert same(module.seen[6], module.seen[4]) and not same(module.seen[5], module.seen[4])


def test_rewind_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no ModelCheckpoint has saved yet"):
        fit(tmp_path, Line({1: float("nan")}), LossGuard(policy="rewind"))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="policy is 'jump'"):
        LossGuard(policy="jump")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spike is 1"):
        LossGuard(spike=1)


TWO = """
import sys
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from llama2_pl import ModelConfig, PretrainModule
from llama2_pl.callbacks import LossGuard
from llama2_pl.data.batches import Batch


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.layer.weight.detach().clone())
        loss = self.layer(batch).square().mean() + 1
        return loss * float("nan") if batch_idx == 2 and self.global_rank == 1 else loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


if __name__ == "__main__":
    guard, module = LossGuard(), Line()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_steps=5, logger=False,
        default_root_dir=sys.argv[1], callbacks=[guard], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(40, 3), batch_size=2))
    content = {"seen": module.seen, "events": [list(event)[:2] for event in guard.events], "end": module.layer.weight}
    torch.save(content, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


def test_a_bad_loss_on_one_rank_of_two_is_left_out_on_both(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "two.py", str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for rank in ranks:
        assert rank["events"] == [[2, "loss"]]
        assert torch.equal(rank["seen"][2], rank["seen"][3]) and not torch.equal(
            rank["seen"][3], rank["seen"][4]
        )
    assert torch.equal(ranks[0]["end"], ranks[1]["end"]) and ranks[0]["end"].isfinite().all()
