"""lm-evaluation-harness on our checkpoint against its own transformers backend on the exported folder."""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from llama2_pl.checkpoints.ours import export_checkpoint, load_language_model
from llama2_pl.cli import main
from llama2_pl.evaluation.benchmarks import average
from llama2_pl.model.config import ModelConfig
from llama2_pl.modules import PretrainModule
from llama2_pl.text.tokenizer import Tokenizer, train_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"
HARNESS = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs the extra benchmarks (lm-evaluation-harness)"
)
UNTIL = {"until": ["e"], "max_gen_toks": 8, "do_sample": False}
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a random checkpoint, its exported folder, and three tasks with local files."""
    folder = tmp_path_factory.mktemp("benchmarks")
    lines = [f"The {thing} is {colour} ." for thing in ("sky", "sea", "sun") for colour in COLOURS]
    train_tokenizer(lines * 5, folder / "tokenizer", vocab_size=300)
    torch.manual_seed(0)
    backbone = ModelConfig(32, 2, 4, vocab_size=300, multiple_of=16, max_seq_len=64)
    module = PretrainModule(backbone)
    module.configure_model()
    with torch.no_grad():
        module.model.head.weight.normal_(std=0.5)
        module.model.head.weight[:259] = (
            0.0  # no control token and no byte is ever the likeliest: answers are text
        )
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "pytorch-lightning_version": "2.6.6",
            "global_step": 0,
        },
        folder / "model.ckpt",
    )
    export_checkpoint(
        str(folder / "model.ckpt"), str(folder / "hf"), str(folder / "tokenizer/tokenizer.model")
    )
    rows = [{"text": f"The {thing} is", "colour": n % 4} for n, thing in enumerate(("sky", "sea", "sun") * 3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    shared |= {"test_split": "test", "fewshot_split": "test", "doc_to_text": "{{text}}"}
    tasks = {
        "colours": {
            "output_type": "multiple_choice",
            "doc_to_choice": [*COLOURS],
            "doc_to_target": "colour",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "perplexity": {
            "output_type": "loglikelihood_rolling",
            "doc_to_target": "{{text}} " + "red and " * 30,
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "words": {
            "output_type": "generate_until",
            "doc_to_target": "{{text}}",
            "generation_kwargs": UNTIL,
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    (folder / "tasks").mkdir()
    for name, own in tasks.items():
        (folder / f"tasks/{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **own}))
    return folder


@HARNESS
@pytest.mark.timeout(120)
def test_our_numbers_are_those_of_the_harness_s_own_backend(trained: Path, monkeypatch) -> None:
    pytest.importorskip("accelerate", reason="the harness's transformers backend needs accelerate")
    import lm_eval  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    monkeypatch.setenv("HF_DATASETS_CACHE", str(trained / "cache"))
    monkeypatch.setattr(lm_eval, "simple_evaluate", partial(lm_eval.simple_evaluate, bootstrap_iters=100))
    paths = {"checkpoint": "model.ckpt", "tokenizer": "tokenizer/tokenizer.model"}
    paths |= {"out": "results.json", "tasks_folder": "tasks"}
    words = [f"--{key}={trained}/{path}" for key, path in paths.items()]
    tasks = '{"colours": 2, "perplexity": null, "words": 0}'
    groups = '{"both": {"colours": "acc,none", "words": "exact_match,none"}}'
    main(["benchmark", *words, f"--tasks={tasks}", f"--groups={groups}", "--hardware.device=cpu"])
    found = json.loads((trained / "results.json").read_text())
    options: dict = {"dtype": "float32", "max_length": 64, "device": "cpu", "batch_size": 4}
    # of whole texts it reads BOS twice with add_bos_token, and once without
    backends = {bos: HFLM(str(trained / "hf"), add_bos_token=bos, **options) for bos in (True, False)}
    manager = TaskManager(include_path=str(trained / "tasks"))
    for name, shots in (("colours", 2), ("perplexity", 0), ("words", 0)):
        options = {"task_manager": manager, "random_seed": 0, "fewshot_random_seed": 0}
        backend = backends[name != "perplexity"]
        theirs = lm_eval.simple_evaluate(backend, tasks=[name], num_fewshot=shots, **options)
        assert theirs is not None
        numbers = {key: value for key, value in theirs["results"][name].items() if isinstance(value, float)}
        assert numbers
        for key, value in numbers.items():
            assert found["tasks"][name][key] == pytest.approx(value, rel=1e-4), (name, key)
    assert [found["tasks"][name]["shots"] for name in ("colours", "words")] == [2, 0]
    mean = (found["tasks"]["colours"]["acc,none"] + found["tasks"]["words"]["exact_match,none"]) / 2
    assert found["groups"] == {"both": pytest.approx(mean)}


@HARNESS
def test_continuations_are_those_of_the_harness_s_own_backend(trained: Path) -> None:
    pytest.importorskip("accelerate", reason="the harness's transformers backend needs accelerate")
    from lm_eval.api.instance import Instance  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    from llama2_pl.evaluation.harness import HarnessModel

    words = Tokenizer(trained / "tokenizer/tokenizer.model")
    ours = HarnessModel(load_language_model(str(trained / "model.ckpt")).eval(), words, max_batch=2)
    theirs = HFLM(str(trained / "hf"), add_bos_token=True, dtype="float32", max_length=64, device="cpu")
    asked = ["The sky is", "The sea", "T", "The sun is red . The sun is white ."]
    kinds = [UNTIL, UNTIL, {**UNTIL, "until": []}, {**UNTIL, "until": ["is", " "], "max_gen_toks": 5}]
    requests = [
        Instance("generate_until", {}, (text, kind), n)
        for n, (text, kind) in enumerate(zip(asked, kinds, strict=True))
    ]
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests) and len(set(found)) > 1


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_the_harness_the_error_says_how_to_install_it(trained: Path) -> None:
    words = [f"--{key}={trained}/x" for key in ("checkpoint", "tokenizer", "out")]
    with pytest.raises(ValueError, match=r"pip install 'llama2-pl\[benchmarks\]'"):
        main(["benchmark", *words, '--tasks={"hellaswag": 0}'])


def test_an_average_counts_every_task_once_and_is_none_where_one_is_missing() -> None:
    results = {"a": {"acc,none": 0.5}, "b": {"acc,none": 1.0, "acc_norm,none": 0.0}}
    assert average(results, {"a": "acc,none", "b": "acc_norm,none"}) == 0.25
    assert average(results, {"a": "acc,none", "c": "acc,none"}) is None
    with pytest.raises(ValueError, match="a has no metric 'f1'; it has acc,none"):
        average(results, {"a": "f1"})


def test_the_averages_of_table_3_are_over_tasks_that_are_run() -> None:
    config = yaml.safe_load((CONFIGS / "benchmarks/table3.yaml").read_text())
    for members in config["groups"].values():
        assert set(members) <= set(config["tasks"])
    # Llama 2 §2.3: shots of MMLU, BBH, GSM8K, MATH, HumanEval, MBPP
    shots = [config["tasks"][name] for name in ("mmlu", "gsm8k", "minerva_math", "humaneval", "mbpp")]
    assert shots == [5, 8, 4, 0, 3]


@HARNESS
def test_the_harness_knows_the_tasks_and_metrics_of_table_3() -> None:
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    config = yaml.safe_load((CONFIGS / "benchmarks/table3.yaml").read_text())
    assert set(config["tasks"]) <= set(TaskManager().all_tasks)


def test_a_continuation_ends_before_the_first_stop_text() -> None:
    pytest.importorskip("lm_eval", reason="needs the extra benchmarks (lm-evaluation-harness)")
    from llama2_pl.evaluation.harness import cut

    assert cut("one two three", ["three", "two"]) == "one "
    assert cut("one", ["two", ""]) == "one" and cut("one", []) == "one"
