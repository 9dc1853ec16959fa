"""A sequence classifier in vLLM: token ids in, logits out, by one engine for all calls.

The ids are ours, so that no tokenizer adds a second BOS, and the logits are asked for without vLLM's activation, a sigmoid
that is 1 for every large reward. The engine is a child process (see `generation.vllm_process`).
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from alphapo_cli.errors import AlphapoError, UsageError, say
from alphapo_cli.generation.schema import VLLMConfig
from alphapo_cli.generation.target_model import TargetModel
from alphapo_cli.generation.vllm_process import VLLMProcess, plan
from alphapo_cli.modeling.declared import original_context

# Classes whose logits were compared with those of transformers (within 1e-5 in float32, random weights); of others vLLM is
# used where scorer.backend says so. Gemma 2 is none of them: the attention of one side leaves out its soft caps.
COMPARED = tuple(f"{name}ForSequenceClassification" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma"))
AT_ONCE = 256  # rows of one call
SHORTEST = 2048  # tokens; an engine has room for rows of this length, or of twice the longest it was started for


def backend_of(asked: str, subject: TargetModel, *, own_code: bool, where: str) -> str:
    """Choose the engine of a classifier.

    Args:
        asked: `scorer.backend`: auto, vllm or transformers.
        subject: the classifier.
        own_code: whether its class is of the model's repository.
        where: the setting that names it, for messages.

    Returns:
        vllm or transformers; for auto vllm where it is installed and the class is one that was compared.

    Raises:
        UsageError: vLLM was asked for, and is not installed or cannot serve the classifier.
    """
    if asked == "transformers":
        return asked
    installed = importlib.util.find_spec("vllm") is not None
    obstacle = "its class is code of its repository, which vLLM does not run" if own_code else subject.vllm_obstacle
    if original_context(subject.config) is not None:
        obstacle = "vLLM scales its positions by the longest input of an engine (LongRoPE)"
    if asked == "auto":
        known = set(getattr(subject.config, "architectures", None) or []) & set(COMPARED)
        return "vllm" if installed and known and obstacle is None else "transformers"
    if not installed:
        obstacle = "vLLM is not installed (pip install 'alphapo[vllm]')"
    if obstacle is not None:
        raise UsageError(f"{where}: {obstacle}; type scorer.backend=transformers")
    return asked


class VLLMClassifier:
    """The engine, which the first call of `logits` starts.

    Args:
        subject: the classifier.
        cfg: engine settings.
        limit: most tokens of a row; None for no limit.
    """

    def __init__(self, subject: TargetModel, cfg: VLLMConfig, limit: int | None) -> None:
        self.subject, self.cfg, self.limit = subject, cfg, limit
        self._room = 0  # tokens of the longest row that the engine takes
        self._engine: VLLMProcess | None = None
        self._log: Path | None = None

    def logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits [n, labels] float32 of n rows of ids; AlphapoError where the engine fails."""
        longest = max(map(len, rows))
        if self._engine is None or longest > self._room:
            self.close()
            room = max(SHORTEST, 2 * longest)
            self._start(room if self.limit is None else min(self.limit, room))
        assert self._engine is not None
        try:
            return torch.tensor(self._engine.classify(rows), dtype=torch.float32)
        except AlphapoError:  # which names the log
            self._log = None
            raise

    def close(self) -> None:
        """End the engine; its log goes with it unless it failed."""
        if self._engine is None:
            return
        self._engine.close()
        self._engine = None
        if self._log is not None:
            self._log.unlink(missing_ok=True)

    def _start(self, room: int) -> None:
        job = plan(self.subject, self.cfg, room, {}, prefix_caching=False)
        job |= {"pooling": True, "engine": {**job["engine"], "runner": "pooling", "convert": "classify"}}
        with tempfile.NamedTemporaryFile(prefix="alphapo-scorer-", suffix=".log", delete=False) as file:
            self._log = Path(file.name)
        say(f"starting vLLM with the classifier {self.subject.asked} ...", file=sys.stderr, flush=True)
        try:
            with ExitStack() as stack:
                engine = stack.enter_context(VLLMProcess(job, [], self._log))
                for _ in engine.prompts():
                    pass
                stack.pop_all()  # it lives until `close`
        except KeyboardInterrupt:
            self._log.unlink()
            raise
        self._engine, self._room = engine, room
