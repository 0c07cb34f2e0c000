"""The sampler against literal loops, brute force and known distributions."""

from __future__ import annotations

import pytest
import torch

from llama2_pl.generation.picking import nucleus, pick_tokens
from llama2_pl.generation.sampler import Rollout, _uniforms, generate, responses
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel

VOCABULARY, EOS = 61, 2
PROMPTS = [[1, 5, 9, 9, 30], [1, 7], [1, 40, 41, 42, 43, 44, 45, 46, 47], [1]]


@pytest.fixture(scope="module", params=["mha", "gqa"])
def model(request) -> LanguageModel:
    torch.manual_seed(0)
    kv_heads = 2 if request.param == "gqa" else None
    config = ModelConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=kv_heads,
        vocab_size=VOCABULARY,
        multiple_of=16,
        max_seq_len=64,
    )
    network = LanguageModel(config)
    with torch.no_grad():
        for weight in network.parameters():  # far from uniform, so that a wrong mask or position shows
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.1) + (weight.ndim == 1))
    return network.eval()


def literal_greedy(model: LanguageModel, prompt: list[int], max_new_tokens: int, eos_id: int) -> list[int]:
    """One row, no cache, no padding: the whole sequence through the model for every token."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] == eos_id:
            break
    return tokens[len(prompt) :]


def response_ids(rollout: Rollout) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(rollout.tokens, rollout.response_mask, strict=True)]


def always(distribution: torch.Tensor) -> LanguageModel:
    """A model that gives the same distribution (V,) everywhere."""
    config = ModelConfig(
        dim=16, n_layers=1, n_heads=2, vocab_size=len(distribution), multiple_of=16, max_seq_len=32
    )
    network = LanguageModel(config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        # The final norm of a zero vector is zero: lift one coordinate by the embedding, which no layer changes.
        network.backbone.get_parameter(_embedding_name(network)).fill_(1.0)
        for weight in network.backbone.parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
        network.head.weight.copy_(distribution.log()[:, None].expand(-1, 16) / 16)
    return network.eval()


def _embedding_name(network: LanguageModel) -> str:
    (name,) = [
        n for n, p in network.backbone.named_parameters() if p.shape == (network.config.vocab_size, 16)
    ]
    return name


def test_cached_greedy_equals_the_uncached_loop_for_mixed_lengths(model):
    rollout = generate(model, PROMPTS, max_new_tokens=20, eos_id=EOS, temperature=0)
    assert response_ids(rollout) == [literal_greedy(model, prompt, 20, EOS) for prompt in PROMPTS]


def test_greedy_equals_the_loop_when_rows_end_at_different_times(model):
    first = generate(model, PROMPTS, max_new_tokens=20, eos_id=EOS, temperature=0)
    # An id that greedy decoding reaches early in some rows ends them early: rows are dropped on the way.
    for eos in {int(row[4]) for row in (torch.tensor(ids) for ids in response_ids(first)) if len(row) > 4}:
        rollout = generate(model, PROMPTS, max_new_tokens=20, eos_id=eos, temperature=0)
        expected = [literal_greedy(model, prompt, 20, eos) for prompt in PROMPTS]
        assert response_ids(rollout) == expected
        assert rollout.finished.tolist() == [ids[-1] == eos for ids in expected]


def test_logprobs_are_those_of_a_full_forward_whatever_the_temperature(model):
    generator = torch.Generator().manual_seed(0)
    rollout = generate(
        model,
        PROMPTS,
        max_new_tokens=12,
        eos_id=EOS,
        temperature=1.7,
        top_p=0.8,
        samples_per_prompt=3,
        generator=generator,
    )
    for tokens, mask, logprobs, length in zip(
        rollout.tokens, rollout.response_mask, rollout.logprobs, rollout.lengths.tolist(), strict=True
    ):
        with torch.no_grad():
            full = model(tokens[None, :length]).float().log_softmax(-1)[0]
        at = mask.nonzero().squeeze(1)
        expected = full[at - 1, tokens[at]]
        assert torch.allclose(logprobs[at], expected, atol=1e-4)
        assert logprobs[~mask].eq(0).all()


def test_rows_are_prompt_major_and_hold_prompt_then_response(model):
    generator = torch.Generator().manual_seed(3)
    rollout = generate(
        model, PROMPTS, max_new_tokens=6, eos_id=EOS, samples_per_prompt=4, generator=generator
    )
    assert rollout.tokens.shape[0] == 16
    for row, (tokens, mask, length) in enumerate(
        zip(rollout.tokens, rollout.response_mask, rollout.lengths, strict=True)
    ):
        prompt = PROMPTS[row // 4]
        assert tokens[: len(prompt)].tolist() == prompt
        assert mask.nonzero().squeeze(1).tolist() == list(range(len(prompt), int(length)))
        assert tokens[int(length) :].eq(0).all()
    assert len({tuple(ids) for ids in response_ids(rollout)[:4]}) > 1  # samples of one prompt differ
    assert rollout.tokens.shape[1] == int(rollout.lengths.max())


def test_a_row_does_not_depend_on_the_other_prompts(model):
    def sample(prompts, **options):
        generator = torch.Generator().manual_seed(7)
        return response_ids(
            generate(
                model,
                prompts,
                max_new_tokens=15,
                eos_id=EOS,
                samples_per_prompt=2,
                generator=generator,
                **options,
            )
        )

    whole = sample(PROMPTS)
    assert sample(PROMPTS[:2]) == whole[:4]
    assert sample([PROMPTS[0], [1, 2, 3], [4, 5]])[:2] == whole[:2]
    assert sample(PROMPTS, max_batch=3) == whole
    assert sample(PROMPTS, max_batch=1) == whole


def test_chunks_give_the_same_rollout_in_the_same_order(model):
    def sample(max_batch):
        generator = torch.Generator().manual_seed(11)
        return generate(
            model,
            PROMPTS,
            max_new_tokens=9,
            eos_id=EOS,
            samples_per_prompt=3,
            generator=generator,
            max_batch=max_batch,
        )

    whole, parts = sample(None), sample(5)
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.lengths, parts.lengths)
    assert torch.allclose(whole.logprobs, parts.logprobs, atol=1e-4)


def test_the_seed_decides_the_samples(model):
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return response_ids(generate(model, PROMPTS, max_new_tokens=10, eos_id=EOS, generator=generator))

    assert sample(0) == sample(0) != sample(1)


def test_the_global_generator_is_used_when_none_is_given(model):
    torch.manual_seed(5)
    first = response_ids(generate(model, PROMPTS, max_new_tokens=10, eos_id=EOS))
    torch.manual_seed(5)
    assert response_ids(generate(model, PROMPTS, max_new_tokens=10, eos_id=EOS)) == first


@pytest.mark.parametrize("generators", [None, 1, 2], ids=["the global one", "one for all", "one for each"])
def test_uniforms_are_float32_also_where_bfloat16_is_the_default(generators):
    each = [torch.Generator().manual_seed(n) for n in range(generators or 0)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        uniforms = _uniforms(each if len(each) > 1 else each[0] if each else None, 2, 3, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert uniforms.dtype == torch.float32 and uniforms.shape == (6, 4)


def test_eos_counts_in_the_response_and_is_left_out_of_responses():
    network = always(torch.tensor([0.0001, 0.0001, 0.9997, 0.0001]))  # says EOS at once
    rollout = generate(network, [[1, 1], [1]], max_new_tokens=5, eos_id=EOS, temperature=0)
    assert rollout.lengths.tolist() == [3, 2]
    assert rollout.finished.tolist() == [True, True]
    assert response_ids(rollout) == [[EOS], [EOS]]
    assert responses(rollout) == [[], []]
    assert rollout.logprobs[0, 2].item() == pytest.approx(torch.tensor(0.9997).log().item(), abs=1e-4)


def test_a_row_cut_by_the_limit_is_not_finished_and_keeps_all_its_tokens():
    network = always(torch.tensor([0.1, 0.1, 0.1, 0.7]))
    rollout = generate(network, [[1, 1]], max_new_tokens=4, eos_id=EOS, temperature=0)
    assert responses(rollout) == [[3, 3, 3, 3]] and rollout.finished.tolist() == [False]
    assert rollout.lengths.tolist() == [6]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_frequencies_match_the_tempered_distribution(temperature):
    distribution = torch.tensor([0.30, 0.05, 0.0001, 0.25, 0.15, 0.2499])
    expected = distribution ** (1 / temperature) / (distribution ** (1 / temperature)).sum()
    generator = torch.Generator().manual_seed(0)
    rollout = generate(
        always(distribution),
        [[1]],
        max_new_tokens=1,
        eos_id=2,
        temperature=temperature,
        samples_per_prompt=20_000,
        generator=generator,
    )
    observed = rollout.tokens[:, 1].bincount(minlength=6).double()
    chi_square = ((observed - 20_000 * expected) ** 2 / (20_000 * expected)).sum().item()
    assert chi_square < 20.5  # 99.9 % quantile with 5 degrees of freedom


def brute_force_nucleus(row: list[float], top_p: float) -> list[float]:
    order = sorted(range(len(row)), key=lambda i: -row[i])
    kept, before = [0.0] * len(row), 0.0
    for i in order:
        if before <= top_p:
            kept[i] = row[i]
        before += row[i]
    return [value / sum(kept) for value in kept]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_nucleus_equals_brute_force(top_p):
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(20, 30, generator=generator)).softmax(-1).double()
    expected = torch.tensor(
        [brute_force_nucleus(row, top_p) for row in probabilities.tolist()], dtype=torch.float64
    )
    assert torch.allclose(nucleus(probabilities, top_p), expected)


def test_nucleus_keeps_the_token_that_crosses_top_p_by_hand():
    kept = nucleus(torch.tensor([[0.125, 0.5, 0.25, 0.125]], dtype=torch.float64), 0.6)
    assert kept.tolist() == [[0.0, pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0]]
    # mass before the third token is exactly 0.75: "at most" keeps it, and with it the first of the equal two
    kept = nucleus(torch.tensor([[0.125, 0.5, 0.25, 0.125]], dtype=torch.float64), 0.75)
    assert kept.tolist() == [[pytest.approx(1 / 7), pytest.approx(4 / 7), pytest.approx(2 / 7), 0.0]]


def test_tokens_outside_the_nucleus_are_never_sampled():
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log().expand(1000, 4)
    uniforms = torch.linspace(0, 1, 1001)[:-1]
    assert set(pick_tokens(logits, uniforms, 1.0, 0.6)[0].tolist()) == {1, 2}


def test_uniforms_map_to_tokens_by_the_cumulative_distribution():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]]).log()
    uniforms = torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75, 1 - 2**-24])
    assert pick_tokens(logits.expand(6, 5), uniforms, 1.0, 1.0)[0].tolist() == [0, 0, 2, 2, 3, 3]


def test_training_mode_and_gradients_are_as_before_afterwards(model):
    model.train()
    rollout = generate(model, PROMPTS, max_new_tokens=3, eos_id=EOS)
    assert model.training
    assert not rollout.tokens.is_inference() and not rollout.logprobs.requires_grad
    model(rollout.tokens).sum().backward()  # PPO trains on what was sampled
    model.zero_grad()
    model.eval()


def test_weights_changed_inside_autocast_are_seen():
    network = always(torch.tensor([0.1, 0.1, 0.1, 0.7]))
    with torch.autocast("cpu", torch.bfloat16):
        assert responses(generate(network, [[1]], max_new_tokens=1, eos_id=2, temperature=0)) == [[3]]
        with torch.no_grad():  # an optimizer step of a manual-optimization training_step
            network.head.weight.copy_(torch.tensor([0.1, 0.7, 0.1, 0.1]).log()[:, None].expand(-1, 16) / 16)
        assert responses(generate(network, [[1]], max_new_tokens=1, eos_id=2, temperature=0)) == [[1]]


def test_bfloat16_logprobs_are_near_those_of_float32(model):
    def sample(bf16):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return generate(model, PROMPTS, max_new_tokens=1, eos_id=EOS, temperature=0)

    exact, rough = sample(False), sample(True)
    assert rough.logprobs.dtype == torch.float32
    same = exact.tokens == rough.tokens
    assert torch.allclose(exact.logprobs[same], rough.logprobs[same], atol=0.2)
    assert not torch.equal(exact.logprobs, rough.logprobs)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([], {}, "no prompts"),
        ([[1] * 60], {}, r"prompt 0 has 60 tokens; with max_new_tokens 5 .* max_seq_len 64"),
        ([[1]], {"temperature": -1.0}, "temperature is -1.0"),
        ([[1]], {"top_p": 0.0}, "top_p is 0.0"),
        ([[1]], {"top_p": 1.5}, "top_p is 1.5"),
        ([[1]], {"samples_per_prompt": 0}, "samples_per_prompt is 0"),
        ([[1]], {"max_batch": 0}, "max_batch is 0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_bad_input_is_refused_with_its_value(model, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, **{"max_new_tokens": 5, "eos_id": EOS, **options})


def test_the_whole_context_can_be_filled(model):
    rollout = generate(model, [[1] * 60, [1] * 3], max_new_tokens=4, eos_id=-1, temperature=0)
    assert rollout.lengths.tolist() == [64, 7]


def test_with_a_generator_per_prompt_other_prompts_change_nothing():
    model = LanguageModel(ModelConfig.of("tiny")).eval()

    def sample(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rollout = generate(
            model, prompts, max_new_tokens=6, eos_id=2, samples_per_prompt=3, generator=generators
        )
        return responses(rollout)

    together = sample([[1, 5, 6], [1, 7], [1, 9, 9, 9]], [10, 11, 12])
    assert together[3:6] == sample([[1, 7]], [11])
    with pytest.raises(ValueError, match="2 generators for 1 prompts"):
        sample([[1, 7]], [1, 2])
