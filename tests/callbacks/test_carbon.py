"""CarbonFootprint in a Trainer of one's own, and the paper's table."""

from __future__ import annotations

import json
import math
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch.utils.data import DataLoader

from llama2_pl.callbacks import carbon, carbon_ledger
from llama2_pl.callbacks.carbon import CarbonFootprint
from llama2_pl.callbacks.meters import WattsMeter


class Line(L.LightningModule):
    """Someone else's module: one linear map, nothing of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val", self.layer(batch).mean())

    def predict_step(self, batch, batch_idx):
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(rows: int = 4) -> DataLoader:
    return DataLoader([torch.ones(2)] * rows)  # type: ignore[arg-type]


def trainer(tmp_path: Path, *callbacks: L.Callback, **options) -> L.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
    }
    settings = {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False, **quiet, **options}
    return L.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **settings)


def ledger(folder: Path) -> dict:
    return json.loads((folder / "carbon.json").read_text())["stages"]


class Clock:
    """A monotonic clock that the test moves; one hour passes at each training batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(carbon.time, "monotonic", lambda: self.now)

    def callback(self, seconds: float) -> L.Callback:
        return LambdaCallback(on_train_batch_start=lambda *_: self.advance(seconds))

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """`carbon.time` is replaced, so that Lightning and PyTorch keep the real clock."""
    monkeypatch.setattr(carbon, "time", types.SimpleNamespace())
    monkeypatch.setattr(carbon.time, "monotonic", time.monotonic, raising=False)
    return Clock(monkeypatch)


def fake_codecarbon(monkeypatch: pytest.MonkeyPatch, **methods) -> list[dict]:
    """A codecarbon whose tracker has the given methods; returns the options it is made with."""
    made: list[dict] = []

    class Tracker:
        def __init__(self, **options) -> None:
            made.append(options)

        start = methods.get("start", lambda self: None)
        flush = methods.get("flush", lambda self: 0.25)
        stop = methods.get("stop", lambda self: 0.5)

    module = types.ModuleType("codecarbon")
    module.OfflineEmissionsTracker = methods.get("tracker", Tracker)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    return made


def test_table_2_is_the_papers() -> None:
    """GPU hours, watts and tonnes of each size; entries are truncated, and the total is that of the untruncated."""
    rows = [(184_320, 400, 31.22), (368_640, 400, 62.44), (1_038_336, 350, 153.90), (1_720_320, 400, 291.42)]
    kwh = [WattsMeter(watts).read(hours) for hours, watts, _ in rows]
    sessions = [carbon_ledger.Session(0.0, 0.0, energy, "watts") for energy in kwh]
    footprint = CarbonFootprint()
    co2e = [
        carbon_ledger.totals(part, footprint.pue, footprint.kg_per_kwh)["co2e_kg"]
        for part in (*([session] for session in sessions), sessions)
    ]
    assert [math.floor(kg / 10) / 100 for kg in co2e] == [*(printed for *_, printed in rows), 539.00]


def test_power_times_hours_is_logged_and_kept(tmp_path: Path, clock: Clock) -> None:
    footprint = CarbonFootprint("sft", backend="watts", watts_per_device=500.0)
    run = trainer(tmp_path, footprint, clock.callback(3600))
    run.fit(Line(), loader(4))
    assert run.logged_metrics["carbon/hours"] == pytest.approx(4)
    assert run.logged_metrics["carbon/kwh"] == pytest.approx(2.0)
    assert run.logged_metrics["carbon/co2e_kg"] == pytest.approx(2.0 * 1.1 * 0.385)
    row = ledger(tmp_path)["sft"]
    assert (row["hours"], row["kwh"], row["source"]) == (
        pytest.approx(4),
        pytest.approx(2.0),
        "power x hours",
    )


def test_processes_that_share_a_cpu_count_its_power_once(tmp_path: Path, clock: Clock) -> None:
    footprint = CarbonFootprint(dirpath=str(tmp_path), backend="watts")
    run = trainer(tmp_path, strategy="ddp", devices=2)
    footprint.setup(run, Line(), "fit")
    clock.advance(3600)
    footprint.teardown(run, Line(), "fit")
    row = ledger(tmp_path)["train"]
    assert run.world_size == 2
    assert (row["hours"], row["kwh"]) == (pytest.approx(1), pytest.approx(carbon.CPU_WATTS / 1000))


