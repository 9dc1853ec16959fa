"""The typed schema of `alphapo eval`: judge, queries and statistics. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alphapo_cli.config.schema import RunConfig, _choice, _number
from alphapo_cli.generation.schema import VLLMConfig

STRIP_THINK = "strip_think"  # the key of EvalConfig that --strip-think sets


@dataclass
class JudgeConfig:
    """The judge. All settings below `name` concern judges that are language models."""

    name: str = _choice("glassbox", "replay", "openai", "vllm", "glassbox")
    model: str | None = None
    annotator: str | None = None  # the name in annotations.json; null: by judge and model
    # What the numbers of replayed annotations mean; auto: as in AlpacaEval's files, unless that is ambiguous.
    preferences: str = _choice("auto", "auto", "alpaca_eval", "01")
    prompt_file: str | None = None  # AlpacaEval's template format; null: alphapo's own text
    top_logprobs: int = _number(5, ge=2, le=20)
    temperature: float | None = _number(
        1.0, ge=0
    )  # sampling only: log-probs are read, not the drawn token; null: not sent
    seed: int = _number(0, ge=0)  # of the order in which the two outputs are shown
    both_orders: bool = False  # ask twice, each output first once, and take the mean
    # A first token that is m or M with less probability than this, both together, is no verdict: the judgement failed.
    min_mass: float = _number(0.5, ge=0, le=1)
    # The first tokens that stand for m and M, where the judge writes another (" m" and " M").
    verdict_tokens: list[str] = field(default_factory=lambda: ["m", "M"])
    # Variables of the judge's chat template (enable_thinking: false); sent with each request to an endpoint.
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_failed: int = _number(0, ge=0)  # judgements that may fail permanently and be left out (null, never a draw)
    # An OpenAI-compatible endpoint.
    base_url: str | None = None
    api_key_env: str | None = "OPENAI_API_KEY"  # the environment variable that holds the key; null: no key
    api_version: str | None = None  # Azure's api-version; the key then goes into its api-key header
    token_limit_key: str = _choice("max_tokens", "max_tokens", "max_completion_tokens")
    extra_body: dict[str, Any] = field(default_factory=dict)  # further fields of each request
    concurrency: int = _number(8, ge=1)
    timeout: float = _number(60.0, gt=0)  # seconds for one attempt
    attempts: int = _number(7, ge=1)
    wait: float = _number(1.0, ge=0)  # seconds before the second attempt, doubled before each further one
    max_wait: float = _number(60.0, ge=0)  # seconds at most between two attempts, the server's Retry-After included
    price_input: float | None = _number(None, ge=0)  # USD for a million tokens; null: known models only
    price_output: float | None = _number(None, ge=0)
    max_cost: float | None = _number(None, ge=0)  # USD for the whole evaluation, earlier launches included
    # A local model.
    dtype: str = _choice("auto", "auto", "float32", "bfloat16")  # auto: as saved
    vllm: VLLMConfig = field(default_factory=VLLMConfig)


def verdict_settings(cfg: JudgeConfig) -> dict[str, Any]:
    """The judge settings that decide what an answer says, and not what is asked."""
    return {"min_mass": cfg.min_mass, "verdict_tokens": list(cfg.verdict_tokens)}


@dataclass
class StatisticsConfig:
    """Statistics of the judgements. Changing them never queries the judge again."""

    bootstrap: int = _number(2000, ge=0)  # resamples of the length-controlled rate; 0: no interval of it
    confidence: float = _number(0.95, gt=0, lt=1)
    seed: int = _number(0, ge=0)
    length_bins: int = _number(5, ge=1)
    # Inverse strength of the length-controlled fit's penalty; null: cross-validated, as AlpacaEval does.
    c: float | None = _number(None, gt=0)
    # Look difficulty up by row position, as the published figures of files with missing rows do.
    official_row_index: bool = False


@dataclass
class EvalConfig:
    """The resolved configuration of `alphapo eval`."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    strip_think: bool = False  # remove the thoughts in answers, on both sides, before anything else
    run: RunConfig = field(default_factory=RunConfig)
