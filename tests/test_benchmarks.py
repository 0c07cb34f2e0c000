"""The benchmarks' arithmetic by hand, and one piece at a toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.machine import flops_per_token
from benchmarks.pieces import PIECES, Case, Side, shape
from benchmarks.render import benchmark_table
from benchmarks.run import measure, missing_peers, summary
from llama2_pl import ModelConfig

TINY = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=64, multiple_of=8, max_seq_len=64)


def test_the_operations_of_a_token_are_those_counted_by_hand() -> None:
    config = ModelConfig(
        dim=4, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=10, multiple_of=12, max_seq_len=16
    )
    # a block: wq and wo 4 x 4, wk and wv 4 x 2, three of 4 x 12; two blocks, and the head 4 x 10
    weights = 2 * (2 * 16 + 2 * 8 + 3 * 48) + 40
    # forward of attention: 2 D for a score and 2 D for a value, over half of 6 tokens, in two blocks; backward twice
    attention = 3 * 2 * (2 * 4 + 2 * 4) * 6 / 2
    assert flops_per_token(config, 6) == 6 * weights + attention


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
    (tmp_path / "toy.json").write_text(json.dumps({"figures": [figure]}))
    assert "| toy | in one call " in benchmark_table(tmp_path)


def test_a_side_that_dies_is_named_with_the_end_of_its_log() -> None:
    options = {"model": shape(TINY), "rows": 2, "length": 80, "new": 4, "precision": "fp32"}
    with pytest.raises(RuntimeError, match=r"ours ended with 1:(.|\n)*max_seq_len 64"):
        measure(Case("toy", "sample", options, [Side("ours", "ours")], warm_up=1, rounds=1))


def test_absent_environments_are_named(tmp_path: Path) -> None:
    assert missing_peers(PIECES["train"](), tmp_path) == ["litgpt", "transformers"]
