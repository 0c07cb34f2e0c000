"""`make bench`: what we measure ourselves against, each side in a warm process of its own, taken in turn.

`python -m benchmarks.run --only train` runs one piece; each has its file in benchmarks/results, in the folder of the
processor or GPU that it was measured on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import (
    ROOT,
    bandwidth,
    bytes_per_token,
    cores,
    environment,
    flops_per_token,
    folder_name,
    matrix_weights,
    peak_flops,
    processor,
)
from benchmarks.pieces import PIECES, Case, Side, tiny
from llama2_pl.model.processor import has_bf16_units

RESULTS = Path(__file__).parent / "results"
PEERS = Path(__file__).parent / ".peers"


class Process:
    """A side under way; see benchmarks/sides/protocol.py."""

    def __init__(self, side: Side, case: Case, peers: Path) -> None:
        self.side, self.log = side, tempfile.TemporaryFile("w+")  # noqa: SIM115
        python = sys.executable if side.peer is None else str(peers / side.peer / "bin" / "python")
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.sides.{side.program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
        )
        order = {"case": case.case, "options": {**case.options, **side.options}}
        self.tell({**order, "threads": cores(), "warm_up": case.warm_up})

    def tell(self, words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Its next answer; RuntimeError with the end of its log where it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(
                f"{self.side.name} ended with {self.process.wait()}:\n{self.log.read()[-3000:]}"
            )
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def started(case: Case, sides: list[Side], peers: Path) -> Iterator[list[Process]]:
    processes = [Process(side, case, peers) for side in sides]
    try:
        yield processes
    finally:
        for process in processes:
            process.end()


def measure(case: Case, peers: Path = PEERS) -> dict[str, Any]:
    """Every repetition of every side, taken in turn so that a noisy moment hits all, and what comes of them."""
    versions: dict[str, dict[str, str]] = {}
    raw: dict[str, list[dict[str, float]]] = {side.name: [] for side in case.sides}
    for together in [[side] for side in case.sides] if case.alone else [case.sides]:
        with started(case, together, peers) as processes:
            for process in processes:
                versions[process.side.name] = process.hear()["ready"]
            for _ in range(case.rounds):
                for process in processes:
                    process.tell("go")
                    raw[process.side.name].append(process.hear())
    return {**summary(case, raw), "raw": raw, "versions": versions}


def summary(case: Case, raw: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of the sides, and how many times better the first is than each other one."""

    def value(run: dict[str, float]) -> float:
        return run["units"] / run["seconds"] if case.measure == "rate" else run[case.measure]

    medians = {name: statistics.median(value(run) for run in runs) for name, runs in raw.items()}
    first, *others = medians
    ratios = {
        name: medians[first] / medians[name] if case.measure == "rate" else medians[name] / medians[first]
        for name in others
    }
    return {"case": case.title, "unit": case.unit, "medians": medians, "times_better": ratios}


def limits(cases: list[Case]) -> dict[str, float]:
    """What the device can do at most, measured: operations a second of a matrix product, bytes a second of a copy."""
    device = cases[0].options.get("device", "cpu")
    types = [torch.float32] if device == "cpu" else []
    types += [torch.bfloat16] if has_bf16_units(device) else []
    found = {f"{str(dtype).removeprefix('torch.')}_flops": peak_flops(device, dtype) for dtype in types}
    if any(case.limit == "bandwidth" for case in cases):
        found["bandwidth"] = bandwidth(device)
    torch.cuda.empty_cache()  # the sides need the room
    return found


def against_limit(case: Case, rates: dict[str, float], limits: dict[str, float]) -> dict[str, Any]:
    """Which part of the limit each side's tokens a second are, and what it is reckoned from."""
    assert case.config is not None
    options = case.options
    if case.limit == "bandwidth":
        needed = bytes_per_token(case.config, options["rows"], options["length"] + options["new"] // 2)
        share = {side: rate * needed / limits["bandwidth"] for side, rate in rates.items()}
        return {"bytes_per_token": needed, "share_of_bandwidth": share}
    needed = flops_per_token(case.config, options["length"])
    parameters = matrix_weights(case.config) + case.config.dim * case.config.vocab_size
    peak = "fp32" if options["precision"] == "fp32" else "bf16"
    limit = limits[{"fp32": "float32_flops", "bf16": "bfloat16_flops"}[peak]]
    return {
        "flops_per_token": needed,
        "peak": peak,
        "share_of_peak": {side: rate * needed / limit for side, rate in rates.items()},
        "gflops_by_6n": {side: 6 * parameters * rate / 1e9 for side, rate in rates.items()},
    }


def run_piece(name: str, cases: list[Case], peers: Path, folder: Path) -> Path:
    """Measure a piece and write its file."""
    found: dict[str, Any] = {"piece": name, "environment": environment(), "limits": limits(cases)}
    found["figures"] = []
    for case in cases:
        figure = measure(case, peers)
        if case.config is not None:
            # once more: what was measured at a bad moment is no limit
            found["limits"] = {key: max(value, found["limits"][key]) for key, value in limits(cases).items()}
            figure |= against_limit(case, figure["medians"], found["limits"])
        found["figures"].append(figure)
        print(f"{case.title}: {told(figure)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def told(figure: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {value:,.4g}" for name, value in figure["medians"].items())
    ratios = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in figure["times_better"].items())
    return f"{values} {figure['unit']}" + (f"; {ratios}" if ratios else "")


def missing_peers(cases: list[Case], peers: Path) -> list[str]:
    wanted = {side.peer for case in cases for side in case.sides if side.peer is not None}
    return sorted(peer for peer in wanted if not (peers / peer / "bin" / "python").exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PIECES), default=list(PIECES))
    parser.add_argument(
        "--tiny", type=Path, metavar="FOLDER", help="at a size that shows only that it runs; results go there"
    )
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of the peers' environments")
    options = parser.parse_args()
    for name in options.only:
        cases = [tiny(case) for case in PIECES[name]()] if options.tiny else PIECES[name]()
        if cases[0].options.get("device") == "cuda" and not torch.cuda.is_available():
            print(f"{name}: skipped, there is no CUDA device", flush=True)
            continue
        if missing := missing_peers(cases, options.peers):
            raise SystemExit(
                f"no environment for {', '.join(missing)} in {options.peers}: run make bench-peers"
            )
        device = torch.cuda.get_device_name() if cases[0].options.get("device") == "cuda" else processor()
        folder = options.tiny or RESULTS / folder_name(device)
        print(run_piece(name, cases, options.peers, folder), flush=True)


if __name__ == "__main__":
    main()
