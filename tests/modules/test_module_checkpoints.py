"""A checkpoint of each module: plain types, and enough to rebuild it."""

from __future__ import annotations

import pytest
import torch

from llama2_pl.checkpoints.ours import load_language_model, load_reward_model
from llama2_pl.modules import (
    DPOModule,
    PPOModule,
    PretrainModule,
    RejectionSamplingModule,
    RewardModule,
    SFTModule,
)

TOKENS = torch.tensor([[1, 20, 30, 40, 50]])


@pytest.fixture
def trained(config, trainer, make, save, tokenizer_path, tmp_path):
    """A function: module class -> (module after a step, path of its checkpoint). Input files are gone then."""

    def train(kind):
        sources = [save(PretrainModule(config), "policy.ckpt"), save(RewardModule(config), "reward.ckpt")]
        files = {"policy": sources[0], "helpfulness_reward": sources[1], "tokenizer": tokenizer_path}
        path, run = str(tmp_path / "it.ckpt"), trainer(max_epochs=1, max_steps=1)
        if kind is RejectionSamplingModule:
            module = kind(**files, out=str(tmp_path / "out"), samples_per_prompt=2, max_new_tokens=3)
            run.predict(module, make.loader([make.prompts(2)]))
        elif kind is PPOModule:
            module = kind(**files, max_new_tokens=3)
            run.fit(module, make.loader([make.prompts(2)]))
        elif kind is DPOModule:
            module = kind(files["policy"])
            run.fit(module, make.loader([make.pairs(2)]))
        elif kind is RewardModule:
            module = kind(init_from=sources[0])
            run.fit(module, make.loader([make.pairs(2)]))
        else:
            module = kind(init_from=sources[0])
            run.fit(module, make.loader([make.tokens()]))
        run.save_checkpoint(path)
        for source in sources:
            (tmp_path / source).unlink()
        return module, path

    return train


@pytest.mark.parametrize(
    "kind", [PretrainModule, SFTModule, RewardModule, DPOModule, PPOModule, RejectionSamplingModule]
)
def test_load_from_checkpoint_needs_the_path_alone(kind, trained):
    module, path = trained(kind)
    loaded = kind.load_from_checkpoint(path)
    arguments = (TOKENS, torch.tensor([5])) if kind is RewardModule else (TOKENS,)
    assert torch.equal(loaded(*arguments), module(*arguments))
    if kind is PPOModule:
        assert torch.equal(loaded.value(TOKENS), module.value(TOKENS))
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"] == dict(loaded.hparams)
    assert "_instantiator" not in content["hyper_parameters"]


@pytest.mark.parametrize("kind", [SFTModule, DPOModule, PPOModule])
def test_the_language_model_is_found_in_a_checkpoint(kind, trained):
    module, path = trained(kind)
    assert torch.equal(load_language_model(path)(TOKENS), module(TOKENS))


def test_the_reward_model_is_found_in_a_checkpoint(trained):
    module, path = trained(RewardModule)
    assert torch.equal(load_reward_model(path)(TOKENS)[:, 4], module(TOKENS, torch.tensor([5])))


def test_weights_come_to_a_module_whose_networks_other_processes_built(config):
    trained, here = PretrainModule(config), PretrainModule(config)
    trained.configure_model()
    here.load_state_dict(trained.state_dict(), strict=False)  # as Lightning's launchers of notebooks
    assert torch.equal(here.model.head.weight, trained.model.head.weight)


def test_a_policy_module_without_trainer_or_checkpoint_says_what_it_lacks(tokenizer_path):
    module = PPOModule("nowhere.ckpt", "nowhere.ckpt", tokenizer_path)
    with pytest.raises(ValueError, match="policy_backbone is not known"):
        module.configure_model()


def test_a_subclass_keeps_the_hyper_parameters_of_both(config, trainer, make, tmp_path):
    class Mine(PretrainModule):
        def __init__(self, momentum: float = 0.5, **arguments) -> None:
            super().__init__(**arguments)
            self.save_hyperparameters({"momentum": momentum})

        def configure_optimizers(self):
            return torch.optim.SGD(
                self.parameters(), lr=self.hparams["lr"], momentum=self.hparams["momentum"]
            )

    run, path = trainer(max_steps=1), str(tmp_path / "mine.ckpt")
    run.fit(Mine(momentum=0.7, backbone=config, lr=0.1), make.loader([make.tokens()]))
    run.save_checkpoint(path)
    loaded = Mine.load_from_checkpoint(path)
    assert (loaded.hparams["momentum"], loaded.hparams["lr"]) == (0.7, 0.1)
