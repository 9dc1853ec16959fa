"""vLLM in a process of its own: its memory comes back, its log goes to a file, and it dies with whoever asked.

The process gets token ids and gives token ids (see vllm_worker). It is put out of the terminal's process group, so that
Ctrl-C reaches this process alone, which takes what is finished and then ends it.
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
from alphapo_cli.generation.schema import VLLMConfig
from alphapo_cli.generation.target_model import Subject
from alphapo_cli.runtime.deferral import uninterrupted

WORKER = Path(__file__).with_name("vllm_worker.py")
# One process, no statistics sent anywhere; a user's own settings win.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "TOKENIZERS_PARALLELISM": "false",
}
GRACE = 10.0  # seconds that the process gets to end by itself
BLOCK = 128  # tokens of a block of vLLM's key-value cache on the CPU
BATCHED = 4096  # tokens that one step may take in, unless a single prompt has more
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has for adapters


def plan(
    subject: Subject, cfg: VLLMConfig, longest: int, sampling: dict[str, Any], *, prefix_caching: bool
) -> dict[str, Any]:
    """The worker's job for sequences of at most `longest` tokens; `sampling`: vLLM's SamplingParams for all requests.

    On the CPU prompts are never split: vLLM 0.32 cannot take back a seeded draw there, and a split prompt ends the
    engine ("CPU Generator does not use offset"). Nor may it choose the size of its cache, which would be nearly all of
    the machine's memory.

    Raises:
        UsageError: an adapter of a rank that vLLM does not have.
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
                "use generation=transformers, or train with model.merge=true"
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
        "sampling": sampling,
    }


def _cache_bytes(subject: Subject, cfg: VLLMConfig, longest: int) -> int:
    """Room for max_num_seqs whole sequences, between 1/4 and 4 GiB but never less than one sequence needs."""
    if cfg.kv_cache_gib is not None:
        return int(cfg.kv_cache_gib * 2**30)
    text = subject.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    a_token = 2 * text.num_hidden_layers * heads * size * (4 if subject.dtype == "float32" else 2)
    a_sequence = -(-longest // BLOCK) * BLOCK * a_token
    wanted = a_sequence * (cfg.max_num_seqs + 1)
    return int(max(min(max(wanted, 2**28), 2**32), 2 * a_sequence))


class VLLMProcess:
    """One engine, one list of requests. `requests`: {"id", "ids"} and perhaps "sampling"; log: where it may write."""

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
            # -P: the script's own folder is not where modules are looked for.
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
        if kind is not None:
            self._end()
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            self._end()
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        os.close(self.reading)

    def prompts(self) -> Iterator[tuple[int, list[int]]]:
        """(id, token ids) of every request as the engine has it; then the engine is ready and waits for `answer`.

        Raises:
            AlphapoError: the engine did not start; the message says why.
        """
        for row in self._rows():
            self._taken()
            if "ready" in row:
                return
            yield row["prompt"], row["ids"]
        raise self._failure()

    def answer(self, keep: Callable[[dict[str, Any]], None]) -> None:
        """Let it begin; `keep` gets every finished request once: {"id", "prompt_ids", "ids", "finish", "logprobs"}.

        An interruption never cuts `keep` in two, and what has arrived by then is kept before it goes on.

        Raises:
            AlphapoError: the engine failed; the message says why.
            KeyboardInterrupt: interrupted.
        """
        self._send("go\n")
        left = len(self.requests)
        try:
            for _ in self._rows():
                left -= self._give(keep)
                if not left:
                    return
        except KeyboardInterrupt:
            while select.select([self.reading], [], [], 0)[0] and self._fill():
                pass
            while self._next() is not None:
                self._give(keep)
            raise
        raise self._failure()

    def _give(self, keep: Callable[[dict[str, Any]], None]) -> int:
        """Hand the first row over and take it off; how many answers it held."""
        with uninterrupted():
            row = self._next()
            assert row is not None
            if "id" in row:
                keep(row)
            self._taken()
        return int("id" in row)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Each row as it arrives; whoever iterates takes it off."""
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
        """The first row that has arrived; it stays until it is `_taken`."""
        end = self.buffer.find(b"\n")
        if end < 0:
            return None
        row: dict[str, Any] = json.loads(bytes(self.buffer[:end]))
        return row

    def _taken(self) -> None:
        del self.buffer[: self.buffer.find(b"\n") + 1]

    def _fill(self) -> bool:
        select.select([self.reading], [], [])
        with uninterrupted():  # a signal between the two would lose what was read
            part = os.read(self.reading, 1 << 16)
            self.buffer += part
        return bool(part)

    def _send(self, text: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; reading says why
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()

    def _failure(self) -> AlphapoError:
        code = self.process.wait(GRACE)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = self.log.read_text(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()[:200]}" if lines else ""
        return AlphapoError(f"vLLM {how}{said} (its log: {self.log})")

    def _end(self) -> None:
        """End the process and what it may have started; its group holds nothing else."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            until = time.monotonic() + GRACE / 2
            while self.process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
