"""The backbone and its heads against transformers' Llama, numbers by hand, and its own full forward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from llama2_pl.checkpoints.keys import entries
from llama2_pl.model import layers
from llama2_pl.model.attention import attend
from llama2_pl.model.config import PRESETS, ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.layers import RMSNorm, RoPE, rotate
from llama2_pl.model.transformer import positions_in_documents

GQA = ModelConfig(dim=48, n_layers=3, n_heads=6, n_kv_heads=2, vocab_size=61, multiple_of=8, max_seq_len=64)
MHA = ModelConfig(dim=48, n_layers=3, n_heads=6, vocab_size=61, multiple_of=8, max_seq_len=64)


def lively(config: ModelConfig = GQA) -> LanguageModel:
    """A model whose logits are of size 1 and more, with gains that are not 1."""
    torch.manual_seed(0)
    model = LanguageModel(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 1.5 / math.sqrt(parameter.shape[1]))
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def tokens(batch: int = 2, time: int = 20) -> Tensor:
    return torch.randint(61, (batch, time), generator=torch.Generator().manual_seed(1))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    # 7B, 13B and 70B: the sizes of the released weights. 34B: Code Llama 34B's.
    [("7B", 6_738_415_616), ("13B", 13_015_864_320), ("34B", 33_743_970_304), ("70B", 68_976_648_192)],
)
def test_parameter_counts_are_those_of_the_release(name: str, count: int) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = LanguageModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert config.num_parameters() == count


@pytest.mark.parametrize(
    ("config", "hidden"),
    # 34M by hand: int(8 * 512 / 3) = 1365, and 43 * 32 = 1376
    [("7B", 11008), ("13B", 13824), ("34B", 22016), ("70B", 28672), ("34M", 1376)],
)
def test_ffn_hidden_sizes_are_those_of_the_release(config: str, hidden: int) -> None:
    assert PRESETS[config].ffn_hidden == hidden


@pytest.mark.parametrize(
    ("config", "time"),
    [(MHA, 20), (GQA, 20), (ModelConfig.of({**GQA.to_dict(), "max_seq_len": 1024}), 1024)],
    ids=["MHA", "GQA", "a thousand positions"],
)
def test_logits_equal_those_of_transformers(config: ModelConfig, time: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = lively(config)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=48,
            intermediate_size=config.ffn_hidden,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=1e-5,
            max_position_embeddings=config.max_seq_len,
        )
    ).eval()
    weights = ours.state_dict()
    theirs.load_state_dict({entry.hugging_face: weights[entry.ours] for entry in entries(3)})
    with torch.no_grad():
        expected = theirs(tokens(2, time)).logits
    assert expected.std() > 0.5
    close(ours(tokens(2, time)), expected)


def test_future_tokens_do_not_change_past_logits() -> None:
    model, first = lively(), tokens()
    second = first.clone()
    second[:, 12:] = (second[:, 12:] + 1) % 61
    before, after = model(first), model(second)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.isclose(before[:, 12:], after[:, 12:]).all()


@pytest.mark.parametrize("also", [(), ("positions",), ("document_ids",)])
def test_branches_need_documents_and_positions(also: tuple[str, ...]) -> None:
    given = dict.fromkeys(("branches", *also), torch.zeros(2, 20, dtype=torch.int64))
    with pytest.raises(ValueError, match="branches without document_ids and positions: give both"):
        lively()(tokens(), **given)


def test_more_tokens_than_positions_are_refused_and_given_positions_are_not() -> None:
    model, ids = lively(), tokens(1, 65)
    with pytest.raises(ValueError, match="65 tokens and max_seq_len is 64"):
        model(ids)
    assert model(ids, positions=torch.arange(65)[None] % 64).isfinite().all()


def test_plain_causal_attention_gets_no_mask_and_packed_rows_one_for_all_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks: list[Tensor | None] = []

    def watched(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        masks.append(mask)
        return attend(queries, keys, values, mask)

    monkeypatch.setattr(layers, "attend", watched)
    model = lively()
    model(tokens())
    assert masks == [None] * 3
    masks.clear()
    model(tokens(), document_ids=torch.zeros(2, 20))
    assert masks[0] is not None and masks[0] is masks[1] is masks[2]
    assert masks[0].shape == (2, 1, 20, 20) and masks[0].dtype == torch.bool


def test_a_tree_gives_each_branch_what_its_row_alone_gives() -> None:
    model, trunk = lively(), tokens(1, 7)[0]
    leaves = [torch.tensor([5, 9, 11]), torch.tensor([8]), torch.tensor([5, 3])]
    row = torch.cat([trunk, *leaves, torch.zeros(3, dtype=torch.int64)])[None]
    ids = torch.tensor([13 * [0] + 3 * [-1]])
    branches = torch.tensor([7 * [0] + 3 * [1] + [2] + 2 * [3] + 3 * [0]])
    positions = torch.tensor([[*range(10), 7, 7, 8, 0, 1, 2]])
    found = model(row, positions=positions, document_ids=ids, branches=branches)[0]
    assert found.isfinite().all()
    start = len(trunk)
    for leaf in leaves:
        alone = model(torch.cat([trunk, leaf])[None])[0]
        close(found[: len(trunk)], alone[: len(trunk)])
        close(found[start : start + len(leaf)], alone[len(trunk) :])
        start += len(leaf)


def test_documents_do_not_see_each_other_and_positions_restart() -> None:
    model, ids = lively(), tokens(1, 14)
    document_ids = torch.tensor([[0] * 6 + [1] * 5 + [-1] * 3])
    packed = model(ids, document_ids=document_ids)
    close(packed[:, :6], model(ids[:, :6]))
    close(packed[:, 6:11], model(ids[:, 6:11]))
    changed = ids.clone()
    changed[:, :6] = (changed[:, :6] + 1) % 61
    assert torch.equal(model(changed, document_ids=document_ids)[:, 6:], packed[:, 6:])


def test_positions_restart_with_each_document() -> None:
    ids = torch.tensor([[3, 3, 3, 5, 5, 3, -1, -1], [0, 1, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert positions_in_documents(ids).tolist() == expected


def test_rows_of_padding_only_give_no_nan() -> None:
    model, ids = lively(), tokens()
    assert model(ids, document_ids=torch.full((2, 20), -1)).isfinite().all()


def test_rope_turns_pair_i_and_i_plus_half_by_position_times_theta_to_the_minus_2i_over_k() -> None:
    rope = RoPE(ModelConfig(dim=4, n_layers=1, n_heads=1, vocab_size=4, rope_theta=100.0, max_seq_len=8))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    # K = 4: pair (0, 2) turns by the position, pair (1, 3) by position * 100 ** -0.5 = position / 10
    at = 3
    c0, s0, c1, s1 = math.cos(at), math.sin(at), math.cos(at / 10), math.sin(at / 10)
    expected = torch.tensor([1 * c0 - 3 * s0, 2 * c1 - 4 * s1, 3 * c0 + 1 * s0, 4 * c1 + 2 * s1])
    found = rotate(x.expand(1, 1, 1, 4), rope(torch.tensor([[at]])))
    torch.testing.assert_close(found.flatten(), expected)


def test_rope_stays_fp32_when_the_model_becomes_bf16() -> None:
    model = LanguageModel(GQA)
    before = model.backbone.rope.angles.clone()
    model.bfloat16()
    assert model.head.weight.dtype == torch.bfloat16
    assert torch.equal(model.backbone.rope.angles, before)
    assert "backbone.rope.angles" not in model.state_dict()


def test_under_bf16_autocast_attention_is_bf16_and_its_rotation_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(
        layers, "attend", lambda *args: seen.extend(x.dtype for x in args[:3]) or attend(*args)
    )
    model, ids = lively(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids)
        rotation = model.backbone.rope(torch.tensor([[63]]))
    assert set(seen) == {torch.bfloat16} and rotation.cos.dtype == logits.dtype == torch.float32
    assert (logits - model(ids)).abs().max() < 0.3  # of a spread of 1.5


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(2, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    # mean square (9 + 16) / 2 = 12.5, with eps 13
    expected = torch.tensor([3 / math.sqrt(13), 40 / math.sqrt(13)])
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), expected)


def test_rms_norm_rounds_to_its_inputs_type_before_the_gain() -> None:
    norm = RMSNorm(64, eps=1e-5)
    torch.manual_seed(0)
    x, gain = torch.randn(64).bfloat16(), torch.rand(64).bfloat16() + 0.5
    norm.weight.data = gain.float()
    wide = x.float() * torch.rsqrt(x.float().square().mean() + 1e-5)
    assert torch.equal(norm(x), wide.bfloat16() * gain)
    assert not torch.equal(norm(x), (wide * gain.float()).bfloat16())  # the other order rounds otherwise


def test_rms_norm_gives_matrix_products_under_autocast_what_they_would_make_of_it() -> None:
    norm, matrix, x = RMSNorm(64, eps=1e-5), layers.Linear(64, 8), torch.randn(4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = norm(x)
        assert given.dtype == torch.bfloat16
        assert torch.equal(matrix(given), matrix(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)))
    assert norm(x).dtype == torch.float32


def test_a_meta_model_is_initialised_by_the_parts_that_own_tensors_in_any_order() -> None:
    # Lightning visits parents first and asks only modules with parameters or buffers of their own.
    with torch.device("meta"):
        model = LanguageModel(WIDE)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        nn.init.constant_(tensor, torch.nan)
    for module in model.modules():
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            module.reset_parameters()  # type: ignore[operator]
    assert torch.equal(model.backbone.rope.angles, RoPE(WIDE).angles)
    check_initial_spread(model)


def test_initial_weights_have_std_002_and_residual_outputs_less_by_root_of_twice_the_depth() -> None:
    check_initial_spread(LanguageModel(WIDE))


def test_a_backbone_is_initialised_anew_by_one_call() -> None:
    model = lively(WIDE)
    model.backbone.reset_parameters()
    model.head.reset_parameters()
    check_initial_spread(model)


WIDE = ModelConfig(dim=128, n_layers=8, n_heads=4, vocab_size=256)


def check_initial_spread(model: LanguageModel) -> None:
    expected = {
        **dict.fromkeys(("wq", "wk", "wv", "w1", "w3"), 0.02),
        **dict.fromkeys(("wo", "w2"), 0.005),
        "embedding": 0.02,
        "head": 0.02,
    }  # sqrt(16) = 4
    for name, parameter in model.named_parameters():
        key = name.split(".")[-2]
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones(128)), name
        else:
            assert parameter.std().item() == pytest.approx(expected[key], rel=0.05), name


def test_every_parameter_gets_a_gradient() -> None:
    model = lively().requires_grad_(True)
    model(tokens()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("how", ["as written", "recomputed", "compiled"])
@pytest.mark.parametrize("packed", [False, True])
def test_states_at_some_places_are_those_of_all(packed: bool, how: str) -> None:
    """And so are the gradients; a place may be named twice, as the end of a prompt with two answers."""
    model, at = lively().requires_grad_(True), torch.tensor([3, 39, 3, 20])
    # Compiled blocks see no places, which the flag alone shows.
    model.backbone.compiled = how == "compiled"
    for block in model.backbone.layers:
        block.recompute = how == "recomputed"
    ids = tokens()
    documents = (torch.arange(20) // 7).expand(2, -1) if packed else None
    gradients = []
    for states in (
        model.hidden(ids, document_ids=documents).flatten(0, 1)[at],
        model.hidden(ids, document_ids=documents, at=at),
    ):
        assert states.shape == (4, model.config.dim)
        (states * torch.arange(1, 5)[:, None]).square().sum().backward()
        gradients.append([states.detach(), *(p.grad.clone() for p in model.backbone.parameters())])
        model.zero_grad()
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_hidden_states_are_what_the_head_reads() -> None:
    model = lively()
    assert torch.equal(model.head(model.hidden(tokens())), model(tokens()))
    assert model.bfloat16()(tokens()).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 5}, "dim 48 is not divisible by n_heads 5"),
        ({"n_heads": 16}, "dim / n_heads is 3"),
        ({"n_kv_heads": 4}, "n_kv_heads 4 does not divide n_heads 6"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
        ({"ffn_dim_multiplier": -1.0}, "ffn_dim_multiplier is -1.0"),
        ({"depth": 3}, "unknown model key 'depth'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.of({**GQA.to_dict(), **change})


def test_a_config_is_made_of_itself_its_dict_or_a_presets_name() -> None:
    assert ModelConfig.of(GQA) is GQA
    assert ModelConfig.of(GQA.to_dict()) == GQA
    assert ModelConfig.of("tiny") == PRESETS["tiny"]
    with pytest.raises(ValueError, match="no preset '8B'; there are 7B, 13B, 34B, 70B"):
        ModelConfig.of("8B")
    with pytest.raises(ValueError, match="model key 'n_heads' is missing"):
        ModelConfig.of({"dim": 8, "n_layers": 1})


@pytest.mark.parametrize("change", [{"rope_theta": 50.0}, {"norm_eps": 0.1}], ids=["rope_theta", "norm_eps"])
def test_each_number_of_the_config_changes_the_logits(change: dict) -> None:
    plain = lively()
    other = LanguageModel(ModelConfig.of({**GQA.to_dict(), **change}))
    other.load_state_dict(plain.state_dict())
    assert not torch.allclose(other(tokens()), plain(tokens()), atol=1e-2)
