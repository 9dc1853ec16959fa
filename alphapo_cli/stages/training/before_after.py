"""Answers of a real model to a few held-out prompts, before its first step and after its last, for people to read.

They are no measurement: eight answers are too few for one, so no metric is made of them. With `probe.samples` the probe
samples answers instead, at every measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.tokenise import end_token_id
from alphapo_cli.errors import AlphapoError, in_words
from alphapo_cli.modeling.declared import model_stop_ids
from alphapo_cli.probe.sampled_answers import SampledAnswers, Sampling
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.memo import Memoize, no_memo
from alphapo_cli.stages.training.assembly import RunInputs
from alphapo_cli.stages.training.measurements import prompts_of, writer_into

PROMPTS, TOKENS = 8, 256
LEAST = 16  # tokens that an answer must have room for in the model's context


def wanted(cfg: TrainConfig) -> bool:
    """Whether a run answers prompts before and after its training: one of a model that was named, unless told otherwise."""
    return cfg.probe.samples is None and cfg.model.path is not None and cfg.data.source != "glassbox"


@dataclass
class BeforeAndAfter:
    """Writes samples/step-N.json of the policy as it is; nothing where `answers` is None."""

    answers: SampledAnswers | None
    log: Callable[[str], None]
    together: bool = False

    @classmethod
    def of(
        cls, cfg: TrainConfig, inputs: RunInputs, directory: RunDirectory, memoize: Memoize = no_memo, *,
        write: Callable[[Callable[[], None]], None] | None, log: Callable[[str], None], together: bool = False,
    ) -> BeforeAndAfter:  # fmt: skip
        """Choose the prompts.

        Args:
            cfg: the run's configuration.
            inputs: policy, tokenizer and probe pairs.
            directory: the run directory.
            memoize: shares the answers of step 0 between the runs of a sweep.
            write: calls what writes a file; None in a process that only takes part.
            log: takes a note to the user.
            together: whether processes share the model, so that all of them sample; it is gathered anew for every token
                then, and all prompts are one batch.

        Returns:
            What samples, for a model that was given by `model.path` and no `probe.samples`; else what does nothing.
        """
        if not wanted(cfg):
            return cls(None, log)
        try:
            return cls._of(cfg, inputs, directory, memoize, write, log, together)
        except Exception as error:  # they are to be read: what keeps them from being asked costs no training
            log(f"note: no answers are sampled before and after ({in_words(error)}); probe.samples=0 leaves them out")
            return cls(None, log)

    @classmethod
    def _of(
        cls, cfg: TrainConfig, inputs: RunInputs, directory: RunDirectory, memoize: Memoize,
        write: Callable[[Callable[[], None]], None] | None, log: Callable[[str], None], together: bool,
    ) -> BeforeAndAfter:  # fmt: skip
        """`of`, where answers are asked for."""
        prompts = prompts_of(cfg, inputs, PROMPTS)
        if prompts is None:
            return cls(None, log)
        lm, tokenizer = inputs.training.policy.lm, inputs.tokenizer
        context = getattr(lm.config, "max_position_embeddings", None)
        room = context - max(map(len, prompts.ids)) if isinstance(context, int) and context > 0 else TOKENS
        if room < LEAST:
            log(f"note: no answers before and after: a prompt leaves room for {max(room, 0)} tokens in the context")
            return cls(None, log)
        exact = cfg.probe.exact if cfg.probe.exact is not None else lm.dtype.itemsize < 4 and not together
        ends = model_stop_ids(lm, tokenizer, end_token_id(tokenizer, cfg.data))
        sampling = Sampling(min(TOKENS, room), cfg.probe.temperature, exact)
        keep = writer_into(directory.path / "samples", write) if write is not None else lambda file, rows: None
        return cls(
            SampledAnswers(tokenizer, ends, sampling, prompts, cfg.seed, directory.path.name, keep, memoize),
            log,
            together,
        )

    def sample(self, lm: Any, step: int) -> None:
        """Sample and write the answers at a step; what fails is told once, and no failure of the training.

        Args:
            lm: the policy's model.
            step: the optimizer step.

        Raises:
            OSError: the disk refuses the file.
            AlphapoError: one of several processes that share the model failed at step 0: the others wait for it.
        """
        if self.answers is None:
            return
        many, limit = len(self.answers.prompts.ids), self.answers.sampling.max_new_tokens
        each = "; all shards are gathered for every token, probe.samples=0 does without" if self.together else ""
        self.log(f"{many} answers of at most {limit} tokens are sampled at step {step}, to be read{each}")
        try:
            self.answers.write_texts(lm, step)
        except OSError:
            raise
        except Exception as error:
            # What an architecture cannot do fails in all processes alike; memory may be short in one of them.
            if (
                self.together
                and step == 0
                and isinstance(error, RuntimeError)
                and not isinstance(error, NotImplementedError)
            ):
                raise AlphapoError(
                    f"no answers could be sampled before training ({in_words(error)}); probe.samples=0 leaves them out"
                ) from error
            self.log(f"note: no answers were sampled ({in_words(error)}); probe.samples=0 leaves them out")
            self.answers = None
