"""Lightning callbacks of the recipe; each works alone in any `L.Trainer`. Installed as `llama2_pl.callbacks`."""

from llama2_pl.callbacks.carbon import CarbonFootprint, carbon_kg, table_2
from llama2_pl.callbacks.early_stopping import HeldOutPromptEarlyStopping
from llama2_pl.callbacks.ghost_attention import GhostAttention
from llama2_pl.callbacks.rewards import CheckpointReward
from llama2_pl.callbacks.strategy import FSDPStrategySelector, select_strategy
from llama2_pl.callbacks.strategy_plan import Plan, choose_plan

__all__ = [
    "CarbonFootprint",
    "CheckpointReward",
    "FSDPStrategySelector",
    "GhostAttention",
    "HeldOutPromptEarlyStopping",
    "Plan",
    "carbon_kg",
    "choose_plan",
    "select_strategy",
    "table_2",
]
