"""Generation and evaluation that `alphapo run` or `sweep` do after training: their settings, checks and hash."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli.config.compose import compose
from alphapo_cli.config.config_file import ConfigFile
from alphapo_cli.config.embedded_world import WORLD, names
from alphapo_cli.config.keys import UnknownKeyError, differing_keys, leaves
from alphapo_cli.config.overrides import Line, Sources, read_line
from alphapo_cli.config.schema import DataConfig, TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.registry import check_judge, check_settings
from alphapo_cli.evaluation.schema import STRIP_THINK, EvalConfig, JudgeConfig, StatisticsConfig
from alphapo_cli.generation.prompts import check_files
from alphapo_cli.generation.schema import GenerateConfig, GenerationConfig, check_line, check_sampling
from alphapo_cli.stages import eval_at
from alphapo_cli.stages.judging_cost import announcement, check_limit
from alphapo_cli.stages.paths import check_judge as check_local_judge
from alphapo_cli.stages.plan_refusals import check_adapter, refuse_true_reward
from alphapo_cli.storage.hashing import plan_key

# What overrides of generation and of evaluation begin with.
GENERATE = ("generation", "prompts")
EVALUATE = ("judge", "statistics", STRIP_THINK)
LATER = (*GENERATE, *EVALUATE, eval_at.SECTION)  # the same in a file of --config


# A key of generation's `data` in a message; a file may be called data, too.
_PROMPT_KEY = re.compile(r"\bdata\.(?=(?:path|name|split|eval_split|config)\b)")


@dataclass(frozen=True)
class Plan:
    """Overrides and files for generation and evaluation of a trained run, composed with the settings of each run."""

    generate: Line
    evaluate: Line
    sources: Sources
    reference: Path | None = None  # None: answers of the model that training started from
    annotations: Path | None = None
    difficulty: Path | None = None
    gamed: Path | None = None
    at: tuple[float, ...] = ()  # fractions of training after which the model is evaluated, too
    max_cost: float | None = None  # USD for all evaluations of a run

    def check(self, cfg: TrainConfig) -> None:
        """Check, before training, the settings of the later stages.

        Raises:
            UsageError: no reference can be generated, a file is missing, or a setting is invalid.
        """
        check_line(self.generate)
        generate, evaluate = self.settings()
        check_settings(evaluate.judge, self.annotations)
        check_limit(evaluate.judge, self.max_cost)
        check_sampling(generate.generation)
        if generate.generation.backend == "vllm" and cfg.model.lora.r is not None and not cfg.model.merge:
            check_adapter(cfg.model)
        if self.reference is None and cfg.model.path is None and cfg.model.source == "from_scratch":
            raise UsageError(
                "a model from random weights has no answers to be compared with: give --reference REF.json"
            )
        eval_at.check(self.at, cfg)
        for flag in ("reference", "annotations", "difficulty", "gamed"):
            path = getattr(self, flag)
            if path is not None and not path.exists():
                raise UsageError(f"--{flag} {path}: no such file")

    def settings(self) -> tuple[GenerateConfig, EvalConfig]:
        """Settings of generation and evaluation, without those that depend on the run."""
        with hints_from_other_stages("generate", self.sources):
            generate = compose("generate", GenerateConfig, [self.generate], self.sources)
        with hints_from_other_stages("eval", self.sources):
            return generate, compose("eval", EvalConfig, [self.evaluate], self.sources)

    def to_yaml(self) -> str:
        """The resolved settings of the later stages as YAML, under their names on the command line."""
        generate, evaluate = self.settings()
        parts = {"generation": generate.generation, "prompts": generate.data}
        parts |= {"judge": evaluate.judge, "statistics": evaluate.statistics}
        shown: dict[str, Any] = {name: OmegaConf.structured(part) for name, part in parts.items()}
        if self.at:
            shown[eval_at.SECTION] = {"at": list(self.at)}
        return str(OmegaConf.to_yaml(OmegaConf.create({**shown, STRIP_THINK: evaluate.strip_think})))

    def check_files(self) -> None:
        """Check that the files of prompts and the judge's model are there, before anything heavy is imported.

        Raises:
            UsageError: one is missing; the message has the name that was typed.
        """
        generate, evaluate = self.settings()
        check_local_judge(evaluate.judge)
        try:
            check_files(generate.data)
        except UsageError as error:
            raise UsageError(_PROMPT_KEY.sub("prompts.", str(error))) from error

    def check_inputs(self, cfg: TrainConfig) -> str:
        """Check, before training, the files and the judge of the later stages.

        Args:
            cfg: the configuration of a run.

        Returns:
            How many judgements there will be, and what they cost at most.

        Raises:
            UsageError: a file is invalid, the reference lacks answers to prompts, the judge cannot be used, or the data are
                not the embedded world's and the judge is its true reward, which they do not have.
        """
        from alphapo_cli.evaluation import length_controlled
        from alphapo_cli.evaluation.formats import read_outputs, short
        from alphapo_cli.evaluation.judges.glassbox import check_instructions
        from alphapo_cli.generation.prompts import load_prompts
        from alphapo_cli.stages.generate import choose_backend
        from alphapo_cli.stages.own_prompts import own_prompts

        generate, evaluate = self.settings()
        if self.takes_own_prompts(cfg) and evaluate.judge.name == WORLD:
            refuse_true_reward(cfg)
        check_judge(evaluate.judge, self.annotations)
        choose_backend(generate.generation.backend)
        if self.takes_own_prompts(cfg):
            prompts = own_prompts(cfg, generate.data.limit)
        else:
            prompts = load_prompts(generate.data, continue_assistant=generate.generation.continue_assistant)
        if evaluate.judge.name == "glassbox":
            check_instructions([prompt.instruction for prompt in prompts.rows])
        if self.gamed is not None:
            length_controlled.read_gamed(self.gamed)
        instructions = [prompt.instruction for prompt in prompts.rows]
        models = len({*self.at, 1.0})
        said = announcement(evaluate.judge, instructions, models, generate.generation.max_new_tokens)
        if self.reference is None:
            return said
        reference = read_outputs(self.reference)
        known = reference.by_instruction()
        missing = [prompt.instruction for prompt in prompts.rows if prompt.instruction not in known]
        if missing:
            raise UsageError(
                f"--reference {self.reference}: has no answer to {len(missing)} of {len(prompts.rows)} prompts, first "
                f"{short(missing[0])}; take a reference to the same prompts (prompts=..., prompts.path=FILE)"
            )
        if self.difficulty is not None:
            length_controlled.read_difficulty(self.difficulty, reference)
        return said

    def takes_own_prompts(self, cfg: TrainConfig) -> bool:
        """Whether the prompts of the run's own held-out pairs are answered: on other data, where none are named."""
        named = names([self.generate], "data")
        return not named and cfg.data.source != WORLD and self.settings()[0].data.source == WORLD

    @property
    def lines(self) -> list[Any]:
        """[groups, values] of generation and of evaluation, as JSON types."""
        found: list[Any] = [[list(line.groups), dict(line.values)] for line in (self.generate, self.evaluate)]
        return [*found, [[], {eval_at.KEY: list(self.at)}]] if self.at else found

    @cached_property
    def key(self) -> str:
        """Hash of everything that the outcome depends on, apart from the run itself."""
        return plan_key(self.lines, (self.reference, self.annotations, self.difficulty, self.gamed))

    def changed(self, lines: list[Any]) -> list[str]:
        """The keys, as typed, that differ between the `lines` of another plan and this one's."""

        def flat(lines: list[Any]) -> dict[str, Any]:
            chosen = {name: choice for groups, _ in lines for name, _, choice in (g.partition("=") for g in groups)}
            values = {key: value for _, values in lines for key, value in values.items()}
            return {_as_prompts(key): value for key, value in (chosen | values).items()}

        return differing_keys(flat(lines), flat(self.lines))


