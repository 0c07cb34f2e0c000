"""Collecting preferences and evaluating a run, with tiny random models on the embedded data."""

from __future__ import annotations

import dataclasses
import gzip
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from llama2_pl.checkpoints.hardware import Hardware
from llama2_pl.data.default import write, write_default_data
from llama2_pl.data.default.oracle import judge, rating_of
from llama2_pl.data.readers import PromptRow, read_preferences
from llama2_pl.data.vocabulary import train_tokenizer_on_files
from llama2_pl.evaluation.answers import room_for_prompt
from llama2_pl.evaluation.judges import Judges, dialogue_ids
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.report.build import build_report
from llama2_pl.rlhf import collect
from llama2_pl.rlhf.collect import collect_preferences
from llama2_pl.rlhf.evaluate import evaluate, prompts_that_fit
from llama2_pl.rlhf.judges import pairs_that_fit, score_preferences
from llama2_pl.rlhf.pool import Entry, rescored
from llama2_pl.rlhf.versions import compare_versions
from llama2_pl.text.chat import Dialog, encode_prompt
from llama2_pl.text.tokenizer import Tokenizer

VOCABULARY = 512
CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=VOCABULARY, multiple_of=16, max_seq_len=512)


class Run(NamedTuple):
    """What is on disk before anything is collected or evaluated."""

    data: Path
    tokenizer: str
    one: str
    two: str
    helpfulness: str
    safety: str


def saved(path: Path, network: torch.nn.Module) -> str:
    """A checkpoint as our modules leave it."""
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"backbone": CONFIG.to_dict()}}, path)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "PACKAGE_SOURCES", {})
        write_default_data(str(folder / "data"), scale=0.02)
    train_tokenizer_on_files(
        [str(folder / "data/corpus/world.jsonl")], str(folder), vocab_size=VOCABULARY, num_threads=1
    )
    torch.manual_seed(0)
    return Run(
        folder / "data",
        str(folder / "tokenizer.model"),
        saved(folder / "one.ckpt", LanguageModel(CONFIG)),
        saved(folder / "two.ckpt", LanguageModel(CONFIG)),
        saved(folder / "helpfulness.ckpt", ScalarModel(CONFIG)),
        saved(folder / "safety.ckpt", ScalarModel(CONFIG)),
    )


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def collected(run: Run, out: Path, **options) -> Path:
    settings = {"limit": 20, "max_new_tokens": 6, "seed": 1, **options}
    prompts = str(run.data / "prompts/train.jsonl")
    collect_preferences([run.one, run.two], run.tokenizer, prompts, str(out), **settings)
    return out


SIDES = ("chosen", "rejected")
FILES = [f"{kind}_{split}" for kind in ("helpful", "safety") for split in ("train", "val")]


def test_collected_pairs_are_read_back_from_the_file_of_their_kind_and_split(
    run: Run, tmp_path: Path
) -> None:
    out = collected(run, tmp_path, val_share=0.3, rounds=2)
    asked = rows(run.data / "prompts/train.jsonl")[:20]
    place = {json.dumps(row["messages"]): number for number, row in enumerate(asked)}
    count = 0
    for name in FILES:
        kind, split = name.split("_")
        for pair, row in zip(
            read_preferences(out / f"{name}.jsonl"), rows(out / f"{name}.jsonl"), strict=True
        ):
            assert pair.is_safety == (kind == "safety") and pair.source == f"on_policy_{kind}"
            # the last 6 of 20 prompts are held out
            assert (place[json.dumps(row["prompt"])] >= 14) == (split == "val")
            assert pair.rating in range(4) and not (pair.rejected_safe and not pair.chosen_safe)
            count += 1
    assert 20 < count <= 40  # two rounds of 20; equal answers are left out


