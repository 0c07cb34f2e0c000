"""Direct preference optimisation: a policy learns from pairs, without a reward model and without sampling.

Not in Llama 2. Rafailov et al. 2023, eq. 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama2_pl.objectives.preference import ranking_loss


def answer_mask(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Where log-probabilities count: from the first token in which the two rows of a pair differ to each row's end.

    What both rows begin with, the prompt above all, is equally likely in both and cancels in the loss; left out, it
    costs no head and no rounding.
    tokens (2N, T) = [chosen; rejected], right-padded, lengths (2N,) -> (2N, T) bool.
    """
    chosen, rejected = tokens.chunk(2)
    apart = (chosen != rejected).cumsum(1) > 0
    real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return apart.repeat(2, 1) & real


def implicit_rewards(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """beta log (pi(y|x) / pi_ref(y|x)), up to a term that both answers of a prompt share.

    Rafailov et al. 2023, eq. 5. Log-probabilities of whole answers (R,), (R,) -> (R,).
    """
    return beta * (policy - reference)


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Mean of -log sigmoid(beta log pi(y_c|x)/pi_ref(y_c|x) - beta log pi(y_r|x)/pi_ref(y_r|x)).

    Rafailov et al. 2023, eq. 7: the ranking loss of the reward models (Llama 2 eq. 1) on implicit rewards.
    policy (2N,) = [chosen; rejected], reference (2N,) -> ().
    """
    return ranking_loss(*implicit_rewards(policy, reference, beta).chunk(2))
