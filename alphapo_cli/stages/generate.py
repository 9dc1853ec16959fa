"""`alphapo generate`: answers of a model to prompts, written in AlpacaEval's format (model_outputs.json).

`prepare` loads and validates all inputs and writes nothing; `run` generates and writes.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.data.spelled_tokens import Spelled
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import written_date
from alphapo_cli.errors import AlphapoError, Interrupted, UsageError, missing_extra
from alphapo_cli.generation import answers, notes
from alphapo_cli.generation.backend import Backend, GenerationJob, Request, request_seed
from alphapo_cli.generation.prompt import Prompt, Prompts
from alphapo_cli.generation.prompts import load_prompts
from alphapo_cli.generation.schema import GenerateConfig, check_sampling
from alphapo_cli.generation.statistics import describe
from alphapo_cli.generation.target_model import find
from alphapo_cli.generation.thinking import answer_text, thinking_of
from alphapo_cli.modeling.sampling import Sample
from alphapo_cli.runs.provenance import manifest
from alphapo_cli.runtime.progress import Progress
from alphapo_cli.stages.directories.generation import GenerateDirectory
from alphapo_cli.stages.encoded_prompts import check_ids, encode, longest_answer, spelled_in_prompts, unused_of_prompts
from alphapo_cli.stages.training import glassbox_base
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.jsonl import LineLog
from alphapo_cli.storage.paths import cache_dir

GOES_ON = "the same line generates the rest"


@dataclass(frozen=True)
class Generation:
    """The validated inputs.

    `ids`: token ids per prompt; `notes`: about inputs that the user may not have intended; `backend`: vllm or
    transformers; `state`: of the directory.
    """

    cfg: GenerateConfig
    job: GenerationJob
    prompts: Prompts
    ids: tuple[list[int], ...]
    notes: list[str]
    unused: Tally
    spelled: Spelled
    backend: str
    directory: GenerateDirectory
    identity: dict[str, Any]
    generator: str
    state: str
    replace: bool

    @property
    def requests(self) -> list[Request]:
        """One request per prompt and sample."""
        return [
            Request(row, sample, ids, request_seed(self.cfg.seed, prompt.seed_text, sample))
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
    prompts: Prompts | None = None,
) -> Generation:
    """Load the model's tokenizer and the prompts, and check their token ids against those of training.

    Args:
        cfg: the configuration.
        model: a run directory, a model directory or a hub name; None: the embedded world's base model.
        out: the directory of the answers; None: one named by its content in run.dir.
        replace: whether to discard the content of the directory.
        cache: the cache directory; None for the usual one.
        inside: a run directory in which the answers are kept, in place of `out`.
        prompts: what to answer; None: what the data settings name.

    Returns:
        The inputs; its `state` is "complete" where nothing is left to generate.

    Raises:
        UsageError: an input, a setting or the directory cannot be used.
    """
    cache = cache or cache_dir()
    check_sampling(cfg.generation)
    backend = choose_backend(cfg.generation.backend)
    if prompts is None:
        prompts = load_prompts(cfg.data, continue_assistant=cfg.generation.continue_assistant)
    embedded = model is None
    subject = find(
        str(glassbox_base.ensure(cache)) if embedded else str(model), cfg.model, cache,
        name="glassbox-base" if embedded else None,
    )  # fmt: skip
    if subject.merge_obstacle is not None:
        raise UsageError(
            f"{subject.asked}: {subject.merge_obstacle}, so that neither backend serves it; give its base model"
        )
    detour = None
    if backend == "vllm" and (detour := subject.vllm_obstacle) is not None:
        if cfg.generation.backend != "auto":
            merged = (
                f", or merge it (alphapo export {subject.asked} --merge --to DIR)" if subject.base is not None else ""
            )
            raise UsageError(f"{subject.asked}: {detour}; type generation=transformers{merged}")
        backend = "transformers"
    spelled = spelled_in_prompts(prompts, subject, cfg.data)
    ids = tuple(encode(prompts, subject, cfg.data))
    check_ids(cfg, subject, prompts, ids)
    limit = longest_answer(cfg, subject, ids)
    job = GenerationJob(subject, cfg, subject.stop_ids(cfg.data), limit)
    generator = cfg.generation.generator or subject.name
    identity = {
        "generator": generator,
        "model": subject.identity(cache),
        "prompts": digest([_identity(prompt, row) for prompt, row in zip(prompts.rows, ids, strict=True)]),
        "generation": {
            "backend": backend,
            "samples": cfg.generation.samples,
            "max_new_tokens": limit,
            "temperature": job.temperature,
            "top_p": cfg.generation.top_p,
            "stop_ids": list(job.stop_ids),
            "seed": cfg.seed,
            **{key: value for key in ("exact", "top_k") if (value := getattr(cfg.generation, key))},
        },
    }  # fmt: skip
    directory = GenerateDirectory.place(out, inside, cfg.run, generator, identity)
    state = directory.open(identity, replace=replace)
    unused = unused_of_prompts(prompts, subject, cfg.data)
    said = notes.of_prompts(prompts, unused, spelled, cfg.data.special_tokens_in_text)
    said += notes.of_engine(job, backend, detour)
    return Generation(
        cfg, job, prompts, ids, said, unused, spelled, backend, directory, identity, generator, state, replace
    )  # fmt: skip


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
        if generation.cfg.generation.samples > 1 and not generation.replace:
            directory.take_over(generation.identity, generation.prompts.rows, requests, log)
        done = directory.finished()
        taken = directory.taken_over()
        # Batches are made of what no other generation had made, so that an interruption changes none.
        asked = [request for request in requests if request.key not in taken]
        left = [request for request in asked if request.key not in done]
        tokens = 0
        with Progress(len(requests), "answers", initial=len(done)) as bar:

            def record(request: Request, answer: Sample) -> None:
                nonlocal tokens
                log.add(answers.log_line(request, answer))
                done[request.key] = answer
                tokens += len(answer.ids) + (not answer.cut)  # the end token was generated, too
                bar.update()

            try:
                facts = _backend(generation).generate(generation.job, asked, record, set(done)) if left else {}
            except KeyboardInterrupt as error:
                raise Interrupted(f"interrupted: {directory.kept(len(requests))}; {GOES_ON}") from error
            except UsageError:
                raise
            except AlphapoError as error:
                raise AlphapoError(f"{error}; {directory.kept(len(requests))}{_advice(generation, tokens)}") from error
        metrics = _write(generation, done)
        thinking = thinking_of(generation.job.subject.tokenizer, generation.cfg.data)
        warnings = notes.of_answers(metrics, generation.job.limit, thinking)
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
            dtype=generation.job.subject.dtype, exact=generation.cfg.generation.exact, notes=generation.notes, warnings=warnings,
            verdict=notes.verdict(metrics, generation.job.limit),
        )  # fmt: skip
    directory.log.unlink(missing_ok=True)  # another process may have finished first and removed it
    return summary


def choose_backend(asked: str) -> str:
    """The backend for `asked` (auto: vllm where installed); raises UsageError for vllm where it is not installed."""
    installed = importlib.util.find_spec("vllm") is not None
    if asked == "vllm" and not installed:
        raise missing_extra("vLLM", "vllm")
    return asked if asked != "auto" else "vllm" if installed else "transformers"


def _identity(prompt: Prompt, ids: list[int]) -> list[Any]:
    """What of a prompt decides its answers."""
    seed = [] if prompt.seed_text == prompt.instruction else [prompt.seed_text]
    return [prompt.instruction, prompt.dataset, ids, *seed]


def _backend(generation: Generation) -> Backend:
    if generation.backend == "vllm":
        from alphapo_cli.generation.vllm_backend import VLLMBackend

        return VLLMBackend(generation.directory.engine_log)
    from alphapo_cli.generation.transformers_backend import TransformersBackend

    return TransformersBackend()


def _advice(generation: Generation, tokens: int) -> str:
    """What to type after an engine failed that has made `tokens` tokens: one that made none would fail again."""
    if tokens:
        return f"; {GOES_ON}"
    return "; generation=transformers does without vLLM" if generation.backend == "vllm" else ""


def _write(generation: Generation, done: dict[tuple[int, int], Sample]) -> dict[str, Any]:
    """Write the outputs of every sample; statistics of all answers."""
    tokenizer = generation.job.subject.tokenizer
    texts = {key: answer_text(tokenizer, answer.ids) for key, answer in done.items()}
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
    requests = generation.requests
    answers.write(generation.directory.path, generation.prompts.rows, requests, done, texts)
    keys = sorted(done)
    thinking = [_thinks(generation, row, done[row, sample], texts[row, sample]) for row, sample in keys]
    return describe([done[key] for key in keys], [texts[key] for key in keys], thinking)


def _thinks(generation: Generation, row: int, answer: Sample, text: str) -> bool:
    tokenizer = generation.job.subject.tokenizer
    whole = str(tokenizer.decode(answer.ids)) if tokenizer.all_special_tokens else text
    return notes.thinks(str(tokenizer.decode(generation.ids[row][-16:])), whole)


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
        "spelling_special_tokens": dict(generation.spelled.tokens.counts),
        "template_date": written_date(generation.job.subject.tokenizer, generation.cfg.data),
    }


def _manifest(generation: Generation) -> dict[str, Any]:
    return manifest(
        identity=generation.identity,
        model=generation.job.subject.asked,
        data={"source": generation.prompts.description, "repeated": generation.prompts.repeated},
        config=asdict(generation.cfg),
    )