def test_figures_add_up_over_a_resume(tmp_path: Path, clock: Clock) -> None:
    def fit(epochs: int, ckpt_path: str | None, folder: Path) -> CarbonFootprint:
        footprint = CarbonFootprint("sft", backend="watts", watts_per_device=1000.0, dirpath=str(folder))
        run = trainer(tmp_path, footprint, clock.callback(3600), max_epochs=epochs)
        run.fit(Line(), loader(2), ckpt_path=ckpt_path)
        run.save_checkpoint(tmp_path / "last.ckpt")
        return footprint

    assert fit(1, None, tmp_path / "a").totals["kwh"] == pytest.approx(2)
    # the same folder: what the ledger and the checkpoint both know counts once
    assert fit(2, str(tmp_path / "last.ckpt"), tmp_path / "a").totals["kwh"] == pytest.approx(4)
    # another folder: the checkpoint alone carries the past
    assert fit(3, str(tmp_path / "last.ckpt"), tmp_path / "b").totals["kwh"] == pytest.approx(6)
    assert ledger(tmp_path / "b")["sft"]["hours"] == pytest.approx(6)


def test_work_lost_in_a_crash_was_spent_all_the_same(tmp_path: Path, clock: Clock) -> None:
    class Crash(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("the machine is gone")

    def footprint() -> CarbonFootprint:
        return CarbonFootprint("sft", backend="watts", watts_per_device=1000.0)

    with pytest.raises(RuntimeError, match="machine is gone"):
        trainer(tmp_path, footprint(), clock.callback(3600), Crash()).fit(Line(), loader(4))
    trainer(tmp_path, footprint(), clock.callback(3600)).fit(Line(), loader(4))
    assert ledger(tmp_path)["sft"]["kwh"] == pytest.approx(3 + 4)


def test_stages_keep_their_own_rows_and_checkpoint_states(tmp_path: Path, clock: Clock) -> None:
    both = [CarbonFootprint(name, backend="watts") for name in ("a", "b")]
    run = trainer(tmp_path, *both, clock.callback(3600))
    run.fit(Line(), loader(1))
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert set(ledger(tmp_path)) == {"a", "b"}
    states = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
    assert {both[0].state_key, both[1].state_key} <= set(states)


@pytest.mark.parametrize("job", ["validate", "predict"])
def test_it_measures_stages_that_do_not_train(tmp_path: Path, clock: Clock, job: str) -> None:
    footprint = CarbonFootprint("evaluation", backend="watts", watts_per_device=1000.0)
    advance = LambdaCallback(
        on_validation_start=lambda *_: clock.advance(3600), on_predict_start=lambda *_: clock.advance(3600)
    )
    run = trainer(tmp_path, footprint, advance)
    getattr(run, job)(Line(), loader(1))
    assert ledger(tmp_path)["evaluation"]["kwh"] == pytest.approx(1)


def test_a_block_without_a_trainer_is_measured(tmp_path: Path, clock: Clock) -> None:
    footprint = CarbonFootprint(dirpath=str(tmp_path / "new"), backend="watts", watts_per_device=1000.0)
    with footprint.measure("rejection_sampling") as part:
        clock.advance(7200)
    assert part.totals["kwh"] == pytest.approx(2) and part.totals["co2e_kg"] == pytest.approx(2 * 1.1 * 0.385)
    assert ledger(tmp_path / "new")["rejection_sampling"]["hours"] == pytest.approx(2)


def test_an_error_in_a_measured_block_is_not_swallowed(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError, match="mine"),
        CarbonFootprint(dirpath=str(tmp_path), backend="watts").measure(),
    ):
        raise KeyError("mine")
    assert "train" in ledger(tmp_path)


def test_codecarbon_is_asked_for_energy_offline_and_takes_no_signal_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_codecarbon(monkeypatch)
    footprint = CarbonFootprint("sft", pue=1.5, kg_per_kwh=0.2)
    run = trainer(tmp_path, footprint)
    run.fit(Line(), loader(2))
    (options,) = made
    assert options["allow_multiple_runs"] is True and options["output_methods"] == []
    assert (options["pue"], options["force_carbon_intensity_g_co2e_kwh"]) == (1.0, 1000.0)
    assert run.logged_metrics["carbon/kwh"] == pytest.approx(0.25)  # flush()
    row = ledger(tmp_path)["sft"]
    assert (row["kwh"], row["source"]) == (0.5, "codecarbon")  # stop()
    assert row["co2e_kg"] == pytest.approx(0.5 * 1.5 * 0.2)


def test_the_real_codecarbon_measures_a_positive_energy(tmp_path: Path) -> None:
    pytest.importorskip("codecarbon")
    with CarbonFootprint(dirpath=str(tmp_path), backend="codecarbon").measure() as part:
        time.sleep(0.3)
    assert 0 < part.totals["kwh"] < 1e-3


