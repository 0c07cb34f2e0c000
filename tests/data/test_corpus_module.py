from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama2_pl.data import Batch, CorpusDataModule
from llama2_pl.data.loader import BatchLoader
from llama2_pl.text import Tokenizer

MakeData = Callable[..., CorpusDataModule]


@pytest.fixture
def make_data(tmp_path: Path, tokenizer: Tokenizer, write_rows, sentence) -> MakeData:
    web = write_rows("web/a.jsonl", [{"text": sentence(i, 30)} for i in range(80)])
    wiki = write_rows("wiki/a.jsonl", [{"text": sentence(1000 + i, 12)} for i in range(20)])
    sources = {
        "web": {"path": web, "weight": 3},
        "wiki": {"path": str(Path(wiki).parent / "*.jsonl"), "weight": 1},
    }

    def make(**options) -> CorpusDataModule:
        defaults = {"sources": sources, "seq_len": 48, "batch_size": 4, "num_batches": 6, "val_fraction": 0.1}
        return CorpusDataModule(
            tokenizer=str(tokenizer.path), cache_dir=str(tmp_path / "c"), **{**defaults, **options}
        )

    return make


def ready(data: CorpusDataModule, rank: int = 0, world: int = 1) -> CorpusDataModule:
    data.setup()
    data.ranks = lambda: (rank, world)
    return data


def batches(data: CorpusDataModule) -> list[Batch]:
    return list(data.train_dataloader())


def test_documents_are_bos_text_eos_and_first_tokens_are_no_targets(
    make_data: MakeData, tokenizer: Tokenizer, sentence
) -> None:
    data = ready(make_data(val_fraction=0.0))
    file = data.train_files["wiki"]
    assert file.document(3).tolist() == [1, *tokenizer.encode(sentence(1003, 12)), 2]
    for batch in batches(data):
        assert batch.tokens.shape == (4, 48)
        starts = torch.cat([torch.ones(4, 1, dtype=torch.bool), batch.document_ids.diff() != 0], dim=1)
        assert not batch.loss_mask[starts].any()
        assert batch.loss_mask[~starts].all()
        assert (batch.tokens[:, 1:][starts[:, 1:]] == 1).all()


def test_planted_held_out_documents_are_never_trained_on(make_data: MakeData, tokenizer: Tokenizer) -> None:
    data = ready(make_data(num_batches=60, val_batches=30))
    held_out = {tuple(f.document(i)[1:-1]) for f in data.val_files.values() for i in range(len(f))}
    trained = {tuple(f.document(i)[1:-1]) for f in data.train_files.values() for i in range(len(f))}
    assert held_out and len(held_out | trained) == 100 and not held_out & trained
    # each text begins with its own number, so its first eight tokens tell it
    heads = {document[:8] for document in held_out}
    for batch in data.train_dataloader():
        for row in batch.tokens.tolist():
            assert not heads & {tuple(row[i : i + 8]) for i in range(41)}


def test_validation_holds_held_out_text_only_and_is_the_same_each_time(make_data: MakeData) -> None:
    data = ready(make_data())
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        for one, other in zip(loader, data.val_dataloader(), strict=True):
            assert torch.equal(one.tokens, other.tokens)
    assert first and all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
    held_out = {int(t) for file in data.val_files.values() for t in file.tokens}
    assert {int(t) for batch in first for t in batch.tokens.flatten()} <= held_out