@contextlib.contextmanager
def hints_from_other_stages(stage: str, sources: Sources, more: Sequence[str] = ()) -> Iterator[None]:
    """Within the block, the error for an unknown key of one stage looks for the key in the other stages too.

    Args:
        stage: the one that the block composes: train, generate or eval.
        sources: the directories of YAML files.
        more: further keys of the command line.

    Yields:
        Nothing.

    Raises:
        UnknownKeyError: the block raised one.
    """
    try:
        yield
    except UnknownKeyError as error:
        keys = {
            "train": [*leaves(asdict(compose("train", TrainConfig, [], sources)))],
            "generate": [*leaves(asdict(GenerationConfig()), "generation."), *leaves(asdict(DataConfig()), "prompts.")],
            "eval": [
                *leaves(asdict(JudgeConfig()), "judge."), *leaves(asdict(StatisticsConfig()), "statistics."), STRIP_THINK,
            ],
        }  # fmt: skip
        others = [key for name, of_stage in keys.items() if name != stage for key in of_stage]
        typed = _as_prompts if stage == "generate" else str
        raise error.among([*others, *more, eval_at.KEY], typed) from error


def _as_prompts(text: str) -> str:
    """A text about a key of generation's `data` with the name that it has on the command line."""
    return re.sub(r"\bdata\b", "prompts", text)