def test_a_pair_says_which_model_and_temperature_made_each_side_in_which_batch_for_whom(
    run: Run, tmp_path: Path
) -> None:
    out = collected(run, tmp_path, temperatures=[0.6, 1.2], batch=3, annotator="Ada")
    pairs = [pair for name in FILES for pair in read_preferences(out / f"{name}.jsonl")]
    sides = {
        frozenset(
            {(pair.chosen_model, pair.chosen_temperature), (pair.rejected_model, pair.rejected_temperature)}
        )
        for pair in pairs
    }
    # a pair has both models and both temperatures; within a batch either model has either
    assert sides == {
        frozenset({(run.one, 0.6), (run.two, 1.2)}),
        frozenset({(run.one, 1.2), (run.two, 0.6)}),
    }
    assert {(pair.batch, pair.annotator) for pair in pairs} == {(3, "Ada")}
    with pytest.raises(ValueError, match="batch is 0"):
        collected(run, tmp_path, batch=0)


def test_an_answer_is_of_the_model_and_temperature_that_it_names_and_neither_tells_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one batch a model had one temperature, and rows would have taught to know the model by it."""
    asked = [PromptRow(Dialog.of([("user", f"question {n}")])) for n in range(200)]
    monkeypatch.setattr(
        collect,
        "answer",
        lambda model, _, dialogs, *, temperature, **how: [
            f"{model} {temperature} {dialog.messages[0].content} [INST]" for dialog in dialogs
        ],
    )
    stub = SimpleNamespace(load=lambda path, tokenizer: path)
    how = (None, asked, stub, [0.6, 1.2], 8, range(1, 2), 0)
    ((one, two),) = collect._sample_sides(["a", "b"], *how)  # type: ignore[arg-type]
    for side, model in ((one, "a"), (two, "b")):
        for n, temperature in enumerate(side.temperatures):
            assert side.answers[n] == f"{model} {temperature} question {n} "
    pairs = list(zip(one.temperatures, two.temperatures, strict=True))
    assert set(pairs) == {(0.6, 1.2), (1.2, 0.6)}
    assert 70 < pairs.count((0.6, 1.2)) < 130  # four deviations of a fair coin around 100


def test_the_annotators_noise_is_an_argument(run: Run, tmp_path: Path) -> None:
    tasks = {json.dumps(row["messages"]): row["task"] for row in rows(run.data / "prompts/train.jsonl")}

    def rated(noise: float) -> list[tuple[float, int]]:
        """(utility of the chosen answer minus that of the rejected one, rating) of each pair."""
        out = collected(run, tmp_path / str(noise), rounds=2, noise=noise)
        pairs = [row for name in FILES for row in rows(out / f"{name}.jsonl")]
        seen = [[judge(tasks[json.dumps(p["prompt"])], p[side]).utility for side in SIDES] for p in pairs]
        return [(good - bad, p["rating"]) for (good, bad), p in zip(seen, pairs, strict=True)]

    assert all(gap >= 0 and rating == rating_of(gap) for gap, rating in rated(0.0))
    # of a normal error of 50 points 98 % is beyond the 1.5 of "significantly better"
    noisy = rated(50.0)
    assert sum(rating == 0 for _, rating in noisy) > 0.8 * len(noisy) and min(noisy)[0] < 0


def test_a_seed_gives_the_same_pairs_again_and_another_seed_others(run: Run, tmp_path: Path) -> None:
    one, two = collected(run, tmp_path / "1"), collected(run, tmp_path / "2")
    other = collected(run, tmp_path / "3", seed=2)
    texts = [[(folder / f"{name}.jsonl").read_bytes() for name in FILES] for folder in (one, two, other)]
    assert texts[0] == texts[1] != texts[2]


def test_prompts_without_a_task_are_refused_by_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}], "is_safety": false}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: no 'task'.*ratings from people"):
        collect_preferences([run.one], run.tokenizer, str(path), str(tmp_path))


def test_the_room_for_a_prompt_leaves_that_of_an_answer_and_of_the_two_tokens_that_end_it(run: Run) -> None:
    tokenizer, prompt = Tokenizer(run.tokenizer), Dialog.of([("user", "Where does Anna live?")])
    text = "Anna lives in Ardal."
    ended = len(dialogue_ids(prompt, text, tokenizer)) - len(encode_prompt(prompt, tokenizer))
    assert ended == len(tokenizer.encode(text)) + 2
    assert room_for_prompt(LanguageModel(CONFIG), max_new_tokens=6) == 512 - 6 - 2


@pytest.fixture(scope="module")
def evaluated(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose `ppo` is the same checkpoint as its `sft`."""
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate(
        {"sft": run.one, "rejection_sampling": run.two, "ppo": run.one},
        run.tokenizer,
        [str(run.data / "prompts/val.jsonl")],
        run.helpfulness,
        run.safety,
        str(folder / "results.json"),
        helpful_pairs=[str(run.data / "preferences/helpful_val.jsonl")],
        safety_pairs=[str(run.data / "preferences/safety_val.jsonl")],
        gatt_models={"without": run.one, "with": run.two},
        gatt_cases=str(run.data / "gatt/eval.jsonl"),
        gatt_turns=(1, 2),
        sampler="sft",
        temperatures=(0.7, 1.0, 1.3),
        samples=4,
        best_of_n_prompts=4,
        max_new_tokens=6,
        about="A tiny run.",
        noise=0.0,
    )
    return folder


