"""Rows that end are replaced, prompts are read once, and neither is seen in the result."""

from __future__ import annotations

import shutil
import weakref

import pytest
import torch

from llama2_pl.generation import batching, slots
from llama2_pl.generation.batching import PromptQueue
from llama2_pl.generation.decoder import Decoder
from llama2_pl.generation.sampler import Rollout, generate
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=61, multiple_of=16, max_seq_len=128
)
EOS = 2


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    network = LanguageModel(CONFIG)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim > 1 else 0.1) + (weight.ndim == 1))
    return network.eval()


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(3, 61, (n,), generator=generator).tolist() for n in lengths]


def sample(model: LanguageModel, **options) -> Rollout:
    asked = {"max_new_tokens": 60, "eos_id": EOS, "samples_per_prompt": 3, **options}
    return generate(model, prompts(7), generator=torch.Generator().manual_seed(4), **asked)


def same(found: Rollout, expected: Rollout) -> None:
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.lengths, expected.lengths)
    assert torch.equal(found.finished, expected.finished)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-4)


class Calls:
    """What a Decoder was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[int] = []
        self.rows: list[int] = []
        prefill, step = Decoder.prefill, Decoder.step

        def counted_prefill(decoder, tokens, lengths):
            self.prompts.append(len(tokens))
            return prefill(decoder, tokens, lengths)

        def counted_step(decoder, tokens, *rest):
            self.rows.append(len(tokens))
            return step(decoder, tokens, *rest)

        monkeypatch.setattr(Decoder, "prefill", counted_prefill)
        monkeypatch.setattr(Decoder, "step", counted_step)


@pytest.mark.parametrize("max_batch", [1, 2, 5, 16])
def test_places_are_filled_again_and_the_result_stays(model, max_batch, monkeypatch):
    whole = sample(model)
    calls = Calls(monkeypatch)
    same(sample(model, max_batch=max_batch), whole)
    assert sum(calls.prompts) == 7  # each once, however its three samples were divided
    # The first token comes from the prompt; each other one costs its row one step, and no ended row costs any.
    assert sum(calls.rows) == int(whole.response_mask.sum()) - 21
    assert max(calls.rows) == max_batch
    waits = -(-sum(calls.rows) // max_batch)
    assert len(calls.rows) <= waits + 60  # but for the last rows, which end alone, no place is empty for long


def test_rows_of_different_lengths_end_at_different_times(model):
    counts = sample(model).response_mask.sum(1)
    assert counts.min() < 10 < 59 < counts.max()  # what the other tests rely on


def test_fixed_sizes_and_steps_that_nobody_looks_at_change_nothing(model, monkeypatch):
    """What runs on a GPU, but for the recording of graphs."""
    expected = {size: sample(model, max_batch=size) for size in (5, 21)}
    monkeypatch.setattr(slots, "static_shapes", lambda device: True)
    calls = Calls(monkeypatch)
    for size, rollout in expected.items():
        same(sample(model, max_batch=size), rollout)
    assert set(calls.rows) <= {1, 2, 4, 5, 8, 16, 21}  # few sizes: each is a graph
    same(sample(model, max_batch=5, max_new_tokens=3), sample(model, max_new_tokens=3))


def test_graphs_keep_no_batch_alive(monkeypatch):
    class Step:
        def __call__(self, rows: int, width: int) -> None:
            seen.append((rows, width))

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    seen: list[tuple[int, int]] = []
    graphs, step = batching.StepGraphs(), Step()
    graphs(step, 4, 128)
    alive = weakref.ref(step)
    del step
    assert seen == [(4, 128)] and alive() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_graphs_give_what_the_cpu_gives(model, top_p):
    on_gpu = LanguageModel(CONFIG).cuda().eval()
    on_gpu.load_state_dict(model.state_dict())
    expected = sample(model, top_p=top_p)
    for max_batch in (None, 5):
        found = sample(on_gpu, top_p=top_p, max_batch=max_batch)
        same(Rollout(*(part.cpu() for part in found)), expected)


@pytest.mark.parametrize("how", ["as written", "compiled"])
def test_what_a_compiled_network_reads_is_the_same(model, how, monkeypatch):
    """Grouped queries, rows that end at different times, slots that grow."""
    if how == "compiled" and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    expected, calls = sample(model), []
    step = slots.write_and_read if how == "as written" else slots.compiled_step()
    monkeypatch.setattr(
        slots, "compiled_step", lambda: lambda *args: calls.append(args[0].shape) or step(*args)
    )
    monkeypatch.setattr(model.backbone, "compiled", True)
    same(sample(model), expected)
    same(sample(model, max_batch=5), expected)
    assert len({shape[0] for shape in calls}) > 3 and len({shape[2] for shape in calls}) > 1


def test_prompts_of_like_length_are_read_together_and_padding_is_bounded(model):
    queue = PromptQueue(Decoder(model, None, 8), [[3] * n for n in (40, 10, 11, 39, 38, 10)], samples=2)
    taken = [queue.take(100) for _ in range(2)]
    assert [len(prefilled.logits) for prefilled, _, _ in taken] == [3, 3] and not queue
    assert [rows.tolist() for _, _, rows in taken] == [[2, 3, 10, 11, 4, 5], [8, 9, 6, 7, 0, 1]]
    assert [tuple(prefilled.keys[0].shape) for prefilled, _, _ in taken] == [(3, 2, 11, 8), (3, 2, 40, 8)]


def test_no_more_tokens_are_read_at_once_than_the_limit_but_for_a_prompt_that_is_longer(model, monkeypatch):
    monkeypatch.setattr(batching, "PROMPT_TOKENS", 25)
    queue = PromptQueue(Decoder(model, None, 8), [[3] * n for n in (10, 10, 10, 30)], samples=1)
    taken = [queue.take(100)[0].keys[0].shape for _ in range(3)]
    assert [(shape[0], shape[2]) for shape in taken] == [(2, 10), (1, 10), (1, 30)] and not queue


def test_samples_that_find_no_place_wait_beside_what_was_read_of_their_prompt(model):
    queue = PromptQueue(Decoder(model, None, 8), [[3, 4], [5]], samples=3)
    taken = [queue.take(2) for _ in range(4)]
    assert [rows.tolist() for _, _, rows in taken] == [[3, 4], [5], [0, 1], [2]] and not queue
    assert taken[0][0] is taken[1][0] and taken[2][0] is taken[3][0]


def test_a_prompt_longer_than_the_slots_may_end_with_its_first_token(model, monkeypatch):
    short, long = [5] * 30, [6] * 34  # read together, and rows of the short one need 32 slots
    how = {"max_new_tokens": 4, "eos_id": 0, "temperature": 0.0}
    alone, pick, calls = generate(model, [short], **how), batching.pick_tokens, []

    def the_long_one_ends(logits, *rest):
        tokens, logprobs = pick(logits, *rest)
        tokens[-1] = tokens[-1] if calls else 0
        calls.append(len(tokens))
        return tokens, logprobs

    monkeypatch.setattr(batching, "pick_tokens", the_long_one_ends)
    both = generate(model, [short, long], **how)
    assert calls[:2] == [2, 1] and both.lengths.tolist() == [34, 35]
    assert both.tokens[0, :34].tolist() == alone.tokens[0].tolist()


def test_slots_follow_the_longest_row_up_and_down():
    kept = slots.Slots(2, 3, 1, 4, limit=150, dtype=torch.float32, device=torch.device("cpu"))
    sizes = []
    for width in (1, 32, 33, 120, 150, 90, 60, 140):
        kept.fit(width)
        sizes.append(kept.size)
    assert sizes == [32, 32, 64, 128, 150, 150, 64, 150]
