"""The interface of generation backends: requests (token ids and a seed) to answers (token ids)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alphapo_cli.config.schema import LOWEST_TEMPERATURE
from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.generation.target_model import TargetModel
from alphapo_cli.modeling.sampling import Sample


@dataclass(frozen=True)
class Request:
    """One answer to sample: number `sample` (from 0) to prompt `row`, whose token ids are `ids`."""

    row: int
    sample: int
    ids: list[int]
    seed: int

    @property
    def key(self) -> tuple[int, int]:
        """Prompt and number."""
        return self.row, self.sample


@dataclass(frozen=True)
class GenerationJob:
    """What all requests of one call share.

    `subject`: the model; `stop_ids`: tokens that end an answer; `limit`: most new tokens; `temperature`: see
    `config.schema.LOWEST_TEMPERATURE`.
    """

    subject: TargetModel
    cfg: GenerateConfig
    stop_ids: tuple[int, ...]
    limit: int

    @property
    def temperature(self) -> float:
        """The temperature, 0 for one that is next to it."""
        asked = self.cfg.generation.temperature
        return asked if asked >= LOWEST_TEMPERATURE else 0.0


Record = Callable[[Request, Sample], None]


class Backend(Protocol):
    """An inference engine."""

    def generate(
        self, job: GenerationJob, requests: Sequence[Request], record: Record, done: Collection[tuple[int, int]] = ()
    ) -> dict[str, Any]:
        """Generate all answers but those that are `done`, in any order.

        Args:
            job: what all requests share.
            requests: the answers to sample; batches are made of all of them, so that they do not depend on `done`.
            record: called once with each finished answer.
            done: keys of the requests that an earlier start has finished.

        Returns:
            start_seconds and generate_seconds, for the cost in summary.json.

        Raises:
            UsageError: the model cannot be loaded, or the engine reports other prompt ids than it was sent.
            AlphapoError: the engine failed.
        """
        ...


def request_seed(seed: int, instruction: str, sample: int) -> int:
    """A 63-bit seed from these three alone, so that no draw depends on the order of prompts or on batching."""
    text = json.dumps([seed, instruction, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