def not_json(constant: str) -> None:
    raise AssertionError(f"results.json holds {constant}, which is no JSON")


@pytest.fixture(scope="module")
def results(evaluated: Path) -> dict:
    return json.loads((evaluated / "results.json").read_text(), parse_constant=not_json)


def test_counts_are_those_of_the_files(run: Run, results: dict) -> None:
    prompts = rows(run.data / "prompts/val.jsonl")
    assert {row["count"] for row in results["gold"].values()} == {len(prompts)}
    for name, file in (("helpfulness", "helpful_val"), ("safety", "safety_val")):
        pairs = rows(run.data / f"preferences/{file}.jsonl")
        assert results["reward_accuracy"][name]["pairs"] == len(pairs)
        by_rating = results["reward_accuracy"][name]["pairs_by_rating"]
        assert list(by_rating.values()) == [
            sum(row["rating"] == level for row in pairs) for level in range(4)
        ]
        for model in ("helpfulness", "safety"):
            by_source = results["reward_accuracy_by_source"][model]
            assert by_source[f"world_{file.split('_')[0]}"]["pairs"] == len(pairs)
        own = results["reward_accuracy_by_source"][name][f"world_{file.split('_')[0]}"]
        assert own["by_rating"] == results["reward_accuracy"][name]["by_rating"]
    unsafe = sum((not row["chosen_safe"]) + (not row["rejected_safe"]) for row in pairs)
    assert results["unsafe_recall"]["count"] == unsafe > 0
    cases = rows(run.data / "gatt/eval.jsonl")
    assert {row["count"] for by_turn in results["gatt"].values() for row in by_turn.values()} == {len(cases)}


def test_parameters_are_those_of_the_first_model(results: dict) -> None:
    # embedding and output 512 * 32 each; attention 4 * 32 * 32; SwiGLU 3 * 32 * 96 (2/3 * 128 = 85, up to a
    # multiple of 16); norms 3 * 32
    assert results["parameters"] == 2 * 512 * 32 + 4 * 32 * 32 + 3 * 32 * 96 + 3 * 32


def test_a_model_against_itself_ties_everywhere(results: dict) -> None:
    for table in ("win_rate", "judged_win_rate"):
        row = results[table]["ppo vs sft"]
        assert (row["mean"], row["ties"]) == (0.5, row["count"])
        assert list(results[table]) == [
            "rejection_sampling vs sft",
            "ppo vs sft",
            "ppo vs rejection_sampling",
        ]
        before, after = (
            results[table]["rejection_sampling vs sft"],
            results[table]["ppo vs rejection_sampling"],
        )
        assert (before["wins"], before["losses"]) == (after["losses"], after["wins"])  # ppo is sft here
    assert results["gold"]["ppo"] == results["gold"]["sft"]
    other = results["judged_win_rate"]["rejection_sampling vs sft"]
    assert other["ties"] < other["count"]


def test_the_gold_score_is_the_mean_over_its_kinds(run: Run, results: dict) -> None:
    safety = sum(row["is_safety"] for row in rows(run.data / "prompts/val.jsonl"))
    for name, row in results["gold"].items():
        kinds, count = results["gold_by_prompt"][name], row["count"]
        mean = (kinds["safety prompts"] * safety + kinds["helpfulness prompts"] * (count - safety)) / count
        assert row["mean"] == pytest.approx(mean)
        assert 0.0 <= row["low"] <= row["mean"] <= row["high"] <= 1.0


