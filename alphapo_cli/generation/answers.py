"""answers.jsonl and prompts.jsonl of a generation: every answer as it was sampled, for scoring, pairing and going on.

    prompts.jsonl   prompt (hash), instruction, dataset, content (text or messages), ids (as the model read them);
                    system and arguments, where the row gives the chat template any
    answers.jsonl   prompt (hash), number (from 0), output (text), ids (without the end token), seed, cut, logprob

An answer belongs to its prompt by the hash, never by its position. `ids` are what was sampled: tokenising the text again
may give others. `logprob` is the sum over the answer, and its end token unless it was cut, in nats under the model itself
(temperature 1, all tokens), null where the backend does not give it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import AlphapoError
from alphapo_cli.generation.backend import Request
from alphapo_cli.generation.prompt import Prompt
from alphapo_cli.generation.schema import ANSWERS, PROMPTS
from alphapo_cli.modeling.sampling import Sample
from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.storage.jsonl import json_line, read_jsonl


def write(
    folder: Path,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    done: Mapping[tuple[int, int], Sample],
    texts: Mapping[tuple[int, int], str],
) -> None:
    """Write both files.

    Args:
        folder: the directory of the generation.
        prompts: the prompts.
        requests: every answer that was asked for.
        done: the sampled ids by (row, sample).
        texts: the same answers as text.
    """
    keys = [prompt.key for prompt in prompts]
    ids = {request.row: request.ids for request in requests}
    rows = [_prompt_row(prompt, key, ids[row]) for row, (prompt, key) in enumerate(zip(prompts, keys, strict=True))]
    write_atomic(folder / PROMPTS, "".join(map(json_line, rows)))
    answers = [
        {
            "prompt": keys[request.row],
            "number": request.sample,
            "output": texts[request.key],
            "ids": done[request.key].ids,
            "seed": request.seed,
            "cut": done[request.key].cut,
            "logprob": done[request.key].logprob,
        }
        for request in sorted(requests, key=lambda request: request.key)
    ]
    write_atomic(folder / ANSWERS, "".join(map(json_line, answers)))


def read(folder: Path, prompts: Sequence[Prompt]) -> dict[tuple[int, int], Sample]:
    """The answers that a directory holds to `prompts`, by (row, sample); none without a readable answers.jsonl."""
    places = {prompt.key: row for row, prompt in enumerate(prompts)}
    try:
        rows = read_jsonl(folder / ANSWERS)
        return {
            (places[row["prompt"]], int(row["number"])): Sample(
                [int(i) for i in row["ids"]], bool(row["cut"]), row["logprob"]
            )
            for row in rows
            if row["prompt"] in places
        }
    except (OSError, AlphapoError, KeyError, TypeError, ValueError):
        return {}


def log_line(request: Request, answer: Sample, source: str | None = None) -> dict[str, Any]:
    """A finished answer for partial.jsonl; `source` names the generation that had made it."""
    logprob = {} if answer.logprob is None else {"logprob": answer.logprob}
    made = {} if source is None else {"from": source}
    return {"row": request.row, "sample": request.sample, "ids": answer.ids, "cut": answer.cut, **logprob, **made}


def _prompt_row(prompt: Prompt, key: str, ids: Sequence[int]) -> dict[str, Any]:
    context = prompt.context
    more: dict[str, Any] = {"system": context.system} if context.system is not None else {}
    more |= {"arguments": dict(context.arguments)} if context.arguments else {}
    row = {"prompt": key, "instruction": prompt.instruction, "dataset": prompt.dataset, "content": prompt.side}
    return {**row, **more, "ids": list(ids)}
