"""Our Lightning checkpoints: loaded as networks, exported as a folder."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.utils.data import DataLoader

from llama2_pl.checkpoints.networks import check_tensors
from llama2_pl.checkpoints.ours import export_checkpoint, load_language_model, load_reward_model
from llama2_pl.data.batches import Batch
from llama2_pl.model.config import PRESETS, ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.modules.sft import SFTModule

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, multiple_of=16, max_seq_len=32
)
TOKENS = torch.arange(20).view(2, 10) * 7 % 50

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled.*to save"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SFTModule]:
    """A step of SFT through a Trainer, saved by it."""
    batch = Batch(
        TOKENS, torch.ones_like(TOKENS, dtype=torch.bool), torch.zeros_like(TOKENS, dtype=torch.int32)
    )
    module = SFTModule(CONFIG, lr=0.1, min_warmup_steps=1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("sft") / "last.ckpt"
    trainer.save_checkpoint(path)
    return path, module


def saved(path: Path, weights: dict[str, torch.Tensor], hyper_parameters: dict) -> Path:
    torch.save({"state_dict": weights, "hyper_parameters": hyper_parameters}, path)
    return path


def prefixed(prefix: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def test_a_checkpoint_of_the_trainer_becomes_the_network_that_was_trained(trained: tuple) -> None:
    path, module = trained
    model = load_language_model(path)
    assert model.config == CONFIG
    assert torch.equal(model(TOKENS), module.model(TOKENS))


def test_an_exported_checkpoint_computes_the_same(trained: tuple, tmp_path: Path) -> None:
    path, module = trained
    export_checkpoint(str(path), str(tmp_path / "deep" / "out"))
    assert torch.equal(load_language_model(tmp_path / "deep" / "out")(TOKENS), module.model(TOKENS))


def test_policy_and_value_network_come_out_of_one_ppo_checkpoint(tmp_path: Path) -> None:
    policy, value = LanguageModel(CONFIG), ScalarModel(PRESETS["tiny"])
    weights = prefixed("policy.", policy) | prefixed("value.", value) | prefixed("reference.", policy)
    hyper_parameters = {"policy_backbone": CONFIG.to_dict(), "value_backbone": PRESETS["tiny"].to_dict()}
    path = saved(tmp_path / "ppo.ckpt", weights, hyper_parameters)
    assert torch.equal(load_language_model(path)(TOKENS), policy(TOKENS))
    assert torch.equal(load_reward_model(path)(TOKENS), value(TOKENS))


def test_a_reward_model_is_not_a_language_model(tmp_path: Path) -> None:
    weights = prefixed("model.", ScalarModel(CONFIG))
    path = saved(tmp_path / "reward.ckpt", weights, {"backbone": CONFIG.to_dict()})
    assert load_reward_model(path).config == CONFIG
    with pytest.raises(ValueError, match=r"reward\.ckpt: this is a reward model; give a language model"):
        load_language_model(path)


def sharded(folder: Path, model: torch.nn.Module) -> Path:
    """A folder as ModelParallelStrategy writes it, of one process: tensors beside the optimizer's, then meta.pt."""
    weights = prefixed("model.", model)
    moments = {"state": {name: {"step": torch.tensor(1.0), "exp_avg": t} for name, t in weights.items()}}
    dcp.save({"state_dict": weights, "optimizer_0": moments}, checkpoint_id=folder, no_dist=True)
    torch.save({"hyper_parameters": {"backbone": CONFIG.to_dict()}, "global_step": 1}, folder / "meta.pt")
    return folder


def test_a_sharded_checkpoint_is_read_by_one_process(tmp_path: Path) -> None:
    model = LanguageModel(CONFIG)
    assert torch.equal(load_language_model(sharded(tmp_path / "a.ckpt", model))(TOKENS), model(TOKENS))
    scores = ScalarModel(CONFIG)
    folder = sharded(tmp_path / "b.ckpt", scores)
    assert torch.equal(load_reward_model(folder)(TOKENS), scores(TOKENS))
    with pytest.raises(ValueError, match=r"b\.ckpt: this is a reward model"):
        load_language_model(folder)


def test_a_sharded_checkpoint_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a.ckpt", LanguageModel(CONFIG))
    (folder / "meta.pt").unlink()  # Lightning writes it last
    with pytest.raises(ValueError, match=r"nor meta\.pt and \.metadata"):
        load_language_model(folder)


def test_missing_and_left_over_weights_are_named(tmp_path: Path) -> None:
    weights = prefixed("model.", LanguageModel(CONFIG))
    hyper_parameters = {"backbone": CONFIG.to_dict()}
    more = saved(tmp_path / "more.ckpt", {**weights, "model.lora": torch.ones(2)}, hyper_parameters)
    with pytest.raises(ValueError, match=r"more\.ckpt: lora \[2\] has no place"):
        load_language_model(more)
    del weights["model.backbone.norm.weight"]
    with pytest.raises(ValueError, match=r"less\.ckpt: backbone\.norm\.weight is missing"):
        load_language_model(saved(tmp_path / "less.ckpt", weights, hyper_parameters))


@pytest.mark.parametrize("kind", ["garbage", "truncated", "a class in it"])
def test_a_file_that_cannot_be_read_safely_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.ckpt", {}, {"folder": tmp_path} if kind == "a class in it" else {"lr": 1.0})
    if kind != "a class in it":
        path.write_bytes(b"garbage" if kind == "garbage" else path.read_bytes()[:-99])
    with pytest.raises(ValueError, match=r"odd\.ckpt: (not a readable weights file|damaged or cut short)"):
        load_language_model(path)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_language_model(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"neither config\.json"):
        load_language_model(tmp_path)
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a Lightning checkpoint"):
        load_language_model(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no 'backbone' in its hyper-parameters"):
        load_language_model(saved(tmp_path / "foreign.ckpt", {}, {"lr": 1.0}))


@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [(1, 512, "this is a reward model; give a language model"), (512, 1, "this is a language model; give a")],
)
def test_a_model_of_the_other_kind_is_called_what_it_is(found: int, expected: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_tensors(Path("x.ckpt"), {"head.weight": (expected, 32)}, {"head.weight": (found, 32)})
