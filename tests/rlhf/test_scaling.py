"""The scaling study with tiny models: which data each cell saw, what it wrote, and what a second run does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import lightning as L
import pytest
import torch

from llama2_pl.cli import main
from llama2_pl.data.readers.common import write_jsonl
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.report.build import build_report
from llama2_pl.rlhf import scaling
from llama2_pl.text.tokenizer import train_tokenizer

WORDS = "cat sat on mat and then old dog ran to that big red house by sea".split()
VOCABULARY = 290
HELD_OUT = {0: 10, 1: 6, 3: 4}  # pairs by rating


def pair(number: int, **labels) -> dict:
    """Good answers are of the first eight words, bad ones of the others."""
    rng = random.Random(number)
    good, bad = (" ".join(rng.sample(words, 3)) for words in (WORDS[:8], WORDS[8:]))
    return {"prompt": f"{number}?", "chosen": good, "rejected": bad, **labels}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    train_tokenizer(
        [" ".join(WORDS), "0 1 2 3 4 5 6 7 8 9 ?"] * 20, folder, vocab_size=VOCABULARY, num_threads=1
    )
    write_jsonl(folder / "train.jsonl", [pair(n, batch=1 + n // 40, rating=0) for n in range(120)])
    ratings = [rating for rating, count in HELD_OUT.items() for _ in range(count)]
    write_jsonl(folder / "val.jsonl", [pair(200 + n, rating=rating) for n, rating in enumerate(ratings)])
    for name, dim in {"small": 16, "large": 32}.items():
        torch.manual_seed(0)
        config = ModelConfig(
            dim=dim, n_layers=1, n_heads=2, vocab_size=VOCABULARY, multiple_of=16, max_seq_len=64
        )
        weights = {f"model.{key}": value for key, value in LanguageModel(config).state_dict().items()}
        content = {"state_dict": weights, "hyper_parameters": {"backbone": config.to_dict()}}
        torch.save(content, folder / f"{name}.ckpt")
    return folder


def study(files: Path, out: Path, **changes: object) -> dict:
    """Run the command; what it wrote."""
    options = {
        "starts": {name: str(files / f"{name}.ckpt") for name in ("small", "large")},
        "tokenizer": str(files / "tokenizer.model"),
        "helpful": [str(files / "train.jsonl")],
        "val": [str(files / "val.jsonl")],
        "out": str(out),
        "batches": [1, 3],
        "batch_size": 8,
        "max_len": 64,
        "lr": {"small": 0.02, "large": 0.02},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
        **changes,
    }
    config = out / "study.yaml"
    out.mkdir(exist_ok=True)
    config.write_text(json.dumps(options))  # JSON is YAML
    main(["reward-scaling", "--config", str(config)])
    return json.loads((out / "scaling.json").read_text())


@pytest.fixture(scope="module")
def done(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("out")
    return out, study(files, out)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each training saw, in order."""
    seen: list[int] = []
    fit = L.Trainer.fit

    def remember(self, model, datamodule) -> None:
        fit(self, model, datamodule=datamodule)
        seen.append(sum(datamodule.mix_report()["pairs"].values()))

    monkeypatch.setattr(L.Trainer, "fit", remember)
    return seen


def test_each_size_is_trained_on_all_batches_up_to_each_number(done: tuple[Path, dict]) -> None:
    cells = done[1]["cells"]
    assert [(cell["size"], cell["batch"], cell["pairs"]) for cell in cells] == [
        ("small", 1, 40),
        ("small", 3, 120),
        ("large", 1, 40),
        ("large", 3, 120),
    ]
    assert cells[0]["parameters"] < cells[2]["parameters"]


def test_accuracy_has_an_interval_over_the_held_out_pairs(done: tuple[Path, dict]) -> None:
    for cell in done[1]["cells"]:
        accuracy = cell["accuracy"]
        counts = {name: row["count"] for name, row in accuracy.items()}
        assert counts == {
            "overall": 20,
            "significantly better": 10,
            "better": 6,
            "negligibly better": 4,
        }
        right = sum(row["mean"] * row["count"] for name, row in accuracy.items() if name != "overall")
        assert accuracy["overall"]["mean"] == pytest.approx(right / 20)
        assert all(row["low"] <= row["mean"] <= row["high"] + 1e-9 for row in accuracy.values())
    # the words are learned from 120 pairs; Wilson's interval of 20 of 20 begins at 20 / (20 + 1.96^2)
    last = done[1]["cells"][-1]["accuracy"]["overall"]
    assert (last["mean"], last["low"]) == (1.0, pytest.approx(20 / (20 + 1.959964**2), abs=1e-6))


def test_a_second_run_trains_only_what_is_missing_or_changed(
    files: Path, done: tuple[Path, dict], trained: list[int]
) -> None:
    out, first = done
    assert study(files, out) == first and trained == []
    (out / "scaling/small-3.json").unlink()  # as after a kill
    assert study(files, out) == first and trained == [120]
    (again,) = study(files, out, starts={"small": str(files / "small.ckpt")}, batches=[1], lr=None)["cells"]
    assert trained == [120, 40] and again["accuracy"] != first["cells"][0]["accuracy"]
    study(files, out)
    assert trained == [120, 40, 40]


def test_the_auxiliary_loss_is_the_safety_models_alone(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    accuracy = {"overall": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    trained = lambda cell: weights.append(cell.model["safety_loss_weight"]) or {"accuracy": accuracy}  # noqa: E731
    monkeypatch.setattr(scaling, "_train", trained)
    one = {"starts": {"small": str(files / "small.ckpt")}, "lr": None, "batches": [1]}
    for options in ({}, {"kind": "safety"}, {"kind": "safety", "safety_loss_weight": 0.0}):
        study(files, tmp_path, **one, **options)
    assert weights == [0.0, 1.0, 0.0]


def test_the_report_draws_the_study(files: Path, done: tuple[Path, dict]) -> None:
    text = Path(build_report(str(done[0]))).read_text(encoding="utf-8")
    assert "as Fig. 6" in text and text.count("<svg") == 2 and ">large<" in text


def test_batches_are_those_of_the_files_and_must_be_there(
    files: Path, tmp_path: Path, trained: list[int]
) -> None:
    small = {"small": str(files / "small.ckpt")}
    study(files, tmp_path, starts=small, lr=None, batches=None)
    assert trained == [40, 80, 120]
    write_jsonl(tmp_path / "undated.jsonl", [pair(n) for n in range(9)])
    with pytest.raises(ValueError, match="no pair of the training files has a 'batch'"):
        study(files, tmp_path, starts=small, lr=None, batches=None, helpful=[str(tmp_path / "undated.jsonl")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": {}}, "starts is empty"),
        ({"starts": {"../x": "a.ckpt"}}, "'../x' becomes part of a file's name"),
        ({"lr": {"huge": 1.0}}, "lr names 'huge', which is no size; starts has small, large"),
    ],
)
def test_wrong_options_are_refused(files: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(files, tmp_path, **changes)
