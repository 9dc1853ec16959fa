"""A reference that follows the policy (TR-DPO): its log-probs are made at every step, never taken from the cache."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.policy import PolicyModel, inference
from alphapo_cli.objective.objective import Objective


def frozen_copy(policy: PolicyModel) -> PolicyModel:
    """The policy as it is now, for good."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


class MovingReference:
    """A frozen copy of a policy that moves towards the one that trains, every so many optimizer steps."""

    def __init__(self, start: PolicyModel, every: int, mix: float) -> None:
        """`start`: copied as it is now. reference <- (1 - mix) reference + mix policy; mix = 1 is the policy itself."""
        self.policy = frozen_copy(start)
        self.every, self.mix = every, mix

    def check(self, policy: PolicyModel) -> None:
        """Raises UsageError: the two have not the same weights, so that they cannot be mixed."""
        ours, theirs = ({n: p.shape for n, p in m.state_dict().items()} for m in (self.policy, policy))
        if ours != theirs:
            raise UsageError(
                "objective.reference_every: the reference moves towards the policy, so model.reference must be a model "
                "of the policy's shape; leave it out, or set objective.reference_every=null"
            )

    def sums(self, batch: PairBatch, objective: Objective) -> Tensor:
        """[K, B] summed log-probs of a micro-batch as `objective` counts tokens."""
        with inference(self.policy):
            answers = self.policy.answers(batch)
            return objective.weigh(answers)[0] if objective.weighs_tokens else answers.sums

    @torch.no_grad()
    def after_step(self, step: int, policy: PolicyModel) -> None:
        """Move, when `step` (from 1) is one to move at."""
        if step % self.every:
            return
        for (_, mine), (_, theirs) in zip(self._weights(self.policy), self._weights(policy), strict=True):
            mine.copy_(theirs) if self.mix == 1 else mine.lerp_(theirs, self.mix)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: weight.detach().cpu().clone() for name, weight in self._weights(self.policy)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights(self.policy):
            weight.copy_(state[name])

    @staticmethod
    def _weights(policy: PolicyModel) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in policy.named_parameters() if p.is_floating_point()]  # tied weights once