def test_the_best_reward_grows_with_the_number_of_samples(results: dict) -> None:
    curves = results["best_of_n"]["by_temperature"]
    assert list(curves) == ["0.7", "1", "1.3"]
    for curve in curves.values():
        assert curve["n"] == [1, 2, 4] and curve["max"] == sorted(curve["max"])
        assert curve["max"][0] == pytest.approx(curve["median"][0])  # of one sample
    assert results["best_of_n"]["gold"]["temperature"] == 1.0


def test_diversity_and_gaps_are_of_all_prompts_and_pairs(results: dict) -> None:
    for row in results["best_of_n"]["diversity"].values():
        assert row["self_bleu"]["count"] == row["distinct_2"]["count"] == 4  # best_of_n_prompts
        assert 0.0 <= row["self_bleu"]["mean"] <= 1.0
    raters = results["best_of_n"]["annotators"]
    # raters without noise say what the oracle says
    assert raters == {"two_annotators": 1.0, "annotator_and_oracle": 1.0, "pairs": raters["pairs"]}
    assert 0 < raters["pairs"] <= 4
    for row in results["reward_accuracy"].values():
        gaps = {name: gap["count"] for name, gap in row["gap_by_rating"].items()}
        assert gaps == {name: count for name, count in row["pairs_by_rating"].items() if count}


def test_every_model_answers_each_sample(results: dict) -> None:
    assert len(results["samples"]) == 8
    for sample in results["samples"]:
        assert set(sample["answers"]) == {"sft", "rejection_sampling", "ppo"}
        assert sample["answers"]["ppo"] == sample["answers"]["sft"]


def test_the_report_draws_every_section_that_the_results_allow(evaluated: Path) -> None:
    text = Path(build_report(str(evaluated))).read_text(encoding="utf-8")
    for title in (
        "Reward models",
        "Rejection sampling",
        "Judged by the reward models",
        "Gold score",
        "Ghost Attention",
        "What the models say",
    ):
        assert f"{title}</h2>" in text, title
    assert "A tiny run." in text and "PPO preferred over SFT" in text and "50.0%" in text
    # calibration x 2, gaps x 2, histogram, best of N, diversity, quality, judged x 3, gold x 2, Ghost Attention x 4
    assert text.count("<svg") == 17


def few(run: Run, folder: Path, asked: list[dict]) -> dict:
    """The results of two models on a few prompts, nothing else asked for."""
    path, out = folder / "prompts.jsonl", folder / "results.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    evaluate(
        models={"sft": run.one, "ppo": run.two},
        tokenizer=run.tokenizer,
        prompts=[str(path)],
        helpfulness_reward=run.helpfulness,
        safety_reward=run.safety,
        out=str(out),
        limit=6,
        max_new_tokens=4,
        best_of_n_prompts=0,
    )
    return json.loads(out.read_text(), parse_constant=not_json)


def test_prompts_without_a_task_are_judged_by_the_reward_models_alone(run: Run, tmp_path: Path) -> None:
    asked = [{**row, "task": None} for row in rows(run.data / "prompts/val.jsonl")]
    results = few(run, tmp_path, asked)
    assert {row["helpfulness"]["count"] for row in results["judged"].values()} == {6}
    assert set(results["judged"]) == {"sft", "ppo"}
    assert not {"gold", "win_rate", "best_of_n", "gatt", "unsafe_recall"} & set(results)
    assert "Judged by the reward models" in Path(build_report(str(tmp_path))).read_text(encoding="utf-8")


def test_a_kind_of_prompt_that_was_not_asked_has_no_mean(run: Run, tmp_path: Path) -> None:
    asked = [row for row in rows(run.data / "prompts/val.jsonl") if not row["is_safety"]]
    results = few(run, tmp_path, asked)
    assert [set(row) for row in results["gold_by_prompt"].values()] == [{"helpfulness prompts"}] * 2
    build_report(str(tmp_path))


