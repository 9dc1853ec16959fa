"""The typed schema of `alphapo score` and `alphapo pairs`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alphapo_cli.config.schema import DataConfig, RunConfig, _choice, _number
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.generation.schema import GenerationConfig, SubjectConfig, VLLMConfig
from alphapo_cli.pairs.schema import UNITS, PairingConfig

SCORERS = (
    "auto", "reward_model", "pair_model", "judge", "implicit", "logprob", "rule", "length", "column", "mean", "source",
    "glassbox",
)  # fmt: skip


@dataclass
class ScorerConfig:
    """One scorer, whose numbers become a column of scores."""

    # auto, of pairs: the scores that the answers have, or the embedded world's true reward.
    name: str = _choice("auto", *SCORERS)
    column: str | None = None  # name of the column; null: the scorer's name
    # A run, a saved model or a hub name: of reward_model and pair_model a sequence classifier, of logprob and implicit a
    # language model.
    model: str | None = None
    reference: str | None = None  # of implicit
    revision: str | None = None
    dtype: str = _choice("auto", "auto", "float32", "bfloat16")  # auto: as saved
    trust_remote_code: bool = False
    # Of reward_model and pair_model; auto: vllm where it is installed and its logits of such a class were compared.
    backend: str = _choice("auto", "auto", "vllm", "transformers")
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    batch_size: int = _number(8, ge=1)  # of transformers
    label: int | None = _number(None, ge=0)  # of a classifier with several: which one is the reward
    bos: str = _choice("template", "template", "none")  # one BOS where template or tokenizer write one, or none
    max_length: int | None = _number(None, ge=2)  # tokens of prompt and answer; null: the model's context
    too_long: str = _choice("drop", "drop", "cut")  # drop: no score; cut: the prompt's beginning
    reduce: str = _choice("sum", "sum", "mean")  # of log-probs: over the answer's tokens
    beta: float = _number(1.0, gt=0)  # of implicit
    # Python entry point (MODULE:FUNCTION) or a command that reads JSON Lines and writes a number a line. It runs with your
    # rights, in no sandbox, and is taken from the command line alone.
    rule: str | None = None
    timeout: float = _number(600.0, gt=0)  # seconds for a rule
    unit: str = _choice("chars", *UNITS)  # of length
    of: list[str] = field(
        default_factory=list
    )  # of mean and column: names of columns that exist; of source: of sources
    length_bias: float = 0.0  # of glassbox: reward per word added to the true one
    # Of pair_model and judge, and rubric: a judge that gives each answer a number by itself.
    aggregate: str = _choice("win_probability", "win_probability", "tournament", "rubric")
    scale: list[float] = field(default_factory=lambda: [1.0, 10.0])  # of rubric: the numbers that count
    # Text of a pair model's input, with {prompt}, {first} and {second}; PairRM's form.
    pair_format: str = "<|source|>{prompt}<|candidate1|>{first}<|candidate2|>{second}"


@dataclass
class ScorerJudgeConfig(JudgeConfig):
    """The judge of scorer=judge, with what a rubric's text needs."""

    max_tokens: int = _number(512, ge=1)  # of a rubric's text; one that is cut there holds no number
    text_temperature: float | None = _number(0.0, ge=0)  # of a rubric's text; null: not sent


@dataclass
class ScoreConfig:
    """The resolved configuration of `alphapo score`."""

    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    judge: ScorerJudgeConfig = field(default_factory=ScorerJudgeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = _number(0, ge=0)


@dataclass
class StartConfig:
    """The model that training will start from, under which `select` and `order` may name scores of pairs (ches, ...)."""

    model: str | None = None  # a run, a saved model or a hub name; null: the sampled one
    revision: str | None = None
    dtype: str = _choice("auto", "auto", "float32", "bfloat16")  # auto: as saved
    batch_size: int = _number(8, ge=1)  # pairs; changes round-off only


@dataclass
class PairsConfig(PairingConfig):
    """The resolved configuration of `alphapo pairs`."""

    recipe: str | None = None  # as typed; the recipe's settings are below
    source: str = _choice("policy", "policy", "answers")  # answers: a recipe for answers made elsewhere (--answers)
    model: SubjectConfig = field(default_factory=SubjectConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(samples=5))
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    # Further scorers by the name of their column, with the settings that differ from their defaults.
    scorers: dict[str, Any] = field(default_factory=dict)
    start: StartConfig = field(default_factory=StartConfig)
    judge: ScorerJudgeConfig = field(default_factory=ScorerJudgeConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = _number(0, ge=0)
