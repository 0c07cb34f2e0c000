"""Runs that are killed at random moments and started again until they are done, against one that was left alone."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chaos import processes, tiny
from benchmarks.chaos.compare import difference, progress

PATIENCE = 60.0
"""Seconds in which a process must have ended after SIGTERM, and a run that nobody kills."""
KILLS_PER_RUN = 4
EARLY = 0.2
"""Share of kills drawn from the whole run; the rest from the time after its setup, where there is more to break."""


class Reference(NamedTuple):
    """A run that was left alone.

    Attributes:
        folder: where it ran; runs/ in it holds what the stages before made, too.
        ready: seconds after which its setup was done.
        seconds: of the whole.
    """

    folder: Path
    ready: float
    seconds: float


class Kill(NamedTuple):
    signal: str
    ranks: list[int]
    moment: str
    """"before the first checkpoint", "inside a save" or "training"."""
    statuses: list[int]


class Outcome(NamedTuple):
    kills: list[Kill]
    starts: int
    problem: str
    """Empty where the run ended as the one left alone did."""
    kind: str = ""
    """"lost" or "different"."""


class Lost(Exception):
    """A run that cannot go on, or hangs."""


def environments(ranks: int) -> list[dict[str, str]]:
    """What a launcher such as torchrun tells each of its processes."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    return [{**shared, "LOCAL_RANK": str(rank)} for rank in range(ranks)]


class Processes:
    """The processes of one start of a stage."""

    def __init__(self, stage: tiny.Stage, words: list[str], folder: Path) -> None:
        self.children = [
            processes.command(words, folder, folder / f"log-{rank}", environment)
            for rank, environment in enumerate(environments(stage.ranks))
        ]
        self.statuses: list[int | None] = [None] * stage.ranks

    def look(self) -> list[int | None]:
        """The exit status of each rank, None for one that runs."""
        for rank, child in enumerate(self.children):
            if self.statuses[rank] is None and (status := processes.ended(child)) is not None:
                self.statuses[rank] = status
        return self.statuses

    def running(self) -> bool:
        return None in self.look()

    def wait(self, seconds: float) -> bool:
        """Whether all ended within this time."""
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.002)
        return not self.running()

    def send(self, number: signal.Signals, ranks: list[int]) -> None:
        for rank in ranks:
            if self.statuses[rank] is None:
                processes.send(self.children[rank], number)

    def clear(self) -> list[int]:
        """Kill what is left, after it has said where it stands; the statuses."""
        if self.running():
            self.send(signal.SIGUSR2, list(range(len(self.children))))
            time.sleep(0.1)
        for child in self.children:
            processes.clear(child)
        self.wait(PATIENCE)
        return [status if status is not None else 1 for status in self.statuses]


