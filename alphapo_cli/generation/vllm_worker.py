"""The child of `vllm_process`: a script that runs vLLM and imports nothing of alphapo.

stdin: one line with the job, one line per request, an empty line; then, once the ids are compared, one line "go".
The file descriptor in argv[1] receives JSON Lines: {"prompt", "ids"} for every request as the engine read it, {"ready"}
once, {"id", "prompt_ids", "ids", "finish", "logprob", "logprobs"} for every finished one, {"error"} after a failure.
stdout and stderr are the log. When stdin closes, the parent is gone and this process exits.

With "pooling" in the job it is a sequence classifier that serves until stdin closes: each further line of stdin is a list
of rows of ids, and {"id", "prompt_ids", "logits"} answers every row of it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any


def main() -> None:
    """Read the job from stdin, run it, and exit."""
    channel = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    # Read everything before importing vLLM: a pipe holds 64 KiB, and the imports are slow.
    job = json.loads(sys.stdin.readline())
    requests = [json.loads(line) for line in iter(lambda: sys.stdin.readline().strip(), "")]
    said: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(said,), daemon=True).start()
    try:
        _classify(job, said, channel) if job.get("pooling") else _work(job, requests, said, channel)
    except BaseException as error:
        _send(channel, error=_cause(error))
        raise
    finally:
        channel.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to save, and an engine's shutdown takes seconds


def _listen(said: queue.Queue[str]) -> None:
    for line in sys.stdin:
        said.put(line)
    os._exit(1)


def _engine(job: dict[str, Any]) -> Any:
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    platform_args = job["on_cpu"] if current_platform.is_cpu() else job["on_gpu"]
    return LLMEngine.from_engine_args(EngineArgs(**job["engine"], **platform_args))


def _work(job: dict[str, Any], requests: list[dict[str, Any]], said: queue.Queue[str], channel: Any) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    engine = _engine(job)
    lora = LoRARequest("adapter", 1, job["adapter"]) if job["adapter"] else None
    names: dict[str, Any] = {}
    for request in requests:
        params = SamplingParams(**{**job["sampling"], **request.get("sampling", {})}, detokenize=False)
        prompt = {"prompt_token_ids": request["ids"]}
        name = engine.add_request(str(request["id"]), prompt, params, lora_request=lora)
        prompt_ids = engine.output_processor.request_states[name].prompt_token_ids
        _send(channel, prompt=request["id"], ids=prompt_ids)
        names[str(request["id"])] = request["id"]
    _send(channel, ready=True)
    said.get()  # "go"
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                first = output.outputs[0]
                _send(
                    channel,
                    id=names[output.request_id],
                    prompt_ids=output.prompt_token_ids,
                    ids=list(first.token_ids),
                    finish=first.finish_reason,
                    logprob=first.cumulative_logprob,
                    logprobs=_top(first.logprobs, job["sampling"].get("logprobs")),
                )


def _classify(job: dict[str, Any], said: queue.Queue[str], channel: Any) -> None:
    from vllm import PoolingParams

    engine = _engine(job)
    # Without an activation: its sigmoid is 1 for every large reward.
    params = PoolingParams(use_activation=False, task="classify")
    _send(channel, ready=True)
    while True:
        rows = json.loads(said.get())
        for number, ids in enumerate(rows):
            engine.add_request(str(number), {"prompt_token_ids": ids}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    logits = output.outputs.data.float().reshape(-1).tolist()
                    _send(channel, id=int(output.request_id), prompt_ids=output.prompt_token_ids, logits=logits)


def _top(rows: Any, wanted: int | None) -> list[tuple[int, float]] | None:
    """(token id, log-prob) of the first token's `wanted` likeliest alternatives, best first."""
    if not wanted:
        return None
    best = sorted(rows[0].items(), key=lambda item: -item[1].logprob)
    return [(int(token), float(entry.logprob)) for token, entry in best[:wanted]]


def _cause(error: BaseException) -> str:
    """The first informative line of a message, without the heading of a pydantic error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = lines[1:]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _send(channel: Any, **row: Any) -> None:
    channel.write(json.dumps(row) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
