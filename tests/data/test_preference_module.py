from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llama2_pl.data import PreferenceBatch, PreferenceDataModule
from llama2_pl.data.pairs import choose_pairs, encode_pair
from llama2_pl.text import Dialog, Tokenizer, encode_dialog

MakeData = Callable[..., PreferenceDataModule]


def pair(prompt: str | list[str], chosen: str, rejected: str, **labels) -> dict:
    roles = ["user", "assistant"]
    turns = [prompt] if isinstance(prompt, str) else prompt
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"prompt": messages, "chosen": chosen, "rejected": rejected, **labels}


@pytest.fixture
def make_data(tmp_path: Path, tokenizer: Tokenizer, write_rows, sentence) -> MakeData:
    def pairs(start: int, count: int, **labels) -> list[dict]:
        return [
            pair(sentence(i, 3), f"good {i}", f"bad {i} longer", **labels)
            for i in range(start, start + count)
        ]

    helpful = write_rows("helpful.jsonl", pairs(0, 30, rating=0, source="meta-helpful"))
    labels = {"chosen_safe": True, "rejected_safe": False, "is_safety": True, "source": "meta-safety"}
    safety = [
        write_rows("safety.jsonl", pairs(100, 40, **labels)),
        write_rows("open.jsonl", pairs(200, 20, source="open")),
    ]

    def make(**options) -> PreferenceDataModule:
        defaults = {"helpful": helpful, "safety": safety, "batch_size": 8, "cache_dir": str(tmp_path / "c")}
        data = PreferenceDataModule(str(tokenizer.path), **{**defaults, **options})
        data.setup()
        return data

    return make


def test_a_batch_is_chosen_rows_then_rejected_rows_of_the_same_prompts(
    make_data: MakeData, tokenizer: Tokenizer
) -> None:
    for batch in make_data().train_dataloader():
        assert isinstance(batch, PreferenceBatch)
        n = len(batch.rating)
        assert batch.tokens.shape[0] == len(batch.lengths) == len(batch.is_safe) == 2 * n
        assert batch.tokens.shape[1] % 8 == 0 and 0 <= batch.tokens.shape[1] - int(batch.lengths.max()) < 8
        texts = [
            tokenizer.decode(row[:length])
            for row, length in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
        ]
        for chosen, rejected in zip(texts[:n], texts[n:], strict=True):
            question, answer = chosen.split("[/INST]")
            assert answer.strip().startswith("good") and question == rejected.split("[/INST]")[0]
            assert rejected.split("[/INST]")[1].strip() == answer.strip().replace("good", "bad") + " longer"


def test_lengths_end_at_eos_and_padding_follows(make_data: MakeData) -> None:
    for batch in make_data().train_dataloader():
        for row, length in zip(batch.tokens, batch.lengths, strict=True):
            assert row[length - 1] == 2 and not row[length:].any() and row[:length].all()


def test_labels_stay_with_their_pair(make_data: MakeData) -> None:
    data = make_data(kind="all", default_rating=3)
    seen = Counter()
    for batch in data.train_dataloader():
        n = len(batch.rating)
        safe = batch.is_safe.reshape(2, n).T.tolist()
        for rating, (chosen, rejected), source in zip(
            batch.rating.tolist(), safe, batch.source.tolist(), strict=True
        ):
            key = (
                data.sources[source],
                rating,
                "?" if np.isnan(chosen) else int(chosen),
                "?" if np.isnan(rejected) else int(rejected),
            )
            seen[key] += 1
    assert seen == {
        ("meta-helpful", 0, "?", "?"): 30,
        ("meta-safety", 3, 1, 0): 40,
        ("open", 3, "?", "?"): 20,
    }


def test_held_out_pairs_without_a_rating_get_none(make_data: MakeData) -> None:
    data = make_data(kind="all", val_fraction=0.5, default_rating=3)
    ratings = {"meta-helpful": {0}, "meta-safety": {-1}, "open": {-1}}
    seen = {name: set() for name in ratings}
    for batch in data.val_dataloader():
        for rating, source in zip(batch.rating.tolist(), batch.source.tolist(), strict=True):
            seen[data.sources[source]].add(rating)
    assert seen == ratings


@pytest.mark.parametrize(
    ("kind", "pools"),
    [
        ("helpfulness", {"helpful": 30, "safety": 30}),
        ("safety", {"safety": 60, "helpful": 7}),  # 60 / 9 = 6.67
        ("all", {"helpful": 30, "safety": 60}),
    ],
)
def test_the_mixes_have_the_papers_shares(make_data: MakeData, kind: str, pools: dict) -> None:
    report = make_data(kind=kind).mix_report()
    assert report["pairs"] == pools
    assert report["shares"] == {pool: round(n / sum(pools.values()), 4) for pool, n in pools.items()}


