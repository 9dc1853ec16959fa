"""A reference that follows the policy (TR-DPO): its log-probs are computed at every step, never read from the cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.policy import PolicyModel, inference
from alphapo_cli.modeling.sharding import at_rest
from alphapo_cli.objective.objective import Objective


def frozen_copy(policy: PolicyModel) -> PolicyModel:
    """Copy the policy as it is now, without gradients and in evaluation mode."""
    return policy.copy().requires_grad_(False).eval()


class MovingReference:
    """A frozen copy of a policy that is moved towards the policy in training every `every` optimizer steps."""

    def __init__(self, start: PolicyModel, every: int, mix: float) -> None:
        """Copy `start` as it is now; updates are reference <- (1 - mix) reference + mix policy, mix = 1 a copy."""
        self.policy = frozen_copy(start)
        self.every, self.mix = every, mix
        shared = {id(p) for p in start.parameters()}  # a base under adapters, which does not move
        self.own = frozenset(name for name, p in self.policy.named_parameters() if id(p) not in shared)

    def check(self, policy: PolicyModel) -> None:
        """Check that the reference and `policy` can be mixed.

        Raises:
            UsageError: their weights have different names or shapes.
        """
        ours, theirs = ({n: p.shape for n, p in m.state_dict().items()} for m in (self.policy, policy))
        if ours != theirs:
            raise UsageError(
                "objective.reference_every: the reference moves towards the policy, so model.reference must be a model "
                "of the policy's shape; leave it out, or set objective.reference_every=null"
            )

    def sums(self, batch: PairBatch, objective: Objective) -> Tensor:
        """Summed log-probs of a micro-batch under the token weights of `objective`, [K, B] nats."""
        with inference(self.policy):
            answers = self.policy.answers(batch)
            return objective.weigh(answers)[0] if objective.weighs_tokens else answers.sums

    @torch.no_grad()
    def after_step(self, step: int, policy: PolicyModel) -> None:
        """Update the reference if `step` (from 1) is a multiple of `every`."""
        if step % self.every:
            return
        for (_, own), (_, trained) in zip(self._weights(self.policy), self._weights(policy), strict=True):
            own.copy_(trained) if self.mix == 1 else own.lerp_(trained, self.mix)

    def weights(self) -> list[tuple[str, Tensor]]:
        """Names and weights of the reference, without those that it shares with the policy."""
        return self._weights(self.policy)

    def state(self) -> dict[str, Tensor]:
        """The reference's own weights, on the CPU, for a checkpoint."""
        return {name: weight.detach().cpu().clone() for name, weight in self.weights()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights that `state` returned."""
        for name, weight in self._weights(self.policy):
            weight.copy_(state[name])

    def _weights(self, policy: PolicyModel) -> list[tuple[str, Tensor]]:
        at_rest(policy)
        own = [(name, p) for name, p in policy.named_parameters() if name in self.own]  # tied weights once
        return [(name, p) for name, p in own if p.is_floating_point()]