@pytest.mark.parametrize("world", [2, 4])
def test_all_ranks_together_see_the_batches_of_one(make_data: MakeData, world: int) -> None:
    alone = batches(ready(make_data()))
    ranks = [batches(ready(make_data(), rank, world)) for rank in range(world)]
    for n, batch in enumerate(alone):
        for name in Batch._fields:
            together = torch.stack([getattr(rank[n], name) for rank in ranks], dim=1).flatten(0, 1)
            assert torch.equal(together, getattr(batch, name))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(make_data: MakeData, num_workers: int) -> None:
    alone, with_workers = batches(ready(make_data())), batches(ready(make_data(num_workers=num_workers)))
    assert len(alone) == len(with_workers) == 6
    for a, b in zip(alone, with_workers, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("cuda", [True, False])
def test_batches_for_a_gpu_are_pinned_and_workers_prepare_them_ahead(
    make_data: MakeData, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    asked = []
    monkeypatch.setattr("llama2_pl.data.loader.DataLoader", lambda *_, **options: asked.append(options) or [])
    data = ready(make_data(num_workers=2))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)  # type: ignore[arg-type]
    assert [(options["pin_memory"], options["num_workers"]) for options in asked] == [(cuda, 2)] * 2


def test_another_seed_gives_other_batches_and_the_same_seed_the_same(make_data: MakeData) -> None:
    runs = [[b.tokens.tolist() for b in batches(ready(make_data(seed=s)))] for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_realised_shares_and_epochs_are_reported(make_data: MakeData) -> None:
    data = ready(make_data(num_batches=1000))
    ledger = data.ledger(1000)
    assert ledger["web"].sequences == 3000 and ledger["wiki"].share == 0.25
    assert ledger["wiki"].epochs == 1000 * 48 / len(data.train_files["wiki"].tokens)


def test_rows_come_from_their_source(make_data: MakeData) -> None:
    data = ready(make_data(val_fraction=0.0))
    source = data.train_batches()
    wiki = set(map(tuple, (data.train_files["wiki"].document(i)[:6] for i in range(20))))
    for s in range(40):
        row = source[s // 4].tokens[s % 4].tolist()
        starts = [tuple(row[i : i + 6]) for i in range(42) if row[i] == 1]
        assert all((start in wiki) == (source.mix.draw(s).source == 1) for start in starts)


def test_sources_of_equal_length_are_read_in_orders_of_their_own(
    make_data: MakeData, write_rows, sentence
) -> None:
    rows = [{"text": sentence(i, 30)} for i in range(40)]
    paths = [write_rows(f"{name}.jsonl", rows) for name in ("one", "two")]
    data = ready(make_data(sources={p: {"path": p} for p in paths}, val_fraction=0.0, num_batches=10))
    source = data.train_batches()
    taken: list[list[list[int]]] = [[], []]
    for s in range(40):
        taken[source.mix.draw(s).source].append(source[s // 4].tokens[s % 4].tolist())
    assert not any(one == two for one, two in zip(*taken, strict=False))


def test_a_second_setup_tokenises_nothing(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data().prepare_data()
    monkeypatch.setattr(Tokenizer, "encode", lambda *a, **k: pytest.fail("tokenised again"))
    began = time.perf_counter()
    data = make_data()
    data.prepare_data()
    data.setup()
    data.setup()
    assert time.perf_counter() - began < 0.5


def test_changed_files_and_options_are_tokenised_again(make_data: MakeData, write_rows, sentence) -> None:
    before = ready(make_data(val_fraction=0.0)).train_files["web"]
    write_rows("web/a.jsonl", [{"text": sentence(i, 30)} for i in range(81)])
    after = ready(make_data(val_fraction=0.0)).train_files["web"]
    assert (len(before), len(after)) == (80, 81)
    assert len(ready(make_data(val_fraction=0.5)).train_files["web"]) < 60


def test_a_source_is_read_up_to_its_limit(make_data: MakeData) -> None:
    file = ready(make_data(max_tokens_per_source=500, val_fraction=0.0)).train_files["web"]
    assert 500 <= len(file.tokens) < 500 + int(file.lengths.max())


def test_the_length_of_the_run_comes_from_the_trainer(make_data: MakeData, make_trainer) -> None:
    data = ready(make_data(num_batches=None))
    with pytest.raises(ValueError, match=r"data.num_batches is not set .* set trainer.max_steps"):
        _ = data.num_train_batches
    data.trainer = make_trainer(max_steps=7, accumulate_grad_batches=3)
    assert data.num_train_batches == 21


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({}, "data.sources is empty"),
        ({"web": {"weight": 1}}, r"data.sources.web: no path.*path and weight together"),
        ({"web": {"path": "x", "wieght": 1}}, r"data.sources.web: unknown key 'wieght'"),
    ],
)
def test_wrong_sources_are_refused_when_the_module_is_made(
    make_data: MakeData, sources: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make_data(sources=sources)


def test_missing_and_empty_sources_are_refused_by_name(make_data: MakeData, write_rows) -> None:
    with pytest.raises(ValueError, match=r"data.sources.web.path: no file matches '/nowhere/\*'"):
        make_data(sources={"web": {"path": "/nowhere/*"}}).setup()
    with pytest.raises(ValueError, match=r"data.sources.web: no text to train on"):
        make_data(sources={"web": {"path": write_rows("empty.jsonl", [{"text": " "}])}}).setup()


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(
    make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(batch_size=6)
    data.setup()
    ranks = {"num_replicas": 4, "rank": 0}
    monkeypatch.setattr(data, "trainer", SimpleNamespace(max_steps=1, distributed_sampler_kwargs=ranks))
    with pytest.raises(ValueError, match=r"data.batch_size is 6, .* over all devices.* give a multiple of 4"):
        data.train_dataloader()


def test_no_held_out_document_warns_and_gives_no_loader(make_data: MakeData) -> None:
    assert ready(make_data(val_fraction=0.0)).val_dataloader() == []
    with pytest.warns(UserWarning, match="holds out no document of web, wiki"):
        assert ready(make_data(val_fraction=1e-9)).val_dataloader() == []


def test_hyper_parameters_are_plain_and_rebuild_the_module(make_data: MakeData) -> None:
    data = make_data()
    again = CorpusDataModule(**data.hparams)
    assert dict(again.hparams) == dict(data.hparams)
    assert data.hparams["sources"]["web"] == {"path": data.sources["web"]["path"], "weight": 3}


def test_an_error_in_a_worker_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch waits this long for a worker that has raised; 5 seconds as it comes
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)

    class Broken:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, n: int) -> Batch:
            raise OSError(5, "Input/output error", "tokens.bin")

    with pytest.raises(OSError, match=r"Input/output error.*tokens.bin"):
        list(BatchLoader(Broken(), num_workers=1))
    gc.collect()


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"seq_len": 1},
        {"num_batches": 0},
        {"val_fraction": 1.0},
        {"val_batches": -1},
        {"num_workers": -1},
    ],
)
def test_options_without_meaning_are_refused_by_name(make_data: MakeData, option: dict) -> None:
    with pytest.raises(
        ValueError, match=rf"data\.{next(iter(option))} is {next(iter(option.values()))}: give"
    ):
        make_data(**option)


def test_lightnings_default_of_a_thousand_epochs_warns(make_data: MakeData, make_trainer) -> None:
    data = ready(make_data())
    for options, warns in (({}, True), ({"max_epochs": 1}, False), ({"max_steps": 5}, False)):
        data.trainer = make_trainer(**options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data.train_dataloader()
        assert any("set Trainer(max_epochs=1)" in str(w.message) for w in caught) == warns
