"""The benchmarks' arithmetic by hand, and one piece at a toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import pieces, run
from benchmarks.machine import bandwidth, bytes_per_token, flops_per_token, folder_name, peak_flops, processor
from benchmarks.pieces import PIECES, Case, Side, shape, tiny
from benchmarks.render import HEADLINES, benchmark_table, headline_table, limit, put
from benchmarks.run import against_limit, measure, missing_peers, summary
from benchmarks.sides import ours
from benchmarks.sides.protocol import Turns
from benchmarks.sides.steps import EOS, prompts_of_lengths
from llama2_pl import ModelConfig

TINY = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=64, multiple_of=8, max_seq_len=64)
COUNTED = ModelConfig(
    dim=4, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=10, multiple_of=12, max_seq_len=16
)
# a block: wq and wo 4 x 4, wk and wv 4 x 2, three of 4 x 12; two blocks, and the head 4 x 10
WEIGHTS = 2 * (2 * 16 + 2 * 8 + 3 * 48) + 40


def test_the_operations_of_a_token_are_those_counted_by_hand() -> None:
    # forward of attention: 2 D for a score and 2 D for a value, over half of 6 tokens, in two blocks; backward twice
    attention = 3 * 2 * (2 * 4 + 2 * 4) * 6 / 2
    assert flops_per_token(COUNTED, 6) == 6 * WEIGHTS + attention


def test_the_bytes_of_a_decoded_token_are_those_counted_by_hand() -> None:
    # two bytes a number: the weights once for 4 rows; a key and a value of one head of 2, in two blocks, 6 positions
    assert bytes_per_token(COUNTED, 4, 6) == 2 * WEIGHTS / 4 + 2 * (2 * 2 * 2 * 6)


def test_rates_are_set_against_the_limit_of_their_kind() -> None:
    options = {"rows": 1, "length": 5, "new": 2, "precision": "bf16-mixed"}
    limits = {
        "bfloat16_flops": 10 * flops_per_token(COUNTED, 5),
        "float32_flops": 20 * flops_per_token(COUNTED, 5),
        "bandwidth": 8 * bytes_per_token(COUNTED, 1, 6),
    }
    training = Case("t", "train", options, [], config=COUNTED)
    found = against_limit(training, {"ours": 5.0}, limits)
    assert found["share_of_peak"] == {"ours": 0.5}
    assert found["gflops_by_6n"] == {"ours": 6 * (WEIGHTS + 40) * 5 / 1e9}  # and the embedding, 10 x 4
    plain = training._replace(options={**options, "precision": "fp32"})
    found = against_limit(plain, {"ours": 5.0}, limits)
    assert found["share_of_peak"] == {"ours": 0.25} and limit(found) == ", 25% of the fp32 peak"
    decoding = training._replace(limit="bandwidth")
    assert against_limit(decoding, {"ours": 6.0}, limits)["share_of_bandwidth"] == {"ours": 0.75}
    assert limit({"share_of_bandwidth": {"ours": 0.75}}) == ", 75% of the memory bandwidth"


@pytest.mark.parametrize("units", [True, False])
def test_every_limited_case_finds_its_peak_also_at_a_toy_size(
    monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    for module in (pieces, run):
        monkeypatch.setattr(module, "has_bf16_units", lambda device: units)
    monkeypatch.setattr(run, "peak_flops", lambda *_: 1e9)
    monkeypatch.setattr(run, "bandwidth", lambda *_: 1e9)
    toys = [tiny(case) for piece in PIECES.values() for case in piece() if case.config]
    found = [against_limit(toy, {"ours": 1.0}, run.limits([toy])) for toy in toys]
    assert len(found) > 4 and all(set(row) & {"share_of_peak", "share_of_bandwidth"} for row in found)


def test_limits_of_this_machine_are_measured() -> None:
    assert 1e8 < peak_flops("cpu", torch.float32, seconds=0.1) < 1e15
    assert 1e8 < bandwidth("cpu", seconds=0.1, size=2**20) < 1e14


def test_ratios_are_between_medians_and_say_how_many_times_better_the_first_is() -> None:
    rates = Case("t", "train", {}, [], unit="tokens/s")
    runs = {"ours": [(10, 1), (20, 1), (90, 1)], "other": [(10, 1), (5, 1), (20, 2)]}
    raw = {name: [{"units": u, "seconds": s} for u, s in pairs] for name, pairs in runs.items()}
    found = summary(rates, raw)
    assert found["medians"] == {"ours": 20, "other": 10} and found["times_better"] == {"other": 2.0}
    less = Case("m", "train", {}, [], measure="peak_mib")
    assert summary(less, {"ours": [{"peak_mib": 50}], "other": [{"peak_mib": 100}]})["times_better"] == {
        "other": 2.0
    }


def test_a_piece_runs_its_sides_in_turn_and_its_table_is_rendered(tmp_path: Path) -> None:
    options = {"model": shape(TINY), "rows": 2, "length": 8, "precision": "fp32"}
    new = {"new": 4, "precision": "fp32"}
    sides = [Side("in one call", "ours", None, {"samples": 2}), Side("in two", "ours", None, {"calls": 2})]
    figure = measure(Case("toy", "sample", options | new, sides, warm_up=1, rounds=2))
    assert [len(runs) for runs in figure["raw"].values()] == [2, 2]
    assert {run["units"] for runs in figure["raw"].values() for run in runs} == {2 * 2 * 4}
    environment = {"machine": "a machine", "gpu": None}
    for name, peak in (("one", 1e12), ("two", 5e11)):
        (tmp_path / name).mkdir()
        limits = {"bfloat16_flops": peak}
        piece = {"environment": environment, "limits": limits, "figures": [figure] if name == "two" else []}
        (tmp_path / name / "toy.json").write_text(json.dumps(piece))
    table = benchmark_table(tmp_path)
    assert "a machine; matrix products: bfloat16 1.00 TFLOP/s | [two](" in table
    assert "| toy |  | " in table and "× in two" in table


def test_the_readme_takes_of_each_machine_the_first_case_that_it_measured(tmp_path: Path) -> None:
    title, (in_bf16, in_fp32) = next((name, cases) for name, cases in HEADLINES.items() if len(cases) == 2)
    for name, dtype, case in (("one", "bfloat16", in_bf16), ("two", "float32", in_fp32)):
        figure = {"case": case, "times_better": {"a peer": 1.5}}
        piece = {"environment": {"gpu": None}, "limits": {f"{dtype}_flops": 1e12}, "figures": [figure]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "toy.json").write_text(json.dumps(piece))
    lines = headline_table(tmp_path).splitlines()
    assert lines[0] == "| times better than | CPU, bfloat16 at 1.00 TFLOP/s | CPU, float32 at 1.00 TFLOP/s |"
    assert lines[2:] == [f"| {title} | 1.50 × a peer | 1.50 × a peer |"]


def test_every_case_of_the_readme_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = set()
    for precision, marked in (("bf16-mixed", ""), ("fp32", ", fp32")):
        monkeypatch.setattr(pieces, "PRECISION", precision)
        monkeypatch.setattr(pieces, "IN", marked)
        monkeypatch.setattr(pieces, "has_bf16_units", lambda device, has=not marked: has)
        titles |= {case.title for piece in PIECES.values() for case in piece()}
    assert {case for cases in HEADLINES.values() for case in cases} <= titles


def test_a_table_is_put_between_its_marks_alone(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("before <!-- a -->old<!-- /a --> between <!-- b -->kept<!-- /b -->")
    put(document, "a", "| new |")
    assert (
        document.read_text() == "before <!-- a -->\n\n| new |\n<!-- /a --> between <!-- b -->kept<!-- /b -->"
    )
    with pytest.raises(ValueError, match="has no <!-- c --> … <!-- /c --> to put the table between"):
        put(document, "c", "| new |")


def test_each_processor_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpuinfo = "processor : 0\ncpu family : 25\nmodel : 17\nmodel name : AMD EPYC\nbugs : a:b\nprocessor : 1\n"
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: cpuinfo)
    assert processor() == "AMD EPYC family 25 model 17"
    assert folder_name("Apple M2 (Pro)") == "apple-m2-pro"


def test_a_side_that_dies_is_named_with_the_end_of_its_log() -> None:
    options = {"model": shape(TINY), "rows": 2, "length": 80, "new": 4, "precision": "fp32"}
    with pytest.raises(RuntimeError, match=r"ours ended with 1:(.|\n)*max_seq_len 64"):
        measure(Case("toy", "sample", options, [Side("ours", "ours")], warm_up=1, rounds=1))


def test_absent_environments_are_named(tmp_path: Path) -> None:
    assert missing_peers(PIECES["train"](), tmp_path) == ["litgpt", "transformers"]


def in_turn(cases: dict, case: str, options: dict, turns: int = 1) -> list[dict]:
    """What a side notes of its repetitions, without a process of its own."""
    answers: list[dict] = []
    read = iter(['"go"\n'] * turns + ["\n"])
    with pytest.raises(SystemExit):
        cases[case]({**options, "libraries_mib": 0}, Turns(lambda: next(read), answers.append, 1))
    return answers[1:]


CASES = [case for piece in PIECES.values() for case in piece()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_our_side_of_every_case_runs_at_a_toy_size(case: Case) -> None:
    toy = tiny(case)
    options = {**toy.options, **toy.sides[0].options, "compile": False}
    (run,) = in_turn(ours.CASES, toy.case, options)
    assert run["units"] > 0 and run["seconds"] > 0
    if case.measure != "rate":
        assert run[case.measure] > 0
    if case.measure == "waited_percent":
        assert run[case.measure] < 100


def test_both_sides_give_answers_of_the_wanted_lengths() -> None:
    with_transformers = pytest.importorskip("benchmarks.sides.with_transformers")
    wide = ModelConfig(dim=128, n_layers=1, n_heads=2, vocab_size=300, multiple_of=8, max_seq_len=64)
    options = {"model": shape(wide), "rows": 40, "together": 16, "length": 4, "new": 20, "mean": 6}
    options |= {"precision": "fp32"}
    wanted = int((prompts_of_lengths(options)[:, -1] - EOS).sum())
    assert wanted / 40 == pytest.approx(6, abs=2)
    theirs = {"sample": with_transformers.sample}
    assert [in_turn(cases, "sample", options)[0]["units"] for cases in (ours.CASES, theirs)] == [wanted] * 2


def test_every_side_trains_on_the_same_number_of_tokens() -> None:
    with_transformers = pytest.importorskip("benchmarks.sides.with_transformers")
    toy = tiny(PIECES["train"]()[0]).options
    theirs = {"train": with_transformers.train}
    assert {in_turn(cases, "train", toy)[0]["units"] for cases in (ours.CASES, theirs)} == {4 * 16}
