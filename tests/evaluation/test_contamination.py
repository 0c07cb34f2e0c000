"""Subsets and Z by hand and by the paper's table; the command on documents and on token files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama2_pl.cli import main
from llama2_pl.data import training_tokens
from llama2_pl.data.corpus import CorpusDataModule
from llama2_pl.data.token_file import TokenFileWriter
from llama2_pl.evaluation import contamination as module
from llama2_pl.evaluation.contamination import _text, contamination, is_affected, is_empty, subsets
from llama2_pl.text import Tokenizer, train_tokenizer


def test_subsets_and_z_by_hand() -> None:
    # mu = 1/2 and sigma = 1/2. Clean: 0 and 10 %, mean 0, Z = -1/2 / (1/2 / sqrt 2); not clean: 20 % and more, mean
    # 3/4, Z = 1/4 / (1/2 / 2). Not dirty and dirty, from 80 % on, mirror them.
    table = subsets([0, 10, 20, 50, 80, 100], [0, 0, 1, 0, 1, 1])
    assert [
        (name, subset["n"], subset["contamination"], subset["mean"]) for name, subset in table.items()
    ] == [
        ("clean", 2, 5.0, 0.0),
        ("not clean", 4, 62.5, 0.75),
        ("not dirty", 4, 20.0, 0.25),
        ("dirty", 2, 90.0, 1.0),
    ]
    assert [subset["mu_n"] for subset in table.values()] == [0.5] * 4
    root = math.sqrt(2)
    assert [subset["z_n"] for subset in table.values()] == pytest.approx([-root, 1, -1, root])


def right(count: int, share: float) -> list[int]:
    return [1] * round(count * share) + [0] * (count - round(count * share))


@pytest.mark.parametrize(
    ("n", "means", "published"),
    [  # clean, not clean, not dirty, dirty
        ((7391, 2651, 9194, 848), (0.800, 0.895, 0.816, 0.922), (-5.73, 9.56, -2.27, 7.42)),
        ((7391, 2651, 9194, 848), (0.705, 0.813, 0.724, 0.837), (-5.46, 9.17, -2.06, 6.84)),
        ((3996, 709, 4185, 520), (0.622, 0.827, 0.627, 0.858), (-4.08, 9.71, -3.50, 9.80)),
    ],
    ids=["HellaSwag 70B", "HellaSwag 7B", "MMLU-Humanities 70B"],
)
def test_z_is_that_of_the_papers_table(n: tuple, means: tuple, published: tuple) -> None:
    """Llama 2, Table 51: n and mean of each subset give the counts of right answers, and those Z as printed."""
    clean, dirty = right(n[0], means[0]), right(n[3], means[3])
    between = round(n[1] * means[1]) - sum(dirty)
    metrics = clean + [1] * between + [0] * (n[1] - n[3] - between) + dirty
    table = subsets([0.0] * n[0] + [50.0] * (n[1] - n[3]) + [90.0] * n[3], metrics)
    assert tuple(subset["n"] for subset in table.values()) == n
    # a mean printed to 0.1 % is off by 0.05 % at most, which is up to 0.11 of Z here; mu is rounded as well
    assert [subset["z_n"] for subset in table.values()] == pytest.approx(published, abs=0.2)
    assert is_affected(table)


def test_a_set_is_affected_only_if_all_four_subsets_are() -> None:
    shares = [0.0] * 500 + [50.0] * 500 + [90.0] * 500
    assert is_affected(subsets(shares, right(500, 0.4) + right(500, 0.5) + right(500, 0.6)))
    # the dirty ones are no better than all: |Z| of not dirty and dirty is about 0
    assert not is_affected(subsets(shares, right(500, 0.4) + right(500, 0.6) + right(500, 0.5)))


def test_without_samples_metric_or_spread_there_is_no_z() -> None:
    table = subsets([0.0, 0.0], [0, 1])
    assert table["dirty"] == {"contamination": None, "n": 0, "mean": None, "mu_n": None, "z_n": None}
    assert table["clean"]["z_n"] == 0 and not is_affected(table)
    assert subsets([0.0, 90.0], None)["dirty"]["mean"] is None
    assert {subset["z_n"] for subset in subsets([0.0, 50.0, 90.0], [0.1] * 3).values()} == {None}


def test_a_set_whose_four_subsets_are_alike_is_affected_at_no_l() -> None:
    table = subsets([0.0, 0.0, 50.0, 50.0, 90.0, 90.0], [0.0, 1.0] * 3)
    found = {
        "tables": {"10": table},
        "affected": [],
        "undecided": [],
        "samples": [{"metric": 1.0}],
        "keys": {},
    }
    assert not is_empty(table) and "affected at no L" in _text("set", found)


WORDS = "river stone lamp winter copper garden signal paper engine violet thunder meadow".split()


def sentence(number: int, words: int = 40) -> str:
    return " ".join(WORDS[(number * 5 + k * (1 + number % 7) + k * k) % 12] for k in range(words))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    text = " ".join(sentence(n) for n in range(20))
    return train_tokenizer([text], tmp_path_factory.mktemp("tokenizer"), vocab_size=300, num_threads=1)


@pytest.fixture
def files(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., dict[str, Any]]:
    """Options of the command, on evaluation and training rows written as JSON lines."""

    def write(evaluation: list[dict], train: list[dict]) -> dict[str, Any]:
        for name, rows in (("evaluation", evaluation), ("train", train)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("evaluation", "train")}
        return paths | {"tokenizer": str(tokenizer.path), "out": str(tmp_path / "out.json")}

    return write


# 36 characters, no two of which make a piece
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
COPIED = {"text": LETTERS, "correct": True}
CLEAN = {"text": LETTERS[::-1], "correct": False}


def result(options: dict[str, Any], **more: Any) -> dict:
    contamination(**options, **more)
    return json.loads(Path(options["out"]).read_text())


def test_the_result_holds_each_sample_and_the_tables(
    files: Callable, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    options = files([COPIED, CLEAN], [{"text": "before " + LETTERS[:18] + " after"}])
    found = result(options, metric="correct", lengths=(10, 40))
    tokens = len(tokenizer.encode(LETTERS))
    assert tokens == 37  # "▁" and the characters
    evaluation = found["evaluation"][options["evaluation"]]
    # the space before the copy is the sample's "▁"
    assert evaluation["samples"] == [
        {"id": "evaluation.jsonl:1", "tokens": 37, "metric": 1.0}
        | {"contamination": {"10": pytest.approx(100 * 19 / 37), "40": 0.0}},
        {"id": "evaluation.jsonl:2", "tokens": 37, "metric": 0.0, "contamination": {"10": 0.0, "40": 0.0}},
    ]
    assert list(evaluation["tables"]) == ["10", "40"]
    assert evaluation["tables"]["10"]["not clean"]["n"] == 1
    assert (evaluation["affected"], evaluation["largest_affected"]) == ([], None)
    assert evaluation["keys"] == {options["evaluation"]: ["text"]}
    assert found["train"][0]["documents"] == 1
    assert evaluation["undecided"] == [10, 40]
    told = capsys.readouterr().out
    assert "not to be told at L = 10, 40" in told and "affected" not in told


def share(found: dict, length: int = 10) -> list[float]:
    """Percentages of the samples of the one evaluation set."""
    (evaluation,) = found["evaluation"].values()
    return [sample["contamination"][str(length)] for sample in evaluation["samples"]]


def test_token_files_of_the_corpus_cache_give_what_their_documents_give(
    files: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [sentence(n) + LETTERS[n : n + 12 + n] for n in range(12)]
    options = files(
        [COPIED, CLEAN, *({"text": sentence(n, 20)} for n in range(3, 9))], [{"text": t} for t in documents]
    )
    wanted = share(result(options))
    assert 0 < wanted[0] < 100 and wanted[1] == 0
    data = CorpusDataModule(
        {"all": {"path": options["train"]}},
        options["tokenizer"],
        val_fraction=0.0,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    (folder,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(training_tokens, "_MAPPED", 50)  # two documents or so at a time
    with pytest.raises(ValueError, match=r"cache: a folder of caches, such as .*corpus-.*: name those"):
        result({**options, "train": str(tmp_path / "cache")})
    for train in (str(folder), str(folder / "train"), str(tmp_path / "cache/*/train")):
        found = result(options | {"train": train})
        assert share(found) == wanted
        assert found["train"][0]["documents"] == 12
    monkeypatch.setattr(training_tokens, "_READ", 50)
    assert share(result(options)) == wanted


def test_each_option_changes_the_result(files: Callable, tmp_path: Path) -> None:
    changed = "".join("~" if n in (12, 14) else letter for n, letter in enumerate(LETTERS[:25]))
    options = files([{"text": LETTERS, "part": LETTERS[:10]}], [{"text": changed, "body": LETTERS}])
    assert share(result(options)) == [pytest.approx(100 * 26 / 37)]
    assert share(result(options, budget=1)) == [
        pytest.approx(100 * 25 / 37)
    ]  # 15 tokens, and 10 behind the second
    assert share(result(options, text_key="body")) == [100.0]
    assert share(result(options, keys=["part"])) == [100.0]  # "▁" and ten characters
    with pytest.raises(ValueError, match=r"evaluation\.jsonl:1: key 'correct' is missing"):
        contamination(**options, metric="correct")
    with pytest.raises(ValueError, match="format 'pdf'"):
        contamination(**options, format="pdf")
    with Path(options["train"]).open("a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"train\.jsonl:2: not JSON"):
        contamination(**options)
    with pytest.raises(ValueError, match="1 of 2 rows are malformed"):  # read on, and far too many of two
        contamination(**options, strict=False)


def test_a_result_stands_until_the_next_is_whole(files: Callable, tmp_path: Path) -> None:
    options = files([COPIED], [{"text": LETTERS}])
    before = result(options)
    with Path(options["train"]).open("a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"train\.jsonl:2"):
        contamination(**options)
    assert json.loads(Path(options["out"]).read_text()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.jsonl", "out.json", "train.jsonl"]


def test_a_long_run_says_how_far_it_is(
    files: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    options = files([COPIED], [{"text": LETTERS}])
    writer = TokenFileWriter(tmp_path / "ids", 300, Tokenizer(options["tokenizer"]).sha256)
    writer.add([5] * 40)
    writer.close()
    contamination(**options | {"train": [options["train"], str(tmp_path / "ids")]})
    lines = capsys.readouterr().err.splitlines()
    assert "train.jsonl: 39 tokens, " in lines[0]  # BOS, "▁", 36 characters, EOS
    assert "ids: 40 of 40 (100%) tokens, " in lines[1] and lines[1].endswith("M tokens/s")


def test_the_command_line_reads_several_sets_at_once(
    files: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = files([COPIED] * 30 + [CLEAN] * 30 + [COPIED | {"correct": False}, CLEAN], [{"text": LETTERS}])
    other = tmp_path / "other.csv"
    other.write_text(f"question\n{LETTERS[5:30]}\n", encoding="utf-8")
    options["evaluation"] = f"[{options['evaluation']}, {other}]"
    main(["contamination", *(word for name, value in options.items() for word in (f"--{name}", value))])
    found = json.loads(Path(options["out"]).read_text())["evaluation"]
    assert len(found) == 2 and [s["tokens"] for s in found[str(other)]["samples"]] == [26]
    assert "no metric" in capsys.readouterr().out
    options["evaluation"] = str(tmp_path / "evaluation.jsonl")
    main(
        ["contamination", "--metric", "correct", "--lengths", "[10, 38]"]
        + [word for name, value in options.items() for word in (f"--{name}", value)]
    )
    (found,) = json.loads(Path(options["out"]).read_text())["evaluation"].values()
    # 31 of 62 are copied whole and 30 of those right, none of the others: Z = (30/31 - 30/62) / (1/2 / sqrt 31) = 5.4
    assert (found["affected"], found["largest_affected"]) == ([10], 10)
    assert found["tables"]["10"]["dirty"]["z_n"] == pytest.approx(5.4, abs=0.05)
    assert "affected at L = 10\nnot to be told at L = 38" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(files: Callable, tmp_path: Path) -> None:
    options = files([COPIED], [{"text": LETTERS}])

    def refused(match: str, **changed: Any) -> None:
        with pytest.raises(ValueError, match=match):
            contamination(**options | changed)

    TokenFileWriter(tmp_path / "ids" / "train", 300, "another").close()
    refused("ids/train: its tokens are of another tokenizer than", train=str(tmp_path / "ids"))
    refused(r"ids is a token file and .*\.jsonl is none", train=str(tmp_path / "[it]*"))
    refused("absent: no file to read", train=str(tmp_path / "absent"))
    refused("evaluation: no file matches", evaluation=str(tmp_path / "absent"))
    refused("lengths: 9 is below 10", lengths=(10, 9))
    refused("lengths is empty", lengths=())
    refused("out: .* is a folder", out=str(tmp_path))
    (tmp_path / "none.jsonl").write_text("")
    refused("none.jsonl: no sample in it", evaluation=str(tmp_path / "none.jsonl"))
    refused("none.jsonl: no training token in it", train=str(tmp_path / "none.jsonl"))
    assert not Path(options["out"]).exists()
