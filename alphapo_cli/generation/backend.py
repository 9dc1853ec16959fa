"""What a backend is: something that turns requests (token ids and a seed) into answers (token ids)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.generation.target_model import TargetModel
from alphapo_cli.modeling.sampling import Sample


@dataclass(frozen=True)
class Request:
    """One answer to draw: to prompt `row`, its `sample`-th (from 0)."""

    row: int
    sample: int
    ids: list[int]
    seed: int


@dataclass(frozen=True)
class GenerationJob:
    """What all requests of a run of a backend share. `limit`: tokens of an answer at most."""

    subject: TargetModel
    cfg: GenerateConfig
    stop_ids: tuple[int, ...]
    limit: int


Record = Callable[[Request, Sample], None]


class Backend(Protocol):
    """A way to run a model."""

    def generate(self, job: GenerationJob, requests: Sequence[Request], record: Record) -> dict[str, Any]:
        """Answer all, in any order; `record` keeps each as it is finished. Returns facts for the summary's cost.

        Raises:
            UsageError: the model cannot be read, or the engine was given other ids.
            AlphapoError: the engine failed.
        """
        ...


def request_seed(seed: int, instruction: str, sample: int) -> int:
    """63 bits that depend on these three alone: neither on the order of prompts nor on how they are batched."""
    text = json.dumps([seed, instruction, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
