"""Intervals against published values, the normal approximation, and by hand."""

from __future__ import annotations

import json

import pytest
import torch

from llama2_pl.evaluation.intervals import bootstrap, wilson


def test_wilson_equals_the_published_example():
    # Newcombe (1998), Statistics in Medicine 17:857, table I: score method without continuity correction.
    assert [round(wilson(81, 263)[end], 4) for end in ("low", "high")] == [0.2553, 0.3662]
    assert [round(wilson(15, 148)[end], 4) for end in ("low", "high")] == [0.0624, 0.1605]
    assert [round(wilson(0, 20)[end], 4) for end in ("low", "high")] == [0.0, 0.1611]
    assert [round(wilson(1, 29)[end], 4) for end in ("low", "high")] == [0.0061, 0.1718]


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == {"mean": 0.5, "low": 0.0, "high": 1.0, "count": 0}


def test_bootstrap_agrees_with_the_normal_interval_of_a_large_sample():
    values = torch.cat([torch.ones(600), torch.zeros(400)])
    interval = bootstrap(values, resamples=4000)
    half = 1.96 * (0.6 * 0.4 / 1000) ** 0.5  # 0.0304
    assert interval["mean"] == pytest.approx(0.6)
    assert interval["low"] == pytest.approx(0.6 - half, abs=0.004)
    assert interval["high"] == pytest.approx(0.6 + half, abs=0.004)


def test_bootstrap_is_repeatable_and_its_seed_matters():
    values = torch.arange(20.0)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_bootstrap_in_parts_keeps_the_number_of_resamples():
    values = torch.arange(3_000_000) % 2  # one resample in each part
    assert bootstrap(values, resamples=3)["mean"] == 0.5


def test_intervals_go_into_json():
    assert json.loads(json.dumps(bootstrap([1.0, 2.0])))["count"] == 2


def test_bootstrap_refuses_an_empty_sample():
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
