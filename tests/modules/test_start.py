"""Stages that start from a checkpoint take its architecture; one that is given is compared with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.loggers import CSVLogger

from llama2_pl.checkpoints.hugging_face import to_hugging_face
from llama2_pl.checkpoints.ours import language_model_config, load_language_model
from llama2_pl.model.heads import LanguageModel
from llama2_pl.modules import DPOModule, PretrainModule, RewardModule, SFTModule
from llama2_pl.modules.base import LlamaModule

STAGES = [PretrainModule, SFTModule, RewardModule]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled.*to save")


@pytest.fixture
def start(config, save, tmp_path):
    """A function: kind of checkpoint -> (the language model in it, its path)."""

    def write(kind: str = "file"):
        module = PretrainModule(config)
        path = save(module, "start.ckpt")
        if kind == "shards":
            path = tmp_path / "shards.ckpt"
            dcp.save({"state_dict": module.state_dict()}, checkpoint_id=path, no_dist=True)
            torch.save({"hyper_parameters": dict(module.hparams)}, path / "meta.pt")
        elif kind == "policy":
            policy, path = DPOModule("gone.ckpt", policy_backbone=config), str(tmp_path / "dpo.ckpt")
            policy.policy = module.model
            torch.save({"state_dict": policy.state_dict(), "hyper_parameters": dict(policy.hparams)}, path)
        elif kind == "hugging face":
            path = tmp_path / "hf"
            to_hugging_face(module.model, path)
        return module.model, str(path)

    return write


def batches(kind, make, number: int = 1) -> list:
    return [(make.pairs if kind is RewardModule else make.tokens)(seed=n) for n in range(number)]


@pytest.mark.parametrize("checkpoint", ["file", "shards", "policy", "hugging face"])
@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_without_a_backbone_has_that_of_its_start(
    kind, checkpoint, config, trainer, make, start, tmp_path
):
    model, path = start(checkpoint)
    module, logger = kind(init_from=path, lr=0.0, weight_decay=0.0), CSVLogger(tmp_path)
    trainer(max_steps=1, logger=logger).fit(module, make.loader(batches(kind, make)))
    assert module.model.config.differences(config) == []
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(module.model.backbone.state_dict()[name], value), name
    for kept in (module.hparams, logger.experiment.hparams):
        assert kept["backbone"]["dim"] == 32
    assert language_model_config(path).differences(config) == []


@pytest.mark.parametrize("kind", STAGES)
def test_metas_pickles_stay_refused_with_the_way_out(kind, trainer, make, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps({"dim": 32}))
    module = kind(init_from=str(tmp_path))
    with pytest.raises(ValueError, match="convert them once: llama2-pl export"):
        trainer(max_steps=1).fit(module, make.loader(batches(kind, make)))


@pytest.mark.parametrize("kind", STAGES)
def test_neither_backbone_nor_start_is_refused_at_once(kind):
    with pytest.raises(ValueError, match=r"backbone and model\.init_from are both missing: give"):
        kind()
    with pytest.raises(ValueError, match=r"nowhere\.ckpt: no such checkpoint"):
        kind(init_from="nowhere.ckpt").configure_model()


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("kind", STAGES)
def test_a_module_configured_by_hand_starts_from_its_file_and_a_saved_one_needs_it_no_more(
    kind, sized, config, trainer, make, start, tmp_path
):
    model, path = start()
    module = kind(backbone=config if sized else None, init_from=path, lr=0.0, weight_decay=0.0)
    module.configure_model()
    assert module.model.config == config and module.hparams["backbone"]["dim"] == 32
    for network in (module.model, fitted(module, trainer, batches(kind, make)).model):
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(network.backbone.state_dict()[name], value), name
    module.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    Path(path).unlink()
    again = kind.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert all(torch.equal(again.state_dict()[n], t) for n, t in module.state_dict().items())


def fitted(module, trainer, rows):
    trainer(max_steps=1).fit(module, torch.utils.data.DataLoader(rows, batch_size=None))
    return module


def test_a_subclass_may_collect_its_arguments_as_lightning_users_do(config, trainer, make, tmp_path):
    class Mine(PretrainModule):
        def __init__(self, alpha: float = 0.5, **options):
            super().__init__(**options)
            self.save_hyperparameters()

    module = fitted(Mine(alpha=0.9, backbone=config, lr=0.0), trainer, [make.tokens()])
    module.trainer.save_checkpoint(tmp_path / "mine.ckpt")
    again = Mine.load_from_checkpoint(tmp_path / "mine.ckpt")
    assert again.hparams["alpha"] == 0.9 and again.model.config == config
    assert load_language_model(tmp_path / "mine.ckpt").config == config


@pytest.mark.parametrize("kind", STAGES)
def test_a_longer_context_is_asked_for_alone_and_a_shorter_one_refused(
    kind, config, trainer, make, start, tmp_path
):
    """Llama 2 A.3.5. The rotation of the positions beyond the start's is that of a network built for them."""
    _, path = start()
    module, run = kind(init_from=path, max_seq_len=128), trainer(max_steps=1)
    run.fit(module, make.loader(batches(kind, make)))
    longer = replace(config, max_seq_len=128)
    built = kind(longer)
    built.configure_model()
    assert module.model.config == longer and module.hparams["backbone"] == longer.to_dict()
    assert torch.equal(module.model.backbone.rope.angles, built.model.backbone.rope.angles)
    run.save_checkpoint(tmp_path / "long.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "long.ckpt")
    assert loaded.model.config == longer
    with pytest.raises(
        ValueError, match=r"model\.max_seq_len is 64 and the checkpoint's model has 128: set it back"
    ):
        forgot, where = kind(init_from=path), str(tmp_path / "long.ckpt")
        trainer(max_steps=2).fit(forgot, make.loader(batches(kind, make)), ckpt_path=where)
    with pytest.raises(ValueError, match=r"its max_seq_len is 64 and this run asks for 32"):
        short = kind(init_from=path, max_seq_len=32)
        trainer(max_steps=1).fit(short, make.loader(batches(kind, make)))
    assert kind(config, max_seq_len=128).hparams["backbone"] == longer.to_dict()


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize(
    "older", [False, True], ids=["ours", "of a version that had to be given the backbone"]
)
def test_a_run_without_a_backbone_goes_on_exactly(kind, older, trainer, make, start, tmp_path):
    _, source = start()
    path, rows = tmp_path / "half.ckpt", batches(kind, make, 4)

    class SaveAt2(L.Callback):
        def on_train_batch_end(self, run, *_):
            if run.global_step == 2:
                run.save_checkpoint(path)

    L.seed_everything(0, verbose=False)
    whole = kind(init_from=source)
    trainer(max_steps=4, callbacks=[SaveAt2()]).fit(whole, make.loader(rows))
    if older:  # the same sizes as another file writes them
        content = torch.load(path)
        del content["hyper_parameters"]["max_seq_len"]
        content["hyper_parameters"]["backbone"] |= {"multiple_of": 2, "ffn_dim_multiplier": 96 / 85}
        torch.save(content, path)
    resumed = kind(init_from=source)
    trainer(max_steps=4).fit(resumed, make.loader(rows[2:] * 2), ckpt_path=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_what_a_stage_made_is_the_start_of_the_next_when_its_own_start_is_gone(
    config, trainer, make, start, tmp_path
):
    _, path = start("hugging face")
    run, made = trainer(max_steps=1), tmp_path / "sft.ckpt"
    run.fit(SFTModule(init_from=path), make.loader([make.tokens()]))
    run.save_checkpoint(made)
    (tmp_path / "hf").rename(tmp_path / "elsewhere")
    assert load_language_model(made).config.differences(config) == []
    trainer(max_steps=1).fit(RewardModule(init_from=str(made)), make.loader([make.pairs()]))


def test_a_users_module_without_hyper_parameters_is_configured_by_hand(config):
    class Plain(LlamaModule):
        def build_networks(self):
            self.model = self.fresh(LanguageModel, config)

    module = Plain()
    module.configure_model()
    assert module.model.config == config
