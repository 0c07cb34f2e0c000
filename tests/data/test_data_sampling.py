from __future__ import annotations

import numpy as np
import pytest

from llama2_pl.data.sampling import RowStream, is_held_out, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 257, 1000])
def test_every_position_points_to_another_item(size: int) -> None:
    assert sorted(permute(np.arange(size), size, seed=3, epoch=2).tolist()) == list(range(size))


def test_one_position_of_a_huge_order_is_found_without_the_others() -> None:
    size = 10**15
    items = permute(np.arange(1000), size, seed=0)
    assert int(permute(123, size, seed=0)) == items[123]
    assert len(set(items.tolist())) == 1000 and items.max() < size


def test_orders_of_epochs_and_of_seeds_have_nothing_in_common() -> None:
    orders = [permute(np.arange(500), 500, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, a in enumerate(orders):
        # Two independent orders agree at one place on average; Poisson puts 8 or more below 1e-5.
        assert all((a == b).sum() < 8 for b in orders[:i])


def test_items_are_spread_evenly_over_places() -> None:
    first = [int(permute(0, 10, seed)) for seed in range(5000)]
    counts = np.bincount(first, minlength=10)
    # chi-square with 9 degrees of freedom: 33.7 is its 0.9999 quantile
    assert ((counts - 500) ** 2 / 500).sum() < 33.7


def test_each_item_comes_once_per_epoch_and_the_last_batch_is_the_rest() -> None:
    stream = RowStream(size=7, batch_size=3, total=14, seed=1)
    batches = [stream.items(n) for n in range(len(stream))]
    assert [len(b) for b in batches] == [3, 3, 3, 3, 2]
    order = np.concatenate(batches)
    assert sorted(order[:7]) == sorted(order[7:]) == list(range(7))
    assert order[:7].tolist() != order[7:].tolist()


def test_a_second_pass_goes_on_with_new_epochs() -> None:
    stream = RowStream(size=7, batch_size=3, total=14, seed=1)
    third = np.concatenate([stream.items(n) for n in range(5, 10)])[:7]
    assert sorted(third) == list(range(7))
    assert third.tolist() == permute(np.arange(7), 7, 1, 2).tolist()


def test_the_held_out_share_is_as_asked_and_does_not_depend_on_order() -> None:
    texts = [f"document {i}" for i in range(20_000)]
    held_out = [t for t in texts if is_held_out(t, 0.05)]
    # binomial: sd 31 around 1000
    assert 850 < len(held_out) < 1150
    assert not any(is_held_out(t, 0.0) for t in texts[:100])
    assert all(is_held_out(t, 0.1) for t in held_out)
