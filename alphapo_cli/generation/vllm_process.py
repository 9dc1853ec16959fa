"""vLLM in a child process: its memory is freed at the end, its output goes to a file, and it dies with its parent.

Token ids go in, token ids come out (see `vllm_worker`). The child has a session of its own, so that Ctrl-C reaches the
parent alone, which records the finished answers and then terminates the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alphapo_cli.errors import AlphapoError, UsageError
from alphapo_cli.generation.adapter_support import RANKS
from alphapo_cli.generation.schema import VLLMConfig
from alphapo_cli.generation.target_model import TargetModel
from alphapo_cli.runtime.signals import deferred_signals

WORKER = Path(__file__).with_name("vllm_worker.py")
# One process, no usage statistics; variables that the user has set win.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "TOKENIZERS_PARALLELISM": "false",
}
GRACE = 10.0  # seconds for the process to exit by itself
BLOCK = 128  # tokens per block of vLLM's KV cache on the CPU
BATCHED = 4096  # max_num_batched_tokens, unless a single prompt has more


def plan(
    subject: TargetModel, cfg: VLLMConfig, longest: int, sampling: dict[str, Any], *, prefix_caching: bool
) -> dict[str, Any]:
    """Build the worker's job: engine arguments, adapter and sampling parameters.

    On the CPU chunked prefill is off: vLLM 0.32 cannot rewind a seeded generator there, and a split prompt stops the
    engine ("CPU Generator does not use offset"). The size of the KV cache is set, since vLLM's default is nearly all of
    the machine's memory.

    Args:
        subject: the model.
        cfg: engine settings.
        longest: most tokens of a sequence, prompt and answer.
        sampling: vLLM's SamplingParams for all requests.
        prefix_caching: whether the KV cache of common prompt prefixes is shared.

    Returns:
        The job as JSON values; `on_cpu` and `on_gpu` are the engine arguments that depend on the platform.

    Raises:
        UsageError: the adapter's rank is above the largest that vLLM supports.
    """
    engine: dict[str, Any] = {
        "model": subject.whole.location,
        "revision": subject.whole.revision,
        "trust_remote_code": subject.trust_remote_code,
        "skip_tokenizer_init": True,  # ids in, ids out
        "generation_config": "vllm",  # none of the model's own sampling settings
        "dtype": subject.dtype,
        "max_model_len": longest,
        "max_num_seqs": cfg.max_num_seqs,
        "tensor_parallel_size": cfg.tensor_parallel_size,
        "enable_prefix_caching": prefix_caching,
        "disable_log_stats": True,
        "seed": 0,
    }
    if (rank := subject.adapter_rank) is not None:
        fitting = next((r for r in RANKS if r >= rank), None)
        if fitting is None:
            raise UsageError(
                f"{subject.asked}: vLLM has no adapters of rank {rank} (at most {RANKS[-1]}); "
                f"type generation=transformers, or merge it (alphapo export {subject.asked} --merge --to DIR)"
            )
        engine |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting}
    return {
        "engine": engine,
        "on_cpu": {
            "enforce_eager": cfg.enforce_eager if cfg.enforce_eager is not None else True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(BATCHED, longest, cfg.max_num_seqs),
            "kv_cache_memory_bytes": _cache_bytes(subject, cfg, longest),
        },
        "on_gpu": {
            "enforce_eager": bool(cfg.enforce_eager),
            "gpu_memory_utilization": cfg.gpu_memory_utilization,
        },
        "adapter": None if subject.base is None else subject.source.location,
        # Stop ids are all given: vLLM adds what its own reading of the configuration names, defaults of the class included.
        "sampling": {**sampling, "ignore_eos": True},
    }


def _cache_bytes(subject: TargetModel, cfg: VLLMConfig, longest: int) -> int:
    """KV cache in bytes: max_num_seqs full sequences, within 1/4 to 4 GiB, but at least what one sequence needs."""
    if cfg.kv_cache_gib is not None:
        return int(cfg.kv_cache_gib * 2**30)
    text = subject.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * heads * head_dim * (4 if subject.dtype == "float32" else 2)
    sequence_bytes = -(-longest // BLOCK) * BLOCK * token_bytes
    wanted = sequence_bytes * (cfg.max_num_seqs + 1)
    return int(max(min(max(wanted, 2**28), 2**32), 2 * sequence_bytes))


class VLLMProcess:
    """One engine for one list of requests, each {"id", "ids"} and optionally "sampling"; `log`: file of its output."""

    def __init__(self, job: dict[str, Any], requests: Sequence[dict[str, Any]], log: Path) -> None:
        self.job, self.requests, self.log = job, requests, log
        # From `__enter__` on.
        self.reading: int
        self.process: subprocess.Popen[bytes]
        self.buffer = bytearray()

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.reading, writing = os.pipe()
        environment = {**os.environ, **{k: v for k, v in ENVIRONMENT.items() if k not in os.environ}}
        with open(self.log, "wb") as log:
            # -P: keeps the script's own folder out of sys.path.
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), str(writing)], stdin=subprocess.PIPE, stdout=log, stderr=log,
                pass_fds=[writing], env=environment, start_new_session=True,
            )  # fmt: skip
        os.close(writing)
        lines = [self.job, *self.requests]
        self._send("".join(json.dumps(line) + "\n" for line in lines) + "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._terminate()
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        os.close(self.reading)

    def prompts(self) -> Iterator[tuple[int, list[int]]]:
        """Wait for the engine to start; it is ready for `answer` after the last prompt.

        Yields:
            (id, token ids) of every request as the engine reports them.

        Raises:
            AlphapoError: the engine did not start; the message says why.
        """
        for row in self._rows():
            self._discard()
            if "ready" in row:
                return
            yield row["prompt"], row["ids"]
        raise self._failure()

    def answer(self, record: Callable[[dict[str, Any]], None]) -> None:
        """Start generation and record every finished request.

        A signal never interrupts `record`, and all rows received by then are recorded before it is raised.

        Args:
            record: called once per request with {"id", "prompt_ids", "ids", "finish", "logprob", "logprobs"}.

        Raises:
            AlphapoError: the engine failed; the message says why.
            KeyboardInterrupt: a signal ends the generation.
        """
        self._send("go\n")
        left = len(self.requests)
        try:
            for _ in self._rows():
                left -= self._deliver(record)
                if not left:
                    return
        except KeyboardInterrupt:
            while select.select([self.reading], [], [], 0)[0] and self._fill():
                pass
            while self._next() is not None:
                self._deliver(record)
            raise
        raise self._failure()

    def classify(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Logits of rows of ids, of a job with "pooling" whose `prompts` have ended; may be called again.

        Args:
            rows: n rows of ids.

        Returns:
            [n] rows of logits, one for each label.

        Raises:
            AlphapoError: the engine failed, or it read other ids than it was sent.
        """
        self._send(json.dumps([list(map(int, row)) for row in rows]) + "\n")
        found: dict[int, list[float]] = {}
        for answer in self._rows():
            self._discard()
            if answer["prompt_ids"] != list(rows[answer["id"]]):
                raise AlphapoError(f"vLLM read other token ids than it was sent (its log: {self.log})")
            found[answer["id"]] = answer["logits"]
            if len(found) == len(rows):
                return [found[number] for number in range(len(rows))]
        raise self._failure()

    def _deliver(self, record: Callable[[dict[str, Any]], None]) -> int:
        """Record the first received row and discard it; the number of answers it held."""
        with deferred_signals():
            row = self._next()
            assert row is not None
            if "id" in row:
                record(row)
            self._discard()
        return int("id" in row)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Each row as it arrives; the caller discards it."""
        while True:
            row = self._next()
            if row is None:
                if not self._fill():
                    return
            elif "error" in row:
                raise AlphapoError(f"vLLM: {row['error']} (its log: {self.log})")
            else:
                yield row

    def _next(self) -> dict[str, Any] | None:
        """The first received row, which stays until `_discard`; None without a complete one."""
        end = self.buffer.find(b"\n")
        if end < 0:
            return None
        row: dict[str, Any] = json.loads(bytes(self.buffer[:end]))
        return row

    def _discard(self) -> None:
        del self.buffer[: self.buffer.find(b"\n") + 1]

    def _fill(self) -> bool:
        select.select([self.reading], [], [])
        with deferred_signals():  # a signal between the two lines would lose what was read
            part = os.read(self.reading, 1 << 16)
            self.buffer += part
        return bool(part)

    def _send(self, text: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; the next read reports why
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()

    def _failure(self) -> AlphapoError:
        code = self.process.wait(GRACE)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = self.log.read_text(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()[:200]}" if lines else ""
        return AlphapoError(f"vLLM {how}{said} (its log: {self.log})")

    def _terminate(self) -> None:
        """Terminate the process and its children, which are all of its process group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            until = time.monotonic() + GRACE / 2
            while self.process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
