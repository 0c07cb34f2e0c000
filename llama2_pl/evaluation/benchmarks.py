"""`llama2-pl benchmark`: the academic benchmarks of Tables 3 and 20 to 25, by lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.files import write_json
from llama2_pl.text.tokenizer import Tokenizer

INSTALL = "pip install 'llama2-pl[benchmarks]'"


def benchmark(
    checkpoint: str,
    tokenizer: str,
    tasks: dict[str, int | None],
    out: str,
    groups: dict[str, dict[str, str]] | None = None,
    tasks_folder: str | None = None,
    limit: int | None = None,
    max_tokens: int = 16384,
    max_batch: int = 64,
    max_new_tokens: int = 256,
    unsafe_code: bool = False,
    seed: int = 0,
    hardware: Hardware = HARDWARE,
) -> None:
    """Run tasks of lm-evaluation-harness on a checkpoint and write their numbers.

    Llama 2 §2.3, table 3; `configs/benchmarks/table3.yaml` has its tasks, shots and averages. The harness loads a
    task's data from the Hugging Face hub, or its cache with HF_DATASETS_OFFLINE=1; tasks of your own name local files.
    The paper does not disclose its prompts, so the numbers are near the paper's and not the same.

    Args:
        checkpoint: of a language model, ours or a Hugging Face folder.
        tokenizer: its tokenizer.model.
        tasks: number of examples in the prompt by the harness's name of a task or group; null: the task's own.
        out: the result file.
        groups: averages: name of each, and which metric of which tasks it is the mean of.
        tasks_folder: folder with task files of your own.
        limit: only the first documents of each task, to try it.
        max_tokens: about how many tokens are read together.
        max_batch: most texts that are continued together.
        max_new_tokens: longest continuation where a task does not say.
        unsafe_code: let tasks run the programs that the model writes (HumanEval, MBPP); only in a sandbox.
        seed: of the examples in the prompts and of tasks that sample.
        hardware: device and precision.
    """
    if not tasks:
        raise ValueError("tasks is empty: give {name: shots}, for example {hellaswag: 0, mmlu: 5}")
    lm_eval, manager, harness_model = _harness(tasks_folder)
    words = Tokenizer(tokenizer)
    model = hardware.load(checkpoint, words)
    adapter = harness_model(model, words, max_tokens, max_batch, max_new_tokens, seed)
    options = {"limit": limit, "random_seed": seed, "fewshot_random_seed": seed, "log_samples": False}
    options |= {"task_manager": manager, "confirm_run_unsafe_code": unsafe_code}
    results = _run(lm_eval, adapter, tasks, options)
    averages = {name: average(results, members) for name, members in (groups or {}).items()}
    about = {"checkpoint": checkpoint, "limit": limit, "seed": seed, "lm_eval": lm_eval.__version__}
    write_json(Path(out), {**about, "tasks": results, "groups": averages})
    _say(results, averages)
    print(f"results: {out}")


def _run(
    lm_eval: Any, adapter: Any, tasks: Mapping[str, int | None], options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What the harness says of each task, with its shots; tasks of as many shots together."""
    results: dict[str, dict[str, Any]] = {}
    for shots in sorted(set(tasks.values()), key=lambda count: -1 if count is None else count):
        names = [name for name, count in tasks.items() if count == shots]
        found = lm_eval.simple_evaluate(adapter, tasks=names, num_fewshot=shots, **options)
        for name, row in found["results"].items():
            results[name] = {**row, "shots": found["n-shot"].get(name, shots)}
    return results


def average(results: Mapping[str, Mapping[str, Any]], members: Mapping[str, str]) -> float | None:
    """Mean of one metric of each task, every task counted once; None where a task was not run."""
    values = []
    for task, metric in members.items():
        if task not in results:
            return None
        if metric not in results[task]:
            known = ", ".join(key for key, value in results[task].items() if isinstance(value, float))
            raise ValueError(f"groups: {task} has no metric {metric!r}; it has {known}")
        values.append(results[task][metric])
    return sum(values) / len(values)


def _harness(folder: str | None) -> tuple[Any, Any, Any]:
    try:
        import lm_eval  # type: ignore[import-not-found]
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(f"benchmarks need lm-evaluation-harness: {INSTALL} ({error})") from None
    from llama2_pl.evaluation.harness import HarnessModel

    return lm_eval, TaskManager(include_path=folder), HarnessModel


def _say(results: Mapping[str, Mapping[str, Any]], averages: Mapping[str, float | None]) -> None:
    for name, row in results.items():
        shown = [f"{key} {value:.4f}" for key, value in row.items() if isinstance(value, float)]
        print(f"{name}, {row['shots']} shots: {', '.join(shown)}")
    for name, value in averages.items():
        print(f"{name}: {'not all tasks were run' if value is None else f'{value:.4f}'}")
