"""`alphapo generate`: answers of a model to prompts, written in AlpacaEval's format (model_outputs.json).

`prepare` loads and validates all inputs and writes nothing; `run` generates and writes.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from alphapo_cli.data.data_report import named
from alphapo_cli.data.tally import Tally
from alphapo_cli.errors import AlphapoError, Interrupted, UsageError, missing_extra
from alphapo_cli.generation import parity
from alphapo_cli.generation.backend import Backend, GenerationJob, Request, request_seed
from alphapo_cli.generation.directory import GenerateDirectory
from alphapo_cli.generation.prompts import Prompts, load_prompts
from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.generation.statistics import describe
from alphapo_cli.generation.target_model import find
from alphapo_cli.modeling.sampling import Sample
from alphapo_cli.runs.directory import digest
from alphapo_cli.runs.provenance import manifest
from alphapo_cli.stages.encoded_prompts import encode, longest_answer, unused_of_prompts
from alphapo_cli.stages.training import glassbox_base
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.jsonl import LineLog
from alphapo_cli.storage.paths import cache_dir


@dataclass(frozen=True)
class Generation:
    """The validated inputs.

    `ids`: token ids per prompt; `unused`: prompts by what the chat template leaves out of them; `backend`: vllm or
    transformers; `state`: of the directory.
    """

    cfg: GenerateConfig
    job: GenerationJob
    prompts: Prompts
    ids: tuple[list[int], ...]
    unused: Tally
    backend: str
    directory: GenerateDirectory
    identity: dict[str, Any]
    generator: str
    state: str
    replace: bool

    @property
    def notes(self) -> list[str]:
        """Notes about inputs that the user may not have intended."""
        found = []
        if self.prompts.repeated:
            found.append(
                f"{self.prompts.repeated} of {self.prompts.repeated + len(self.ids)} rows repeat a prompt; each is answered once"
            )
        if self.prompts.answered:
            found.append(
                f"{self.prompts.answered} of {self.prompts.read} conversations end with an answer, which is left out: it is "
                "generated"
            )
        if self.prompts.unread:
            found.append(f"columns not used: {named(self.prompts.unread.counts)}")
        if self.unused:
            found.append(f"not in the text of the prompts: {named(self.unused.counts)}")
        return found

    @property
    def requests(self) -> list[Request]:
        """One request per prompt and sample."""
        return [
            Request(row, sample, ids, request_seed(self.cfg.seed, prompt.instruction, sample))
            for sample in range(self.cfg.generation.samples)
            for row, (prompt, ids) in enumerate(zip(self.prompts.rows, self.ids, strict=True))
        ]


def prepare(
    cfg: GenerateConfig,
    model: str | None,
    out: Path | None = None,
    *,
    replace: bool = False,
    cache: Path | None = None,
    inside: Path | None = None,
) -> Generation:
    """Load the model's tokenizer and the prompts, and check their token ids against those of training.

    Args:
        cfg: the configuration.
        model: a run directory, a model directory or a hub name; None: the embedded world's base model.
        out: the directory of the answers; None: one named by its content in run.dir.
        replace: whether to discard the content of the directory.
        cache: the cache directory; None for the usual one.
        inside: a run directory in which the answers are kept, in place of `out`.

    Returns:
        The inputs; its `state` is "complete" where nothing is left to generate.

    Raises:
        UsageError: an input, a setting or the directory cannot be used.
    """
    cache = cache or cache_dir()
    backend = choose_backend(cfg.generation.backend)
    prompts = load_prompts(cfg.data)
    embedded = model is None
    subject = find(
        str(glassbox_base.ensure(cache)) if embedded else str(model), cfg.model, cache,
        name="glassbox-base" if embedded else None,
    )  # fmt: skip
    if backend == "vllm" and subject.vllm_obstacle is not None:
        if cfg.generation.backend != "auto":
            raise UsageError(
                f"{subject.asked}: {subject.vllm_obstacle}; add generation=transformers, or train with model.merge=true"
            )
        backend = "transformers"
    ids = tuple(encode(prompts, subject, cfg.data))
    if subject.recorded is not None:
        parity.check_run(subject.recorded, subject.tokenizer, cfg.data)
    else:
        contexts = [prompt.context for prompt in prompts.rows]
        parity.check_template([prompt.side for prompt in prompts.rows], ids, subject.tokenizer, cfg.data, contexts)
    limit = longest_answer(cfg, subject, ids)
    job = GenerationJob(subject, cfg, subject.stop_ids(cfg.data), limit)
    generator = cfg.generation.generator or subject.name
    identity = {
        "generator": generator,
        "model": subject.identity(cache),
        "prompts": digest([[prompt.instruction, prompt.dataset, row] for prompt, row in zip(prompts.rows, ids, strict=True)]),
        "generation": {
            "backend": backend,
            "samples": cfg.generation.samples,
            "max_new_tokens": limit,
            "temperature": cfg.generation.temperature,
            "top_p": cfg.generation.top_p,
            "stop_ids": list(job.stop_ids),
            "seed": cfg.seed,
        },
    }  # fmt: skip
    directory = GenerateDirectory.place(out, inside, cfg.run, generator, identity)
    state = directory.open(identity, replace=replace)
    unused = unused_of_prompts(prompts, subject, cfg.data)
    return Generation(cfg, job, prompts, ids, unused, backend, directory, identity, generator, state, replace)


def run(generation: Generation) -> dict[str, Any]:
    """Generate the missing answers and write all results.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: the weights cannot be read, or the engine received other token ids.
        AlphapoError: the engine failed; finished answers are kept, and the same call resumes.
        Interrupted: a signal arrived; finished answers are kept, and the same call resumes.
    """
    directory, began = generation.directory, time.perf_counter()
    directory.begin(_manifest(generation), generation.cfg, replace=generation.replace)
    requests = generation.requests
    with LineLog(directory.log, "alphapo generate") as log:
        done = directory.finished()
        left = [request for request in requests if (request.row, request.sample) not in done]
        tokens = 0
        with tqdm(total=len(requests), initial=len(done), unit=" answers", disable=None, file=sys.stderr) as bar:

            def record(request: Request, answer: Sample) -> None:
                nonlocal tokens
                log.add({"row": request.row, "sample": request.sample, "ids": answer.ids, "cut": answer.cut})
                done[request.row, request.sample] = answer
                tokens += len(answer.ids) + (not answer.cut)  # the end token was generated, too
                bar.update()

            try:
                facts = _backend(generation).generate(generation.job, left, record) if left else {}
            except KeyboardInterrupt as error:
                raise Interrupted(f"interrupted: {_kept(generation, requests)}") from error
            except UsageError:
                raise
            except AlphapoError as error:
                raise AlphapoError(f"{error}; {_kept(generation, requests)}") from error
        metrics = _write(generation, done)
        seconds = facts.get("generate_seconds", 0.0)
        cost = {
            **facts,
            "seconds": time.perf_counter() - began,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds if seconds else None,
            "answers_from_earlier_starts": len(requests) - len(left),
        }
        summary = directory.finish(
            "complete", generator=generation.generator, backend=generation.backend,
            source=generation.prompts.description, prompts=len(generation.ids),
            samples=generation.cfg.generation.samples, metrics=metrics, cost=cost, data=_data(generation),
        )  # fmt: skip
    directory.log.unlink(missing_ok=True)  # another process may have finished first and removed it
    return summary


def choose_backend(asked: str) -> str:
    """The backend for `asked` (auto: vllm where installed); raises UsageError for vllm where it is not installed."""
    installed = importlib.util.find_spec("vllm") is not None
    if asked == "vllm" and not installed:
        raise missing_extra("vLLM", "vllm")
    return asked if asked != "auto" else "vllm" if installed else "transformers"


def _backend(generation: Generation) -> Backend:
    if generation.backend == "vllm":
        from alphapo_cli.generation.vllm_backend import VLLMBackend

        return VLLMBackend(generation.directory.engine_log)
    from alphapo_cli.generation.transformers_backend import TransformersBackend

    return TransformersBackend()


def _kept(generation: Generation, requests: list[Request]) -> str:
    """The end of an error message: how many answers are kept."""
    return f"{len(generation.directory.finished())} of {len(requests)} answers are kept in {generation.directory.log}; the same line generates the rest"


def _write(generation: Generation, done: dict[tuple[int, int], Sample]) -> dict[str, Any]:
    """Write the outputs of every sample; statistics of all answers."""
    tokenizer = generation.job.subject.tokenizer
    texts = {
        key: str(tokenizer.decode(answer.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for key, answer in done.items()
    }
    for sample in range(generation.cfg.generation.samples):
        rows = [
            {
                "dataset": prompt.dataset,
                "instruction": prompt.instruction,
                "output": texts[row, sample],
                "generator": generation.generator,
            }
            for row, prompt in enumerate(generation.prompts.rows)
        ]
        write_json(generation.directory.outputs(sample), rows)
    keys = sorted(done)
    return describe([done[key] for key in keys], [texts[key] for key in keys])


def _data(generation: Generation) -> dict[str, Any]:
    """Counts of the rows that were read, and of what was not used of them."""
    prompts = generation.prompts
    return {
        "rows_read": prompts.read,
        "prompts": len(prompts.rows),
        "repeated": prompts.repeated,
        "answers_left_out": prompts.answered,
        "columns_not_used": dict(prompts.unread.counts),
        "not_rendered": dict(generation.unused.counts),
    }


def _manifest(generation: Generation) -> dict[str, Any]:
    return manifest(
        identity=generation.identity,
        model=generation.job.subject.asked,
        data={"source": generation.prompts.description, "repeated": generation.prompts.repeated},
        config=asdict(generation.cfg),
    )
