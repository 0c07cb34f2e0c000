"""The stages of the recipe as LightningModules. They wire the network, the objective and the Trainer; no maths."""

from llama2_pl.modules.dpo import DPOModule
from llama2_pl.modules.policy import Scored
from llama2_pl.modules.ppo import PPOModule
from llama2_pl.modules.pretrain import PretrainModule
from llama2_pl.modules.rejection_sampling import RejectionSamplingModule
from llama2_pl.modules.reward import RewardModule
from llama2_pl.modules.sft import SFTModule

__all__ = [
    "DPOModule",
    "PPOModule",
    "PretrainModule",
    "RejectionSamplingModule",
    "RewardModule",
    "SFTModule",
    "Scored",
]
