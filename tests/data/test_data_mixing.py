from __future__ import annotations

from collections import Counter

import pytest

from llama2_pl.data.mixing import CorpusMix, largest_remainder

# Llama 1, Table 1
LLAMA1 = {
    "cc": 67.0,
    "c4": 15.0,
    "github": 4.5,
    "wikipedia": 4.5,
    "books": 4.5,
    "arxiv": 2.5,
    "stackexchange": 2.0,
}


def test_quotas_are_the_largest_remainders() -> None:
    # 1000/7 = 142.857 each: all seven are floored to 142, six sequences are left and go to the first six
    assert largest_remainder(dict.fromkeys("abcdefg", 1.0)).tolist() == [143] * 6 + [142]
    assert largest_remainder(LLAMA1).tolist() == [670, 150, 45, 45, 45, 25, 20]


def test_realised_shares_are_the_asked_ones_within_a_tenth_of_a_percent() -> None:
    mix = CorpusMix(LLAMA1, seed=5)
    drawn = Counter(mix.names[mix.draw(s).source] for s in range(10_000))
    for name, percent in LLAMA1.items():
        assert abs(drawn[name] / 10_000 - percent / 100) <= 0.001


def test_draws_of_a_source_are_numbered_without_gap_or_repeat() -> None:
    mix = CorpusMix({"a": 3.0, "b": 1.0}, seed=2)
    numbers: dict[int, list[int]] = {0: [], 1: []}
    for s in range(2500):
        source, number = mix.draw(s)
        numbers[source].append(number)
    assert all(sorted(n) == list(range(len(n))) for n in numbers.values())
    assert mix.counts(2500).tolist() == [len(numbers[0]), len(numbers[1])]


def test_a_draw_does_not_depend_on_earlier_ones_and_cycles_differ() -> None:
    mix = CorpusMix(LLAMA1, seed=0)
    far = [mix.draw(s) for s in range(10**12, 10**12 + 5)]
    assert far == [CorpusMix(LLAMA1, seed=0).draw(s) for s in range(10**12, 10**12 + 5)]
    assert [mix.draw(s).source for s in range(1000)] != [mix.draw(1000 + s).source for s in range(1000)]
    assert [mix.draw(s).source for s in range(50)] != [
        CorpusMix(LLAMA1, seed=1).draw(s).source for s in range(50)
    ]


def test_the_ledger_counts_epochs_by_hand() -> None:
    mix = CorpusMix({"web": 3.0, "wiki": 1.0})
    ledger = mix.ledger(2000, {"web": 30_000, "wiki": 1_000}, seq_len=10)
    # 1500 sequences of 10 tokens over 30,000 tokens; 500 over 1,000
    assert ledger["web"] == (0.75, 1500, 15_000, 0.5)
    assert ledger["wiki"] == (0.25, 500, 5_000, 5.0)


@pytest.mark.parametrize(
    ("weight", "says"), [(0.0, "positive"), (float("nan"), "positive"), (1e-5, "never be drawn")]
)
def test_a_weight_that_means_nothing_is_refused_by_name(weight: float, says: str) -> None:
    with pytest.raises(ValueError, match=rf"sources\.tiny\.weight.*{says}"):
        CorpusMix({"big": 1.0, "tiny": weight})
