"""Lightning callbacks of the recipe; each works alone in any `L.Trainer`, and says so where a module
lacks what it needs. Installed as `llama2_pl.callbacks`."""

from llama2_pl.callbacks.carbon import CarbonFootprint
from llama2_pl.callbacks.compiled import CompiledBlocks
from llama2_pl.callbacks.doctor import PPODoctor
from llama2_pl.callbacks.early_stopping import HeldOutPromptEarlyStopping
from llama2_pl.callbacks.ghost_attention import GhostAttention
from llama2_pl.callbacks.guards import LossGuard
from llama2_pl.callbacks.kernels import CudaKernels
from llama2_pl.callbacks.preemption import PreemptionCheckpoint
from llama2_pl.callbacks.rewards import CheckpointReward, OracleReward, Reward
from llama2_pl.callbacks.strategy import FSDPStrategySelector, select_strategy
from llama2_pl.callbacks.strategy_plan import Plan, choose_plan

__all__ = [
    "CarbonFootprint",
    "CheckpointReward",
    "CompiledBlocks",
    "CudaKernels",
    "FSDPStrategySelector",
    "GhostAttention",
    "HeldOutPromptEarlyStopping",
    "LossGuard",
    "OracleReward",
    "PPODoctor",
    "Plan",
    "PreemptionCheckpoint",
    "Reward",
    "choose_plan",
    "select_strategy",
]