def boom(*args, **kwargs):
    raise RuntimeError("no sensor")


@pytest.mark.parametrize(
    "broken",
    [
        {"tracker": boom},
        {"start": boom},
        {"flush": boom, "stop": boom},
        {"stop": boom},
        {"flush": lambda self: None, "stop": lambda self: None},
        {"stop": lambda self: -1.0},
        {"stop": lambda self: float("nan")},
    ],
    ids=["init", "start", "flush and stop", "stop", "nothing", "negative", "nan"],
)
def test_a_broken_codecarbon_costs_one_warning_and_leaves_the_energy_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: dict
) -> None:
    fake_codecarbon(monkeypatch, **broken)
    run = trainer(tmp_path, CarbonFootprint("sft"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(Line(), loader(3))
    assert len([w for w in caught if "CarbonFootprint" in str(w.message)]) == 1
    assert run.global_step == 3
    row = ledger(tmp_path)["sft"]
    assert row["kwh"] is None and row["co2e_kg"] is None
    assert row["hours"] > 0


def test_one_session_of_unknown_energy_makes_the_sum_unknown() -> None:
    known = carbon_ledger.Session(3600, 3600, 2.0, "codecarbon")
    unknown = carbon_ledger.Session(3600, 3600, None, "codecarbon")
    assert carbon_ledger.totals([known, unknown], 1.1, 0.385)["kwh"] is None
    assert carbon_ledger.totals([known, unknown], 1.1, 0.385)["hours"] == 2
    assert carbon_ledger.totals([known], 1.1, 0.385)["kwh"] == 2.0


@pytest.mark.parametrize("trouble", ["folder is a file", "ledger is no JSON", "state is of another kind"])
def test_a_broken_ledger_or_state_does_not_stop_a_training(tmp_path: Path, trouble: str) -> None:
    folder = tmp_path / "out"
    footprint = CarbonFootprint("sft", dirpath=str(folder), backend="watts")
    if trouble == "folder is a file":
        folder.write_text("in the way")
    elif trouble == "ledger is no JSON":
        folder.mkdir()
        (folder / "carbon.json").write_text("{half")
    else:
        with pytest.warns(UserWarning, match="incomplete"):
            footprint.load_state_dict({"unexpected": 1})
    run = trainer(tmp_path, footprint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(Line(), loader(2))
    assert run.global_step == 2
    if trouble == "ledger is no JSON":
        assert (folder / "carbon.json").read_text() == "{half"  # what we cannot read we do not overwrite


def test_without_codecarbon_auto_takes_power_times_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with CarbonFootprint(dirpath=str(tmp_path), watts_per_device=100.0).measure() as part:
        time.sleep(0.01)
    assert part.totals["source"] == "power x hours" and part.totals["kwh"] > 0


def test_asking_for_a_codecarbon_that_is_not_there_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with (
        pytest.warns(UserWarning, match=r"llama2-pl\[carbon\]"),
        CarbonFootprint(dirpath=str(tmp_path), backend="codecarbon").measure() as part,
    ):
        pass
    assert part.totals["kwh"] is None


def test_energy_of_other_nodes_is_added_and_one_that_cannot_tell_makes_it_unknown() -> None:
    class Strategy:
        root_device = torch.device("cpu")

        def __init__(self, other: list[float]) -> None:
            self.other = torch.tensor(other, dtype=torch.float64)

        def reduce(self, tensor, reduce_op):
            assert reduce_op == "sum"
            return tensor + self.other

    def others(other: list[float]) -> float | None:
        running = carbon._Running(2, None, measures=True)
        trainer: Any = types.SimpleNamespace(strategy=Strategy(other))
        return carbon._energy_of_other_nodes(running, 1.5, trainer)

    assert others([0.5, 0]) == pytest.approx(0.5)
    assert others([0.5, 1]) is None
    # a process that leaves its node's energy to another one has none of its own, and hides no other
    footprint, second = CarbonFootprint(backend="watts"), types.SimpleNamespace(is_global_zero=False)
    second.local_rank, second.num_nodes, second.strategy = 1, 2, Strategy([0.5, 0])
    footprint._begin(Path("unused"), 4, 400.0, second)  # type: ignore[arg-type]
    footprint._update(second)  # type: ignore[arg-type]
    assert footprint.totals["kwh"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("pue", 0.9), ("kg_per_kwh", -1.0), ("watts_per_device", 0.0), ("backend", "guess")],
)
def test_an_impossible_option_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        CarbonFootprint(**{option: value})