def prepare(reference: Path, folder: Path, stage: tiny.Stage) -> None:
    """A folder in which the stage has all that it reads and nothing that it writes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "runs").mkdir(parents=True)
    for path in reference.glob("*.yaml"):
        shutil.copy2(path, folder)
    shutil.copytree(reference / "runs/data", folder / "runs/data")
    for path in (reference / "runs").iterdir():
        if path.name != "data" and f"runs/{path.name}" != stage.out:
            (folder / "runs" / path.name).symlink_to(path)


def left_alone(stage: tiny.Stage, folder: Path) -> Reference:
    """Run a stage without a kill; RuntimeError where it fails."""
    started, clock = time.time(), time.monotonic()
    run = Processes(stage, stage.words, folder)
    done = run.wait(PATIENCE)
    seconds = time.monotonic() - clock
    statuses = run.clear()
    if not done or any(statuses):
        raise RuntimeError(f"{stage.name}: the run left alone ended with {statuses}, see {folder}/log-0")
    saved = min((path.stat().st_mtime for path in (folder / stage.out).glob("config-*.yaml")), default=0.0)
    return Reference(folder, max(0.0, saved - started), seconds)


def attempt(stage: tiny.Stage, reference: Reference, folder: Path, chance: random.Random) -> Outcome:
    """Kill a run up to KILLS_PER_RUN times, let it end, and compare."""
    prepare(reference.folder, folder, stage)
    out, kills, starts = folder / stage.out, [], 0
    try:
        reached = -1
        while True:
            words = stage.words + (stage.again if starts else [])
            starts += 1
            kill = _start(stage, words, folder, reference, chance if len(kills) < KILLS_PER_RUN else None)
            if kill is None:
                break
            kills.append(kill)
            reached = _not_behind(out, reached)
            if not any(kill.statuses) and (text := _compared(stage, reference, folder)):
                raise Lost(f"it ended with 0 on {kill.signal} and was not done: {text}")
    except Lost as lost:
        return Outcome(kills, starts, str(lost), "lost")
    text = _compared(stage, reference, folder)
    return Outcome(kills, starts, text, "different" if text else "")


def _compared(stage: tiny.Stage, reference: Reference, folder: Path) -> str:
    """In a child, for reading starts threads and later forks must not find any."""
    expected, found = reference.folder / stage.out, folder / stage.out
    return processes.ask(lambda: difference(expected, found), folder, folder / "log-compare")


def _not_behind(out: Path, reached: int) -> int:
    """Steps that are safe on disk now; Lost where they are fewer than before the kill."""
    try:
        now = progress(out)
    except Exception as error:
        raise Lost(f"no sound checkpoint after a kill: {error}") from error
    if now < reached:
        raise Lost(f"the checkpoint held {reached} steps and after a kill holds {now}")
    return now


def _start(
    stage: tiny.Stage, words: list[str], folder: Path, reference: Reference, chance: random.Random | None
) -> Kill | None:
    """Start, and kill at a random moment; None where the run ended by itself."""
    if chance is not None:
        first = 0.0 if chance.random() < EARLY else reference.ready
        moment = chance.uniform(first, reference.seconds)
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        ranks = chance.choice([[0], [1], [0, 1]]) if stage.ranks == 2 else [0]
    run = Processes(stage, words, folder)
    try:
        if run.wait(PATIENCE if chance is None else moment):
            if any(run.statuses):
                raise Lost(f"start with {' '.join(words[-2:])} ended with {run.statuses}")
            return None
        if chance is None:
            raise Lost(f"it still runs after {PATIENCE:.0f} s")
        run.send(number, ranks)
        _settle(run, number)
    finally:
        statuses = run.clear()
    _check(number, ranks, statuses)
    return Kill(number.name, ranks, _moment(folder / stage.out), statuses)


def _settle(run: Processes, number: signal.Signals) -> None:
    """Wait as a launcher does: where a rank has died, the others are not waited for much longer."""
    end = time.monotonic() + PATIENCE
    while run.running() and time.monotonic() < end:
        if any(status is not None and status < 0 for status in run.statuses):
            run.wait(0.5)
            return
        time.sleep(0.002)
    if run.running():
        raise Lost(f"ranks still run {PATIENCE:.0f} s after {number.name}: {run.statuses}")


def _check(number: signal.Signals, ranks: list[int], statuses: list[int]) -> None:
    """SIGTERM ends with 143, or as the system ends a process that has no handler yet; or comes too late."""
    if number is signal.SIGTERM:
        bad = [rank for rank in ranks if statuses[rank] not in (143, -signal.SIGTERM, 0)]
        if bad:
            raise Lost(f"rank {bad[0]} ended with {statuses[bad[0]]} on SIGTERM")


def _moment(out: Path) -> str:
    if any(out.rglob(".*.tmp")) or any(out.glob(".*.saving")):
        return "inside a save"
    saved = any(out.glob("last.ckpt*")) or any(out.glob("batch-*"))
    return "training" if saved else "before the first checkpoint"


def as_row(outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts of one stage."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    moments = ("before the first checkpoint", "training", "inside a save")
    return {
        "runs": len(outcomes),
        "starts": sum(outcome.starts for outcome in outcomes),
        "kills": len(kills),
        **{name: sum(kill.signal == name for kill in kills) for name in ("SIGKILL", "SIGTERM")},
        **{moment: sum(kill.moment == moment for kill in kills) for moment in moments},
        "lost": sum(outcome.kind == "lost" for outcome in outcomes),
        "different": sum(outcome.kind == "different" for outcome in outcomes),
    }
