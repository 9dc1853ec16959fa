"""What training starts from, made before the trainer and never changed by it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.policy import PolicyModel, Wanted
from alphapo_cli.objective.objective import Objective
from alphapo_cli.training.moving_reference import MovingReference


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Model, objective, pairs, and all that the objective compares with. n training pairs, K answers of each."""

    policy: PolicyModel  # on the device where it trains
    objective: Objective
    pairs: TokenPairs  # n, with the columns and token values that a guide model gave
    pad_id: int  # fills rows up
    reference: npt.NDArray[np.float64] | None = None  # [K, n] nats, summed log-probs; None: the objective reads none
    moving: MovingReference | None = None  # takes the place of `reference`
    kl_from: PolicyModel | None = None  # the model that KL(it || policy) is from, where the objective reads that
    wanted: Wanted = field(init=False)  # what the objective reads of each token beside its log-prob

    def __post_init__(self) -> None:
        object.__setattr__(self, "wanted", Wanted(self.objective.needs_statistics, self.kl_from))

    @property
    def sides(self) -> int:
        """Answers of a pair that the objective reads."""
        return self.objective.sides(self.pairs.num_sides)