def split_line(texts: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Split the overrides of a command line by stage.

    `prompts=NAME` and `prompts.KEY=...` become generation's `data=NAME` and `data.KEY=...`; `data` is training's.

    Args:
        texts: the overrides, as typed.

    Returns:
        (of training, of generation, of evaluation); `eval.at` is in the last, and what it asks of training in the first.

    Raises:
        UsageError: `eval.at` is wrong, or at odds with the settings of training.
    """
    texts, at = eval_at.take(texts)
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for text in texts:
        head = text.partition("=")[0].partition(".")[0]
        if head == "prompts":
            parts[1].append(text.replace("prompts", "data", 1))
        else:
            parts[1 if head in GENERATE else 2 if head in EVALUATE else 0].append(text)
    parts[0].extend(eval_at.saving(parts[0], at))
    if at:
        parts[2].append(f"{eval_at.KEY}={[*at]}")
    return parts


def make_plan(
    generate: list[str],
    evaluate: list[str],
    sources: Sources,
    settings_file: ConfigFile | None = None,
    **files: Path | None,
) -> Plan:
    """Make a plan from the overrides of generation and evaluation.

    Args:
        generate: overrides of generation.
        evaluate: overrides of evaluation.
        sources: the directories of YAML files.
        settings_file: the file of --config, whose sections for these stages lie beneath them; None without one.
        files: the files of `Plan`.

    Returns:
        The plan.

    Raises:
        ConfigError: as `read_line` does, or the file is invalid.
        UsageError: `eval.at` is invalid.
    """
    evaluate, at = eval_at.take(evaluate)
    if settings_file is not None and not at:
        known = settings_file.part([eval_at.SECTION]).settings
        if known:
            at = eval_at.checked(known.get(eval_at.KEY), known.get(eval_at.KEY))
    generation, evaluation = read_line(generate, sources), read_line(evaluate, sources)
    if settings_file is not None:
        prompts = settings_file.part(GENERATE, {"prompts": "data"})
        generation = prompts.merged("generate", GenerateConfig, generation, sources)
        evaluation = settings_file.part(EVALUATE).merged("eval", EvalConfig, evaluation, sources)
    given: dict[str, Any] = {**files, "at": at}
    return Plan(generation, evaluation, sources, **given)


def training_part(settings_file: ConfigFile | None) -> ConfigFile | None:
    """The settings of a file that are not for the stages after training; None without a file."""
    if settings_file is None:
        return None
    for section in LATER:
        settings_file = settings_file.without(section)
    return settings_file
