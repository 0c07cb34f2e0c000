"""The ranges of the modules' numbers: one that no run can want is refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """What a number may be. NaN is in no range."""

    words: str
    holds: Callable[[float], bool]


FROM_ZERO = Range("0 or more", lambda x: 0 <= x < float("inf"))
ABOVE_ZERO = Range("a number above 0", lambda x: 0 < x < float("inf"))
FROM_ONE = Range("1 or more", lambda x: x >= 1)
SHARE = Range("a share from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE = Range("from 0 up to, not including, 1", lambda x: 0 <= x < 1)

_OPTIONS = {
    FROM_ZERO: "lr value_lr weight_decay eps max_grad_norm warmup_steps min_warmup_steps safety_loss_weight beta "
    "value_coefficient temperatures",
    ABOVE_ZERO: "clip value_clip",
    FROM_ONE: "max_new_tokens minibatch_size epochs scoring_batch generation_batch samples_per_prompt max_seq_len",
    SHARE: "min_lr_ratio warmup_ratio gamma lam safety_threshold top_p",
    BELOW_ONE: "betas",
}
RANGES = {name: allowed for allowed, names in _OPTIONS.items() for name in names.split()}


def refuse_out_of_range(options: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first option with a number outside its range; None is left out."""
    for name, allowed in RANGES.items():
        value = options.get(name)
        numbers = value if isinstance(value, Iterable) else () if value is None else (value,)
        if not all(map(allowed.holds, numbers)):
            raise ValueError(f"model.{name} is {value}: give {allowed.words}")
