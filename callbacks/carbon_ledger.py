"""The ledger `carbon.json`: per stage, the sessions (process runs) that spent energy, and their sums."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llama2_pl.files import write_text


class Session(NamedTuple):
    """One process run.

    Attributes:
        wall_seconds: how long it ran.
        device_seconds: the same times the devices it had.
        kwh: energy of the devices, without PUE; None where it is not known.
        source: where that figure comes from.
    """

    wall_seconds: float
    device_seconds: float
    kwh: float | None
    source: str


Sessions = Mapping[str, Session]


def merge(first: Sessions, second: Sessions) -> dict[str, Session]:
    """All sessions of both, by id; of two states of one session, the later."""
    merged = dict(first)
    for key, session in second.items():
        if key not in merged or session.wall_seconds > merged[key].wall_seconds:
            merged[key] = session
    return merged


def totals(sessions: Iterable[Session], pue: float, kg_per_kwh: float) -> dict[str, Any]:
    """Hours, kWh and kilograms of CO2e of some sessions; one session of unknown energy makes the sum unknown."""
    rows = list(sessions)
    known = [session.kwh for session in rows if session.kwh is not None]
    kwh = sum(known) if rows and len(known) == len(rows) else None
    return {
        "hours": sum(session.device_seconds for session in rows) / 3600,
        "wall_hours": sum(session.wall_seconds for session in rows) / 3600,
        "kwh": kwh,
        "co2e_kg": None if kwh is None else kwh * pue * kg_per_kwh,
        "source": ", ".join(sorted({session.source for session in rows})),
    }


def read_sessions(path: Path, stage: str) -> dict[str, Session]:
    """The sessions of a stage; none where there is no such file or stage."""
    row = _read(path)["stages"].get(stage, {"sessions": {}})
    return {key: Session(**session) for key, session in row["sessions"].items()}


def write_sessions(path: Path, stage: str, sessions: Sessions, pue: float, kg_per_kwh: float) -> None:
    """Put a stage's row into the ledger, whole or not at all; other stages stay as they are."""
    ledger = _read(path)
    ledger["stages"][stage] = {
        **totals(sessions.values(), pue, kg_per_kwh),
        "pue": pue,
        "kg_per_kwh": kg_per_kwh,
        "sessions": {key: session._asdict() for key, session in sessions.items()},
    }
    write_text(path, json.dumps(ledger, indent=1, allow_nan=False))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"stages": {}}
