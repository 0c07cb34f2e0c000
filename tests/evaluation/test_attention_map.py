"""What a model looks at: against transformers' attentions and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llama2_pl.checkpoints.hugging_face import to_hugging_face
from llama2_pl.evaluation.attention_map import in_bins, look_at_system, runs, strongest_attention
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text import Dialog, Tokenizer, encode_dialog, train_tokenizer
from llama2_pl.text.chat import system_tokens

DIALOG = Dialog.of(
    [
        ("system", "Always act as a cat."),
        ("user", "Where is the dog?"),
        ("assistant", "the dog ran"),
        ("user", "And the cat?"),
        ("assistant", "on the mat"),
    ]
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["Always act as a cat. Where is the dog? And the cat? the dog ran on the mat\n" * 9]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), vocab_size=290, num_threads=1)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    """Two layers, four query heads on two of keys, with weights large enough that the heads differ."""
    torch.manual_seed(0)
    size = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "max_seq_len": 128}
    model = LanguageModel(ModelConfig(**size, vocab_size=tokenizer.vocab_size)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8.0) if parameter.ndim == 2 else None
    return model


def test_the_strongest_weights_are_transformers_largest_over_layers_and_heads(model, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    to_hugging_face(model, tmp_path, None)
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = encode_dialog(DIALOG, tokenizer).tokens
    with torch.no_grad():
        layers = theirs(torch.tensor([tokens]), output_attentions=True).attentions
    assert len(layers) == 2 and layers[0].shape == (1, 4, len(tokens), len(tokens))
    expected = torch.stack([layer[0].amax(0) for layer in layers]).amax(0)
    found = strongest_attention(model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    # one head alone would not do: the largest is more than every single one
    assert all((expected - layer[0, head]).max() > 0.1 for layer in layers for head in range(4))


def test_no_hook_stays_behind(model: LanguageModel) -> None:
    strongest_attention(model, [1, 5, 9])
    with pytest.raises(ValueError, match="max_seq_len"):
        strongest_attention(model, [1] * 200)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_tokens_of_the_system_message_are_found(tokenizer: Tokenizer) -> None:
    tokens = encode_dialog(DIALOG, tokenizer).tokens
    span = system_tokens(DIALOG, tokenizer)
    assert tokenizer.decode(tokens[span.start : span.stop]) == "Always act as a cat."
    assert tokenizer.piece(tokens[span.start - 1]) == tokenizer.piece(tokens[span.stop]) == "<0x0A>"
    with pytest.raises(ValueError, match="no system message"):
        system_tokens(Dialog(DIALOG.messages[1:]), tokenizer)


def test_attention_by_turn_is_the_largest_from_the_positions_that_predict_the_answer(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    tokens, mask = encode_dialog(DIALOG, tokenizer)
    look = look_at_system(model, tokenizer, DIALOG)
    system = system_tokens(DIALOG, tokenizer)
    expected = []
    for answer in ("the dog ran ", "on the mat "):
        ids = tokenizer.encode(answer, eos=True)
        start = next(i for i in range(len(tokens)) if tokens[i : i + len(ids)] == ids and mask[i])
        positions = range(start - 1, start + len(ids) - 1)
        expected.append(max(look.strongest[t, s].item() for t in positions for s in system))
    assert look.by_turn == pytest.approx(expected) and expected[0] != pytest.approx(expected[1])


def test_runs_of_a_mask() -> None:
    assert runs([False, True, True, False, True]) == [range(1, 3), range(4, 5)]
    assert runs([True]) == [range(1)] and runs([False, False]) == []


def test_bins_hold_the_largest_weight_of_their_square() -> None:
    weights = torch.tensor([[1.0, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]])
    assert in_bins(weights, 2) == [[1.0, None], [pytest.approx(0.3, abs=1e-4), 0.5]]
    assert in_bins(weights, 3) == [[1.0]]


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_bins_of_any_size_are_those_of_a_loop(size: int) -> None:
    weights: Tensor = torch.rand(11, 11, generator=torch.Generator().manual_seed(0)).tril()
    rows = in_bins(weights, size)
    assert len(rows) == math.ceil(11 / size)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            across = range(j * size, min((j + 1) * size, 11))
            inside = [weights[t, s].item() for t in range(i * size, min((i + 1) * size, 11)) for s in across]
            assert value == (None if j > i else pytest.approx(max(inside), abs=1e-4))
