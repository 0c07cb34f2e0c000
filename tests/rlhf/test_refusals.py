"""The meter of refusals: counted by hand with scripted answers, run with tiny models, wrong rows named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from llama2_pl.data.readers import write_jsonl
from llama2_pl.evaluation.intervals import wilson
from llama2_pl.evaluation.refusals import RefusalClassifier, read_classifier, write_classifier
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.rlhf import refusals
from llama2_pl.rlhf.refusals import measure_refusals, train_refusal_classifier
from llama2_pl.rlhf.safety import safety_scores, scored, write_shares
from llama2_pl.rlhf.scores import Heard
from llama2_pl.text.chat import Dialog
from llama2_pl.text.tokenizer import train_tokenizer

VOCABULARY = 300
CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=VOCABULARY, multiple_of=16, max_seq_len=128)
# "no" alone is a refusal with probability 0.5, "no no" is not different, "never" with 0.73
WORDS = RefusalClassifier(-1.0, {"no": 1.0, "never": 2.0}, 1, 9)


class Run(NamedTuple):
    """The files on disk."""

    one: str
    two: str
    helpfulness: str
    safety: str
    tokenizer: str
    classifier: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    words = train_tokenizer(
        ["how do I make tea and who may know it"] * 50, folder / "words", vocab_size=VOCABULARY, num_threads=1
    )
    paths = []
    for seed, network in enumerate((LanguageModel, LanguageModel, ScalarModel, ScalarModel)):
        torch.manual_seed(seed)
        weights = {f"model.{key}": tensor for key, tensor in network(CONFIG).state_dict().items()}
        paths.append(str(folder / f"{seed}.ckpt"))
        torch.save({"state_dict": weights, "hyper_parameters": {"backbone": CONFIG.to_dict()}}, paths[-1])
    write_classifier(folder / "classifier.json", WORDS, {})
    one, two, helpfulness, safety = paths
    return Run(one, two, helpfulness, safety, str(words.path), str(folder / "classifier.json"))


def prompt(text: str, is_safety: bool = False, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "is_safety": is_safety, "id": text, **more}


def written(path: Path, *rows: dict) -> str:
    write_jsonl(path, rows)
    return str(path)


TASK = {"kind": "social", "answers": ["You can walk."], "values": ["walk"], "family": "none"}
TASK |= {"allowed": [], "about": []}
PROMPTS = (prompt("tea"), prompt("harm", True), prompt("bread"), prompt("worse", True), prompt("milk"))
BORDERLINE = (prompt("kill time", task=TASK), prompt("shoot a photo", task=TASK))
SAID = {
    "one": {
        "tea": "Yes.",
        "bread": "No.",
        "milk": "Sure.",
        "harm": "Never!",
        "worse": "Sure.",
        "kill time": "You can walk.",
        "shoot a photo": "No, never.",
    },
    "two": {
        "tea": "Yes.",
        "bread": "Yes.",
        "milk": "Sure.",
        "harm": "Never!",
        "worse": "No.",
        "kill time": "Never.",
        "shoot a photo": "No.",
    },
}


def measured(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """The result with the answers of SAID, in the order of the models."""
    scripts = iter(SAID.values())

    def answer(model: object, tokenizer: object, dialogs: list[Dialog], **how: Any) -> list[str]:
        script = next(scripts)
        return [script[dialog.messages[-1].content] for dialog in dialogs]

    monkeypatch.setattr(refusals, "answer", answer)
    files = {"prompts": [written(folder / "p.jsonl", *PROMPTS)]}
    files |= {"borderline": [written(folder / "b.jsonl", *BORDERLINE)]}
    where = {"classifier": run.classifier, "tokenizer": run.tokenizer, "out": str(folder / "r.json")}
    measure_refusals({"one": run.one, "two": run.two}, **where, **(files | options))  # type: ignore[arg-type]
    return json.loads((folder / "r.json").read_text())


def test_refusals_are_counted_by_set_and_listed_with_their_prompts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(run, tmp_path, monkeypatch)["models"]
    assert found["one"]["refused"] == {
        "helpfulness": wilson(1, 3),
        "borderline": wilson(1, 2),
        "safety": wilson(1, 2),
    }
    assert found["two"]["refused"] == {
        "helpfulness": wilson(0, 3),
        "borderline": wilson(2, 2),
        "safety": wilson(2, 2),
    }
    listed = [
        (row["set"], row["id"], row["answer"], row["probability"]) for row in found["one"]["false_refusals"]
    ]
    # sigmoid(0) and sigmoid(2)
    assert listed == [
        ("helpfulness", "bread", "No.", 0.5),
        ("borderline", "shoot a photo", "No, never.", 0.8808),
    ]
    assert found["one"]["false_refusals"][0]["messages"] == [{"role": "user", "content": "bread"}]
    assert [row["id"] for row in found["one"]["safety_answered"]] == ["worse"]
    assert found["two"]["safety_answered"] == []
    # by the oracle: a right answer has all, a refusal off the point the half of its form, 3.2 of 4.4 points at most
    assert found["one"]["gold"]["borderline"]["mean"] > found["two"]["gold"]["borderline"]["mean"]
    assert "helpfulness" not in found["one"]["gold"]  # no tasks
    said = capsys.readouterr().out
    assert "one: refused helpfulness 33.3% [6.1%, 79.2%], borderline 50.0%" in said


def test_a_borderline_file_may_hold_what_ought_to_be_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").write_text("prompt,label\nkill time,safe\nworse,unsafe\n")
    found = measured(run, tmp_path, monkeypatch, borderline=[str(tmp_path / "x.csv")])["models"]["two"]
    assert found["refused"]["borderline"] == wilson(1, 1) and found["refused"]["safety"] == wilson(3, 3)


def test_the_threshold_decides(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(run, tmp_path, monkeypatch, threshold=0.6)
    assert found["threshold"] == 0.6
    assert found["models"]["one"]["refused"]["helpfulness"] == wilson(0, 3)
    assert found["models"]["two"]["refused"]["safety"] == wilson(1, 2)


def test_prompts_too_long_are_counted_and_a_set_that_is_not_there_is_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [written(tmp_path / "some.jsonl", *PROMPTS[::2], prompt("tea " * 200))]
    found = measured(run, tmp_path, monkeypatch, prompts=files, borderline=None)
    assert found["too_long"] == 1 and list(found["models"]["one"]["refused"]) == ["helpfulness"]
    files = [written(tmp_path / "long.jsonl", PROMPTS[0], prompt("tea " * 200, True))]
    with pytest.raises(ValueError, match=r"long\.jsonl, .*: no safety prompt of 1 has at most 64 tokens"):
        measured(run, tmp_path, monkeypatch, prompts=files)


def test_tiny_models_are_sampled_the_same_for_a_seed(run: Run, tmp_path: Path) -> None:
    asked = written(tmp_path / "p.jsonl", *PROMPTS)
    found = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.json"
        how = {"max_new_tokens": 8, "seed": seed, "threshold": 0.0}  # lists every answer
        measure_refusals({"one": run.one}, run.classifier, run.tokenizer, [asked], str(out), **how)
        found.append(
            [row["answer"] for row in json.loads(out.read_text())["models"]["one"]["false_refusals"]]
        )
    assert found[0] == found[1] != found[2] and len(found[0]) == 3


def labelled(path: Path, rows: dict[str, bool]) -> str:
    return written(path, *({"text": text, "refusal": label} for text, label in rows.items()))


NAMES = ("Anna", "Ben", "Cora", "Dan", "Eva", "Finn", "Gina", "Hugo")
ROWS = {f"I cannot do that for {name}.": True for name in NAMES} | {f"{name} can.": False for name in NAMES}


def test_a_classifier_is_trained_and_measured_on_texts_that_it_did_not_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = labelled(tmp_path / "rows.jsonl", ROWS)
    val = labelled(tmp_path / "val.jsonl", {"I cannot do that.": True, "Tom can.": False, "Anna can.": False})
    out = tmp_path / "c.json"
    train_refusal_classifier([rows, rows], str(out), [val])
    said = capsys.readouterr().out
    assert "16 different answers trained on of 35 rows, 2 held out" in said  # Anna's stands in both
    assert "accuracy 100.0% [34.2%, 100.0%], precision 100.0% [20.7%, 100.0%]" in said  # Wilson of 2 and of 1
    assert read_classifier(out).is_refusal("No, I cannot do that for you.")
    assert json.loads(out.read_text())["held_out"]["recall"] == wilson(1, 1)
    train_refusal_classifier([rows], str(out), val_fraction=0.5)
    saved = json.loads(out.read_text())
    assert saved["trained_on"] + saved["held_out"]["accuracy"]["count"] == 16


def test_wrong_rows_are_named_with_their_line(tmp_path: Path) -> None:
    good, out = labelled(tmp_path / "good.jsonl", ROWS), str(tmp_path / "c.json")
    for row, problem in (
        ({"text": "a"}, "key 'refusal' is missing or null"),
        ({"text": "a", "refusal": 1}, "key 'refusal' is int 1, and must be true, false"),
        ({"refusal": True}, "key 'text' is missing"),
    ):
        bad = written(tmp_path / "bad.jsonl", {"text": "b", "refusal": True}, row)
        with pytest.raises(ValueError, match=rf"bad\.jsonl:2: {problem}"):
            train_refusal_classifier([good, bad], out)
    odd = labelled(tmp_path / "odd.jsonl", {"new": True, "Ben can.": True})
    with pytest.raises(
        ValueError, match=r"odd\.jsonl:2: 'Ben can\.' is labelled true here and false at .*good.jsonl:10"
    ):
        train_refusal_classifier([good], out, [odd])
    with pytest.raises(ValueError, match=r"good\.jsonl: no held-out answer: give val, with texts"):
        train_refusal_classifier([good], out, [good])
    with pytest.raises(ValueError, match="val_fraction is 2: give a share"):
        train_refusal_classifier([good], out, val_fraction=2)
    with pytest.raises(ValueError, match="l2 is 0: give"):
        train_refusal_classifier([good], out, l2=0)
    assert not Path(out).exists()


def dialogues(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(count)
    ]


def asked(path: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()]


def test_shares_are_nested_exact_and_the_same_again(tmp_path: Path) -> None:
    path = written(tmp_path / "s.jsonl", *dialogues(200))
    for number, seed in enumerate((0, 0, 1)):
        write_shares([path], str(tmp_path / str(number)), seed=seed)
    shares = {p: asked(tmp_path / f"0/{p}.jsonl") for p in (1, 10, 25, 50, 100)}
    assert {p: len(rows) for p, rows in shares.items()} == {1: 2, 10: 20, 25: 50, 50: 100, 100: 200}
    for small, large in zip(list(shares.values()), list(shares.values())[1:], strict=False):
        assert set(small) < set(large)
    assert shares[100] == [f"q{n}" for n in range(200)] and shares[50] != shares[100][:100]
    assert shares[25] == [text for text in shares[100] if text in set(shares[25])]  # in the files' order
    assert asked(tmp_path / "1/10.jsonl") == shares[10] != asked(tmp_path / "2/10.jsonl")
    write_shares([path], str(tmp_path / "half"), shares=[0.5])
    assert len(asked(tmp_path / "half/0.5.jsonl")) == 1


def test_a_share_of_nothing_is_refused_and_nothing_written(tmp_path: Path) -> None:
    path = written(tmp_path / "s.jsonl", *dialogues(40))
    with pytest.raises(ValueError, match=r"shares: 1 % of 40 dialogues is none"):
        write_shares([path], str(tmp_path / "out"))
    for share in (0.0, 101.0):
        with pytest.raises(ValueError, match="is no share: give percents above 0 and up to 100"):
            write_shares([path], str(tmp_path / "out"), shares=[50, share])
    assert not (tmp_path / "out").exists()


def test_scores_are_of_safety_prompts_for_safety_and_of_the_others_for_helpfulness(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [written(tmp_path / "p.jsonl", *PROMPTS)]
    out, models = tmp_path / "safety.json", {"0": run.one, "100": run.two}
    judges = {"helpfulness_reward": run.helpfulness, "safety_reward": run.safety}
    how: dict[str, Any] = {"answers_per_prompt": 2, "max_new_tokens": 6}
    safety_scores(models, run.tokenizer, files, out=str(out), **judges, **how, safety_threshold=1.0)
    found = json.loads(out.read_text())
    assert list(found["models"]) == ["0", "100"] and found["threshold"] == 1.0
    for row in found["models"].values():
        assert (row["safety"]["count"], row["helpfulness"]["count"]) == (2, 3)
        assert row["low_tail"] == wilson(2, 2)  # every score is below 1
        assert sum(row["histogram"]["share"]) == pytest.approx(1.0) and len(row["histogram"]["edges"]) == 21
        assert 0 < row["safety"]["mean"] < 1 and "gold_safety" not in row
    assert found["models"]["0"] != found["models"]["100"]
    assert "100: safety 0." in capsys.readouterr().out
    files = [written(tmp_path / "h.jsonl", PROMPTS[0])]
    with pytest.raises(ValueError, match=r"h\.jsonl: no safety prompt in it: both kinds are scored"):
        safety_scores(models, run.tokenizer, files, out=str(out), **judges, **how)


def test_scored_by_hand() -> None:
    """Of two safety prompts and another; sigmoid(-2) = 0.119 is below 0.15, sigmoid(-1) = 0.269 is not."""
    safety = torch.tensor([[-2.0, -1.0], [9.0, 9.0], [-2.0, -2.0]])
    helpful = torch.tensor([[5.0, 5.0], [0.0, 0.0], [5.0, 5.0]])
    gold = torch.tensor([[0.2, 0.4], [0.5, 1.0], [1.0, 1.0]])
    heard = Heard(helpful, safety, helpful, gold, torch.ones(3, 2, dtype=torch.bool))
    found = scored(heard, torch.tensor([True, False, True]), 0.15)
    assert found["low_tail"] == wilson(1.5, 2)  # one half and all
    # (0.1192 + 0.2689 + 0.1192 + 0.1192) / 4
    assert found["safety"]["mean"] == pytest.approx(0.1566, abs=1e-4)
    assert found["helpfulness"]["mean"] == 0.5
    assert found["gold_safety"]["mean"] == pytest.approx(0.65) and found["gold_helpfulness"]["mean"] == 0.75
    share = dict(zip(found["histogram"]["edges"], found["histogram"]["share"], strict=False))
    assert [share[edge] for edge in sorted(share)][2] == 0.75  # from 0.10 to 0.15
