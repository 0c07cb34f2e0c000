"""Ghost Attention measured: with tiny models, and pooled over seeds by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama2_pl.checkpoints.hardware import Hardware
from llama2_pl.data.readers import write_jsonl
from llama2_pl.files import write_json
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.rlhf import gatt
from llama2_pl.text.tokenizer import train_tokenizer

CASES = [
    {"instruction": f"Always end with {word}.", "user_turns": ["a", "b", "c"], "check": f"ends_with:{word}"}
    for word in ("okay", "today", "over")
]


def test_every_model_is_measured_at_the_turns_and_looked_at_on_the_same_dialogues(
    tmp_path: Path, capsys
) -> None:
    words = train_tokenizer(
        ["always end with okay today over a b c\n" * 9], tmp_path, vocab_size=280, num_threads=1
    )
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=words.vocab_size, max_seq_len=384)
    models = {}
    for seed, name in enumerate(("without", "with")):
        torch.manual_seed(seed)
        weights = {f"model.{n}": t for n, t in LanguageModel(config).state_dict().items()}
        models[name] = str(tmp_path / f"{name}.ckpt")
        torch.save({"state_dict": weights, "hyper_parameters": {"backbone": config.to_dict()}}, models[name])
    (tmp_path / "cases.jsonl").write_text("\n".join(json.dumps(case) for case in CASES))
    out = tmp_path / "results.json"
    gatt.measure_ghost_attention(
        models,
        str(words.path),
        str(tmp_path / "cases.jsonl"),
        str(out),
        turns=(1, 3),
        limit=2,
        max_new_tokens=5,
    )
    with pytest.raises(ValueError, match=r"hardware\.device is 'gpu'"):
        gatt.measure_ghost_attention(
            models, str(words.path), str(tmp_path / "cases.jsonl"), str(out), hardware=Hardware("gpu")
        )
    found = json.loads(out.read_text())
    assert {name: list(by_turn) for name, by_turn in found["gatt"].items()} == {
        key: ["1", "3"] for key in models
    }
    assert {row["count"] for by_turn in found["gatt"].values() for row in by_turn.values()} == {2}
    looks = found["gatt_attention"]
    assert [m["content"] for m in looks["dialog"] if m["role"] in ("system", "user")] == [
        "Always end with okay.", "a", "b", "c",
    ]  # fmt: skip
    first, second = (looks["maps"][name] for name in models)
    assert first != second and len(first) == len(second) <= gatt.BINS
    assert {name: list(by_turn) for name, by_turn in looks["by_turn"].items()} == {
        key: ["1", "2", "3"] for key in models
    }
    assert all(0 < row["mean"] <= 1 for by_turn in looks["by_turn"].values() for row in by_turn.values())
    assert "instruction kept, with: turn 1 0%, turn 3 0%" in capsys.readouterr().out


def test_a_study_pools_the_seeds_and_takes_the_wider_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, ran = {1: 0.2, 2: 0.3, 3: 0.4}, []

    def recipe(
        plan: str, out: str, data: str, extra: list[str] | None, *, seed: int, hardware: Hardware
    ) -> None:
        ran.append((plan, data, extra, seed, hardware))
        rows = {
            "with": {"20": {"mean": kept[seed], "count": 10}},
            "without": {"20": {"mean": 0.0, "count": 10}},
        }
        write_json(Path(out) / "results.json", {"gatt": rows, "gatt_attention": seed})

    commands = []
    monkeypatch.setattr(gatt, "recipe", recipe)
    monkeypatch.setattr(gatt, "execute", commands.append)
    gatt.gatt_study(str(tmp_path), "runs/demo", extra=["--x=1"], hardware=Hardware("cuda:1"))
    assert ran == [("gatt", "runs/demo", ["--x=1"], seed, Hardware("cuda:1")) for seed in (1, 2, 3)]
    found = json.loads((tmp_path / "results.json").read_text())
    # Student's t: standard deviation 0.1, t = 4.303 for two degrees of freedom: 0.3 -+ 4.303 * 0.1 / sqrt(3), so
    # [0.0516, 0.5484]. Wilson for 3 of 10, z^2 = 3.8415: (0.3 + 0.1921 -+ 1.96 * sqrt(0.021 + 0.0096)) / 1.3842, so
    # [0.1078, 0.6032].
    row = found["gatt"]["with"]["20"]
    assert row == pytest.approx({"mean": 0.3, "low": 0.0516, "high": 0.6032, "count": 3}, abs=1e-4)
    # all seeds found nothing: (0 + 0.1921 + 1.96 * sqrt(0.0096)) / 1.3842 = 0.2775
    nothing = found["gatt"]["without"]["20"]
    assert nothing == pytest.approx({"mean": 0.0, "low": 0.0, "high": 0.2775, "count": 3}, abs=1e-4)
    assert found["gatt_attention"] == 1
    assert commands == [["report", f"--run={tmp_path}"]]
    with pytest.raises(ValueError, match="needs two at least"):
        gatt.gatt_study(str(tmp_path), "runs/demo", seeds=[1])


def test_attributes_are_asked_for_at_the_turns_and_found_by_their_check(tmp_path: Path) -> None:
    constraints = [
        {"text": "You enjoy ice skating.", "short": "Hobby: ice skating.", "kind": "hobby"},
        {"text": "Always act as Ada from now.", "short": "Figure: Ada.", "kind": "figure"},
        {"text": "Speak in Dutch.", "short": "Language: Dutch.", "kind": "language"},
    ]
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    write_jsonl(tmp_path / "constraints.jsonl", constraints)
    write_jsonl(tmp_path / "talk.jsonl", [talk])
    files = (str(tmp_path / "constraints.jsonl"), str(tmp_path / "talk.jsonl"), str(tmp_path / "cases.jsonl"))
    gatt.write_attribute_cases(*files, turns=(2, 4), count=20)
    cases = gatt.read_cases(files[2])
    assert {(case.instruction, case.user_turns) for case in cases} == {
        ("You enjoy ice skating.", ("Hi", "What is your hobby?") * 2),
        ("Always act as Ada from now.", ("Hi", "Who are you?") * 2),
    }
    for case in cases:
        assert case.kept("I am Ada and like Ice Skating!") and not case.kept("I am a model.")
    write_jsonl(tmp_path / "constraints.jsonl", constraints[2:])
    with pytest.raises(ValueError, match=r"constraints\.jsonl: no constraint of the kinds hobby, figure"):
        gatt.write_attribute_cases(*files)
