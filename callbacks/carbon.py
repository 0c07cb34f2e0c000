"""Energy and carbon of each stage of a training, cumulative over restarts.

Llama 2 §2.2.1 and Table 2; the formula is Llama 1's: hours x watts x PUE x kgCO2e per kWh.
"""

from __future__ import annotations

import functools
import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from llama2_pl.callbacks.carbon_ledger import Session, merge, read_sessions, totals, write_sessions
from llama2_pl.callbacks.meters import Backend, Meter, WattsMeter, open_meter

# Llama 1's figures. Neither is printed in the Llama 2 paper, but together they give its Table 2.
PUE = 1.1
KG_PER_KWH = 0.385
GPU_WATTS = 400.0  # the cap of the paper's A100s; Table 2 counts 350 W for the 34B
CPU_WATTS = 65.0  # of one machine; our choice, the rated power of a common desktop processor


def _never_fails(method: Callable[..., None]) -> Callable[..., None]:
    """A hook whose every failure is one warning: a training must not end because its energy is not known."""

    @functools.wraps(method)
    def guarded(self: CarbonFootprint, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._warn(f"{method.__name__}: {type(error).__name__}: {error}")

    return guarded


class _Running:
    """The session of this process while it runs."""

    def __init__(self, devices: int, path: Path | None, measures: bool) -> None:
        self.id = uuid.uuid4().hex
        self.devices = devices
        self.path = path  # of the ledger; None in processes that do not write it
        self.measures = measures
        self.meter: Meter | None = None
        self.other_nodes: float | None = 0.0
        self._started = time.monotonic()  # which no change of the clock moves

    def hours(self) -> float:
        return (time.monotonic() - self._started) / 3600


def _energy_of_other_nodes(running: _Running, kwh: float | None, trainer: L.Trainer) -> float | None:
    """kWh that the other nodes measured; None where one of them cannot tell. Every rank calls it."""
    # power x hours counts the devices of all nodes by itself
    own = 0.0 if kwh is None or isinstance(running.meter, WattsMeter) else kwh
    counts = torch.tensor([own, float(kwh is None)], dtype=torch.float64, device=trainer.strategy.root_device)
    total, unknown = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    return None if unknown else max(0.0, total - own)


class CarbonFootprint(L.Callback):
    """Measures or estimates the energy of a stage and what it emits.

    Llama 2 §2.2.1, Table 2. Works in fit, validate, test and predict of any Trainer, and alone by `measure`.

    Logs `carbon/hours` (device hours, as the table's GPU hours), `carbon/kwh` (of the devices, without PUE) and
    `carbon/co2e_kg` (kWh x PUE x kgCO2e per kWh) while training, and keeps `carbon.json` in `dirpath`:
    {"stages": {stage: {"hours", "wall_hours", "kwh", "co2e_kg", "source", ..., "sessions": {...}}}}.

    Each process run is a session with an id. A checkpoint and the ledger both hold all sessions, and are joined by
    id, so that figures add up over restarts, work lost in a crash counts, and nothing counts twice. Energy that is
    not known is None, never 0, and makes the stage's total None.

    Args:
        stage: name of the row in the ledger.
        dirpath: folder of `carbon.json`; by default the trainer's `default_root_dir`.
        backend: "codecarbon" measures (extra `carbon`); "watts" takes power x hours; "auto" measures where
            codecarbon is installed.
        watts_per_device: for "watts". By default 400 W per GPU, the paper's (350 W for its 34B), and 65 W per CPU
            machine, however many processes share it.
        pue: power usage effectiveness of the data centre.
        kg_per_kwh: carbon intensity of its electricity.
    """

    def __init__(
        self,
        stage: str = "train",
        dirpath: str | None = None,
        backend: Literal["auto", "codecarbon", "watts"] = "auto",
        watts_per_device: float | None = None,
        pue: float = PUE,
        kg_per_kwh: float = KG_PER_KWH,
    ) -> None:
        super().__init__()
        if backend not in get_args(Backend):
            raise ValueError(f"backend {backend!r}: choose one of {', '.join(get_args(Backend))}")
        for name, value, least in (("pue", pue, 1.0), ("kg_per_kwh", kg_per_kwh, 0.0)):
            if not least <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be {least:g} or more")
        if watts_per_device is not None and not 0 < watts_per_device < math.inf:
            raise ValueError(f"watts_per_device is {watts_per_device}; it must be above 0, or None")
        self.stage = stage
        self.dirpath = dirpath
        self.backend: Backend = backend
        self.watts_per_device = watts_per_device
        self.pue = pue
        self.kg_per_kwh = kg_per_kwh
        self._sessions: dict[str, Session] = {}
        self._running: _Running | None = None
        self._warned = False

    @property
    def state_key(self) -> str:
        """Two stages may be measured in one Trainer."""
        return self._generate_state_key(stage=self.stage)

    @property
    def totals(self) -> dict[str, Any]:
        """What the ledger says of this stage so far: hours, wall_hours, kwh, co2e_kg, source."""
        return totals(self._sessions.values(), self.pue, self.kg_per_kwh)

    @contextmanager
    def measure(self, stage: str | None = None) -> Iterator[CarbonFootprint]:
        """Measure a block of code that no Trainer runs: `with CarbonFootprint(...).measure("sampling"):`.

        Args:
            stage: name of the ledger's row; by default the callback's own.
        """
        part = CarbonFootprint(
            stage or self.stage, self.dirpath, self.backend, self.watts_per_device, self.pue, self.kg_per_kwh
        )
        gpus = torch.cuda.device_count()
        part._begin(Path(self.dirpath or "."), gpus or 1, GPU_WATTS if gpus else CPU_WATTS)
        try:
            yield part
        finally:
            part._end()

    # Hooks ------------------------------------------------------------------------------------------------------

    @_never_fails
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
        # The processes of a CPU run share their machine: its power is counted once per node, not once per rank.
        devices = trainer.num_nodes if on_cpu else trainer.world_size
        folder = Path(self.dirpath or trainer.default_root_dir)
        self._begin(folder, devices, CPU_WATTS if on_cpu else GPU_WATTS, trainer)

    @_never_fails
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        self._update(trainer)
        now = self.totals
        figures = {f"carbon/{key}": now[key] for key in ("hours", "kwh", "co2e_kg") if now[key] is not None}
        pl_module.log_dict(figures, on_step=True, on_epoch=False, batch_size=1, rank_zero_only=True)

    # Each rank reaches the ends of the loops, so there the nodes can sum what they measured.
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def state_dict(self) -> dict[str, Any]:
        self._update()
        return {"sessions": {key: session._asdict() for key, session in self._sessions.items()}}

    @_never_fails
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        restored = {key: Session(**row) for key, row in state_dict["sessions"].items()}
        self._sessions = merge(self._sessions, restored)

    # The session of this process --------------------------------------------------------------------------------

    def _begin(self, folder: Path, devices: int, watts: float, trainer: L.Trainer | None = None) -> None:
        """Start a session; what the ledger already knows of this stage is taken over."""
        self._end()
        path = folder / "carbon.json" if trainer is None or trainer.is_global_zero else None
        # codecarbon measures the whole machine: one process of each node asks it
        self._running = _Running(devices, path, measures=trainer is None or trainer.local_rank == 0)
        if path is not None:
            self._take_over(path)
        if self._running.measures:
            self._open(devices * (self.watts_per_device or watts))

    @_never_fails
    def _take_over(self, path: Path) -> None:
        self._sessions = merge(self._sessions, read_sessions(path, self.stage))

    @_never_fails
    def _open(self, watts: float) -> None:
        assert self._running is not None
        self._running.meter = open_meter(self.backend, watts)

    @_never_fails
    def _update(self, trainer: L.Trainer | None = None, *, closing: bool = False) -> None:
        """Bring the running session up to date and write the ledger.

        With a trainer the other nodes' energy is asked for too, which every rank must take part in: hooks that not
        every rank reaches (an exception, a checkpoint's state) go by the last answer.
        """
        if self._running is None:
            return
        running, hours = self._running, self._running.hours()
        kwh = self._ask(running, hours, closing)
        if trainer is not None and trainer.num_nodes > 1:
            running.other_nodes = _energy_of_other_nodes(running, kwh, trainer)
        others = running.other_nodes
        total = None if kwh is None or others is None else kwh + others
        source = running.meter.source if running.meter else "unknown"
        self._sessions[running.id] = Session(hours * 3600, hours * 3600 * running.devices, total, source)
        if running.path is not None:
            write_sessions(running.path, self.stage, self._sessions, self.pue, self.kg_per_kwh)

    def _ask(self, running: _Running, hours: float, closing: bool) -> float | None:
        """kWh that this process has to answer for; None where its meter cannot tell."""
        if not running.measures:
            return 0.0
        if running.meter is None:
            return None
        try:
            kwh = running.meter.close(hours) if closing else running.meter.read(hours)
        except Exception as error:
            self._warn(f"{running.meter.source}: {type(error).__name__}: {error}")
            return None
        if kwh is None or not 0 <= kwh < math.inf:
            self._warn(f"{running.meter.source} gave {kwh}, which is no energy")
            return None
        return kwh

    def _end(self) -> None:
        self._update(closing=True)
        self._running = None

    def _warn(self, reason: str) -> None:
        """One warning in all; the training goes on."""
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"CarbonFootprint({self.stage!r}): the energy or its ledger may be incomplete: {reason}"
            )