def test_prompts_and_pairs_longer_than_the_context_are_left_out_and_counted(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{**row, "task": None} for row in rows(run.data / "prompts/val.jsonl")[:5]]
    asked.append({"messages": [{"role": "user", "content": "what then? " * 300}]})
    results = few(run, tmp_path, asked)
    assert {row["helpfulness"]["count"] for row in results["judged"].values()} == {5}
    assert "1 of 6 prompts are longer than" in capsys.readouterr().out
    pairs = list(read_preferences(run.data / "preferences/helpful_val.jsonl"))[:3]
    long = pairs[0]._replace(rejected="so it is " * 300)
    assert pairs_that_fit([*pairs, long], Tokenizer(run.tokenizer), 256) == pairs
    assert "1 of 4 pairs are longer than 256 tokens" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of 1 prompts has at most"):
        few(run, tmp_path, asked[-1:])


def judges_of(run: Run, context: int) -> Judges:
    torch.manual_seed(0)
    networks = [ScalarModel(dataclasses.replace(CONFIG, max_seq_len=context)).eval() for _ in range(2)]
    return Judges(*networks, Tokenizer(run.tokenizer))


def test_the_longest_answer_that_rejection_sampling_takes_enters_the_pool(run: Run) -> None:
    judges = judges_of(run, 64)
    prompt = Dialog.of([("user", "what then?")])
    asked = len(encode_prompt(prompt, judges.tokenizer))
    answer = judges.tokenizer.decode([judges.tokenizer.encode("so")[0]] * (64 - asked - 1))  # and its EOS: 64
    assert len(dialogue_ids(prompt, answer, judges.tokenizer)) > 64
    entry = Entry([{"role": "user", "content": "what then?"}], False, answer, 1, "sha", 1.2, {})
    (found,) = rescored([entry], judges, 2)
    assert set(found.scores["2"]) == {"score", "helpfulness", "safety"} and found.answer == answer


def test_a_reward_model_whose_scores_are_no_numbers_has_no_accuracy(run: Run) -> None:
    pairs = list(read_preferences(run.data / "preferences/helpful_val.jsonl"))[:2]
    judges = judges_of(run, 512)
    safety = judges.models()["safety"]
    torch.nn.init.constant_(safety.head.weight, float("nan"))
    with pytest.raises(ValueError, match=r"the reward model gives nan to an answer to .*4 of 4 answers"):
        score_preferences(safety, pairs, judges.tokenizer, [pair.source for pair in pairs])


def test_prompts_that_a_judge_cannot_read_with_an_answer_are_left_out(run: Run, tmp_path: Path) -> None:
    path, model = tmp_path / "prompts.jsonl.gz", LanguageModel(CONFIG)
    lines = [json.dumps({"prompt": "what then? " * n}) for n in (1, 20)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    kept = [len(prompts_that_fit([str(path)], None, judges_of(run, n), model, 8)) for n in (512, 64)]
    assert kept == [2, 1]


def test_versions_are_compared_with_one_policy_in_memory_at_a_time(run: Run, tmp_path: Path) -> None:
    loaded: list[weakref.ref] = []

    class OneAtATime(Hardware):
        def load(self, path: str, tokenizer: Tokenizer | None = None) -> LanguageModel:
            assert [model() for model in loaded if model() is not None] == []
            model = super().load(path, tokenizer)
            loaded.append(weakref.ref(model))
            return model

    policies = {"v0": run.one, "v1": run.two, "v2": run.one}
    out, prompts = tmp_path / "results.json", [str(run.data / "prompts/val.jsonl")]
    how = {"limit": 4, "max_new_tokens": 4, "answers_per_prompt": 2, "hardware": OneAtATime("cpu")}
    judges = (run.helpfulness, run.safety)
    compare_versions(str(tmp_path), policies, run.tokenizer, prompts, *judges, str(out), **how)  # type: ignore[arg-type]
    results = json.loads(out.read_text())
    assert len(loaded) == 4  # the first one's size is asked before
    assert results["judged"]["v0"] == results["judged"]["v2"] != results["judged"]["v1"]
    assert all(set(sample["answers"]) == set(policies) for sample in results["samples"])