def test_the_realised_shares_are_printed(make_data: MakeData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        data = make_data(kind="safety")
    # 7 of 67 are helpful: 0.1045; all 40 pairs of the one source and all 20 of the other take part
    report = {
        "pairs": {"helpful": 7, "safety": 60},
        "shares": {"helpful": 0.1045, "safety": 0.8955},
        "sources": {"meta-helpful": 7, "meta-safety": 40, "open": 20},
        "source_shares": {"meta-helpful": 0.1045, "meta-safety": 0.597, "open": 0.2985},
        "unrated": 60,
        "dropped": {},
    }
    assert data.mix_report() == report
    assert (
        "preference pairs: 7 helpful (10.4%), 60 safety (89.6%); of 7 meta-helpful (10.4%), 40 meta-safety (59.7%), "
        "20 open (29.9%); 60 without a rating; left out: none"
    ) in caplog.text


def test_pairs_up_to_a_batch_take_part_and_those_without_one_always(
    make_data: MakeData, write_rows, sentence
) -> None:
    rows = [pair(sentence(i, 3), "a", "b", batch=1 + i // 10, source=str(1 + i // 10)) for i in range(30)]
    rows += [pair(sentence(i, 3), "a", "b", source="open") for i in range(30, 35)]
    path = write_rows("batches.jsonl", rows)
    drawn = {"1": 10, "2": 10, "3": 10, "open": 5}
    for last, names in ((1, ["1", "open"]), (2, ["1", "2", "open"]), (None, list(drawn))):
        data = make_data(helpful=path, until_batch=last, kind="all", safety=None)
        assert data.mix_report()["sources"] == {name: drawn[name] for name in names}
    # the mix is drawn from what is there: 15 helpful pairs and as many of the 60 others, which have no batch
    assert make_data(helpful=path, until_batch=1).mix_report()["pairs"] == {"helpful": 15, "safety": 15}
    with pytest.raises(ValueError, match=r"data.until_batch is 0"):
        make_data(until_batch=0)


def test_the_rest_is_drawn_uniformly_and_by_the_seed() -> None:
    pool = np.array([0] * 10 + [1] * 40)
    draws = [choose_pairs(pool, "helpfulness", seed) for seed in range(400)]
    assert all(d[:10].tolist() == list(range(10)) and len(set(d.tolist())) == 20 for d in draws)
    times = np.bincount(np.concatenate([d[10:] for d in draws]), minlength=50)[10:]
    # each of 40 is drawn with probability 1/4: 100 +- 8.7 times in 400 draws
    assert times.min() > 60 and times.max() < 140
    assert choose_pairs(pool, "helpfulness", 3).tolist() == draws[3].tolist()


def test_a_mix_without_its_main_part_is_refused(make_data: MakeData) -> None:
    with pytest.raises(ValueError, match=r"data.kind is 'safety' and there is no usable pair in data.safety"):
        make_data(kind="safety", safety=None)


def test_long_contexts_lose_their_oldest_turns_in_both_rows_and_answers_stay_whole(
    make_data: MakeData, write_rows, sentence, tokenizer: Tokenizer
) -> None:
    turns = [sentence(1, 20), sentence(2, 20), sentence(3, 5), sentence(4, 5), "and now?"]
    answers = ["yes", "no, " + sentence(5, 6)]
    kept = Dialog.of([("user", turns[2]), ("assistant", turns[3]), ("user", turns[4])])
    expected = [encode_dialog(kept.then("assistant", answer), tokenizer).tokens for answer in answers]
    max_len = max(map(len, expected)) + 10
    path = write_rows("long.jsonl", [pair(turns, *answers), pair(sentence(6, 90), "a", "b")])
    data = make_data(helpful=path, safety=None, max_len=max_len)
    [batch] = list(data.train_dataloader())
    assert [row[:n].tolist() for row, n in zip(batch.tokens, batch.lengths, strict=True)] == expected
    assert data.mix_report()["dropped"] == {f"longer than max_len {max_len}": 1}


def test_equal_answers_teach_nothing_and_are_counted(make_data: MakeData, write_rows) -> None:
    path = write_rows("ties.jsonl", [pair("q", "same ", " same"), pair("q", "a", "b")])
    data = make_data(helpful=path, safety=None)
    assert data.mix_report()["pairs"] == {"helpful": 1} and sum(data.dropped.values()) <= 1


def test_every_pair_comes_once_per_epoch_in_another_order(make_data: MakeData) -> None:
    data = make_data(kind="all", epochs=2)
    assert data.num_train_batches == -(-180 // 8)
    order = [
        row for b in data.train_dataloader() for row in map(tuple, b.tokens[: len(b.rating), :20].tolist())
    ]
    assert len(set(order[:90])) == 90 and set(order[:90]) == set(order[90:]) and order[:90] != order[90:]


@pytest.mark.parametrize("world", [2, 4])
def test_all_ranks_together_see_the_pairs_of_one(make_data: MakeData, world: int) -> None:
    alone = list(make_data(kind="all").train_dataloader())
    ranks = []
    for rank in range(world):
        data = make_data(kind="all")
        data.ranks = lambda r=rank: (r, world)
        ranks.append(list(data.train_dataloader()))
        assert len(ranks[-1]) == -(-(90 - 90 % world) // 8)
    for n, batch in enumerate(alone[: len(ranks[0])]):
        lengths = [rank[n].lengths.reshape(2, -1) for rank in ranks]
        together = torch.stack(lengths, dim=2).flatten(1)
        pairs = together.shape[1]
        assert len(batch.rating) - world < pairs <= len(batch.rating)
        assert torch.equal(together, batch.lengths.reshape(2, -1)[:, :pairs])


def test_questions_are_held_out_with_all_their_continuations(
    make_data: MakeData, write_rows, sentence
) -> None:
    rows = [pair(sentence(i, 3), "a", "b") for i in range(40)]
    rows += [pair([sentence(i, 3), "x", "more?"], "a", "b") for i in range(40)]
    data = make_data(helpful=write_rows("multi.jsonl", rows), safety=None, val_fraction=0.3)

    def questions(loader) -> list[tuple]:
        return [tuple(row[: row.index(2)][:-3]) for b in loader for row in b.tokens[: len(b.rating)].tolist()]

    train, val = questions(data.train_dataloader()), questions(data.val_dataloader())
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        for one, other in zip(loader, data.val_dataloader(), strict=True):
            assert torch.equal(one.tokens, other.tokens)
    assert len(train) + len(val) == 80 and len(val) > 8
    assert data.mix_report()["pairs"]["helpful"] == len(train)


def test_real_pairs_of_hh_rlhf_are_read(make_data: MakeData, write_rows, shared_data: Path) -> None:
    file = next((shared_data / "preference" / "hh-rlhf" / "helpful-base").glob("test*.gz"))
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        path = write_rows("hh.jsonl", [json.loads(line) for line, _ in zip(lines, range(200), strict=False)])
    data = make_data(helpful=path, safety=None, max_len=500, tags="neutralise", val_fraction=0.1)
    report = data.mix_report()
    held_out = sum(len(batch.rating) for batch in data.val_dataloader())
    assert report["pairs"]["helpful"] > 140 and held_out > 5
    assert next(iter(data.train_dataloader())).tokens.shape[1] <= 504


def test_a_batch_says_how_its_rows_are_read_without_padding(
    make_data: MakeData, tokenizer, write_rows
) -> None:
    long = "one two three four five six seven eight nine ten " * 4
    rows = [pair(f"{long if i % 4 == 0 else 'short'} {i}", "yes", "no") for i in range(16)]
    data = make_data(helpful=write_rows("uneven.jsonl", rows), safety=None)
    for batch in data.train_dataloader():
        packed = batch.packing
        assert packed is not None and int((packed.document_ids >= 0).sum()) < int(batch.lengths.sum())
        assert packed.branches is not None, "the prompt of a pair is read once"
        assert len(packed.source) == int(batch.lengths.sum())
        places = [
            n * batch.tokens.shape[1] + t for n, length in enumerate(batch.lengths) for t in range(length)
        ]
        assert sorted(packed.source.tolist()) == places


def test_on_a_gpu_the_rows_of_a_batch_stay_whole(make_data: MakeData, write_rows) -> None:
    long = "one two three four five six seven eight nine ten " * 4
    rows = [pair(f"{long if i % 4 == 0 else 'short'} {i}", "yes", "no") for i in range(16)]
    data = make_data(helpful=write_rows("uneven.jsonl", rows), safety=None)
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    data.trainer = SimpleNamespace(strategy=strategy, distributed_sampler_kwargs=None)  # type: ignore[assignment]
    batches = data.train_batches()
    for n in range(len(batches)):
        packed = (batch := batches[n]).packing
        assert packed is not None and packed.branches is None
        assert packed.document_ids.shape[1] <= batch.tokens.shape[1]
        assert int((packed.document_ids >= 0).sum()) == int(batch.lengths.sum())


def test_a_negative_number_of_workers_is_refused(make_data: MakeData) -> None:
    with pytest.raises(ValueError, match=r"data\.num_workers is -1: give 0 or more"):
        make_data(num_workers=-1)


def test_pairs_are_encoded_once_for_reward_models_that_validate_on_others(
    make_data: MakeData, write_rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def counted(row, *arguments):
        encoded.append(row.source)
        return encode_pair(row, *arguments)

    monkeypatch.setattr("llama2_pl.data.pairs.encode_pair", counted)
    held_out = {
        name: write_rows(f"val_{name}.jsonl", [pair(f"{name}?", "a", "b", source=name)])
        for name in ("x", "open")
    }
    for name, path in held_out.items():
        data = make_data(kind="all", val=path)
        [batch] = list(data.val_dataloader())
        assert [data.sources[n] for n in batch.source] == [name]
        assert data.mix_report()["sources"] == {"meta-helpful": 30, "meta-safety": 40, "open": 20}
    assert Counter(encoded) == {"meta-helpful": 30, "meta-safety": 40, "open": 20 + 1, "x": 1}


def test_a_validation_file_without_a_row_is_refused(make_data: MakeData, write_rows) -> None:
    with pytest.raises(ValueError, match=r"data\.val: no usable pair in .*empty\.jsonl"):
        make_data(val=write_rows("empty.jsonl", []))
