"""Runs stages in order, with what is done skipped and what no longer matches made again or refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llama2_pl.files import Busy, lock, write_json, write_text
from llama2_pl.rlhf.ledger import spent
from llama2_pl.rlhf.stages import Stage, Texts, changes, clear, manifest_path, record_of, started_path


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """Whatever removes, writes or runs anything in a run's folder does so inside; ValueError where it is held."""
    folder = run.resolve()  # "." has no name
    try:
        held = lock(folder.with_name(f".{folder.name}.lock"))
    except Busy as holder:
        raise ValueError(
            f"{run}: {holder} runs its stages; wait for it, stop it, or give another folder"
        ) from None
    try:
        yield
    finally:
        if held is not None:
            held.release()


def run_stages(
    run: str | Path,
    stages: Sequence[Stage],
    execute: Callable[[list[str]], None],
    say: Callable[[str], None] = print,
    refuse: bool = False,
    take_over: Callable[[Stage], object] | None = None,
    configs: Texts | None = None,
) -> dict[str, float]:
    """Run the stages in order, skipping what is done; seconds by stage (0 for a skipped one). Call it inside `holding`.

    Args:
        run: the run's folder; manifests go below it.
        execute: runs one command's arguments, `llama2_pl.cli.main` in use.
        say: where progress lines go.
        refuse: raise where a stage was done, or begun, with something else; False: clear it and make it again.
        take_over: is asked before a stage is run, and may put what another run made in its place.
        configs: what the stages read of the run's own; written before the first of them is run, and not before one is
            refused.
    """
    run, coming = Path(run), configs or {}
    seconds, pace = {}, None
    left = sum(stage.share for stage in stages)
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        found, taken = changes(run, stage, coming), None
        done = manifest_path(run, stage).exists() and not (found or stage.always)
        if found:
            _settle(run, stage, found, refuse)
            say(f"{title}: {'; '.join(found)}; made again from its start")
        if not done:
            write_texts(coming)
            coming = {}
            taken = take_over(stage) if take_over and not stage.always else None
        if done or taken:
            say(f"{title}: {f'taken over from {taken}' if taken else 'done before, skipped'}")
            seconds[stage.name] = 0.0
            left -= stage.share
            continue
        eta = f" · about {_minutes(left * pace)} left" if pace else ""
        say(f"{title}: {stage.about}{eta}\n    $ {stage.shell}")
        seconds[stage.name] = run_stage(run, stage, execute)
        left -= stage.share
        ran = [s for s in stages[:number] if seconds[s.name] > 0]
        pace = sum(seconds[s.name] for s in ran) / max(sum(s.share for s in ran), 1e-9)
        say(f"    {stage.name} took {seconds[stage.name]:.0f} s")
    return seconds


def write_texts(texts: Texts) -> None:
    """Write filled-in configs; unchanged files keep their time."""
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def make_again(run: Path, stages: Sequence[Stage], again: Sequence[Stage], configs: Texts) -> None:
    """Clear stages that are to be made again, and say which, unless `run_stages` would refuse one before them.

    ValueError then; of those after a stage that is still to be run it is not known yet. One behind the first that is
    made again is refused when it is reached: several that have changed are made again one after the other.
    """
    if not again:
        return
    for stage in stages[: stages.index(again[0])]:
        if found := changes(run, stage, configs):
            _settle(run, stage, found, refuse=True)
        elif not manifest_path(run, stage).exists():
            break
    print(f"made again: {', '.join(stage.name for stage in again)}")
    for stage in again:
        clear(run, stage)


def _settle(run: Path, stage: Stage, found: list[str], refuse: bool) -> None:
    """What no longer matches is refused, or cleared: resumed, its old checkpoint would pass for the new one."""
    if not refuse:
        clear(run, stage)
    elif not stage.derived:
        raise ValueError(
            f"stage {stage.name} in {run} no longer matches: {'; '.join(found)}. Put it back, or make the stage and "
            f"all that depends on it again with --redo {stage.name}, or give a fresh --out folder"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def run_stage(run: Path, stage: Stage, execute: Callable[[list[str]], None]) -> float:
    """Run one stage, check its outputs, write its manifest; the seconds it took."""
    missing = [name for name in stage.inputs if not Path(name).exists()]
    if missing:
        raise ValueError(
            f"stage {stage.name}: input {missing[0]} is missing; run the stage that makes it first"
        )
    begun = record_of(stage, inputs=stage.inputs)
    begun["attempts"] = 1 + _attempts(started_path(run, stage))
    manifest_path(run, stage).unlink(missing_ok=True)
    write_json(started_path(run, stage), begun)
    started = time.monotonic()
    execute(list(stage.command))
    seconds = time.monotonic() - started
    made = record_of(stage, outputs=stage.outputs)
    absent = [name for name, digest in made["outputs"].items() if not digest]
    if absent:
        raise ValueError(
            f"stage {stage.name} ended without writing {absent[0]}; its command was: {stage.shell}"
        )
    both = {key: begun[key] | made[key] for key in ("files", "states")}
    manifest = {**begun, **made, **both, "seconds": seconds}
    write_json(manifest_path(run, stage), manifest | spent(run / stage.name))
    started_path(run, stage).unlink()
    return seconds


def _attempts(started: Path) -> int:
    """How often the unfinished stage was begun before."""
    return json.loads(started.read_text(encoding="utf-8")).get("attempts", 1) if started.exists() else 0
