"""The typed schema of `alphapo generate`: model, prompts and sampling. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from alphapo_cli.config.overrides import Line
from alphapo_cli.config.schema import DataConfig, RunConfig, _choice, _number
from alphapo_cli.errors import ConfigError

# Settings of data that concern pairs only: ignored in a shared YAML of conf/data/, refused on the command line.
PAIRS_ONLY = (
    "eval_path", "weights", "on_template_loss", "second_end_token", "max_length", "max_prompt_length", "duplicates", "max_unknown", "workers",
    "glassbox",
)  # fmt: skip


@dataclass
class VLLMConfig:
    """Engine arguments of vLLM, by vLLM's names; null: chosen for the machine and the prompts."""

    max_num_seqs: int = _number(64, ge=1)  # sequences per scheduler step
    enforce_eager: bool | None = None  # null: true on a CPU, where compiling costs more than it saves
    gpu_memory_utilization: float = _number(0.9, gt=0, le=1)
    tensor_parallel_size: int = _number(1, ge=1)
    kv_cache_gib: float | None = _number(
        None, gt=0
    )  # on a CPU; null: what max_num_seqs whole sequences need, at most 4


@dataclass
class GenerationConfig:
    """Sampling settings; the model's generation_config (top_k, penalties, ...) is ignored, so the policy is sampled."""

    backend: str = _choice("auto", "auto", "vllm", "transformers")  # auto: vllm where it is installed
    generator: str | None = None  # the name in model_outputs.json; null: the run's or the model's own
    samples: int = _number(1, ge=1)  # answers to each prompt
    max_new_tokens: int | None = _number(None, ge=1)  # null: 2048, and at most half of the model's context
    temperature: float = _number(1.0, ge=0)  # 0: greedy
    top_p: float = _number(1.0, gt=0, le=1)
    batch_size: int = _number(32, ge=1)  # of transformers; affects speed and round-off only
    vllm: VLLMConfig = field(default_factory=VLLMConfig)


@dataclass
class SubjectConfig:
    """How the model is loaded."""

    revision: str | None = None
    dtype: str = _choice("auto", "auto", "float32", "bfloat16")  # auto: as saved
    attention: str = _choice("auto", "auto", "sdpa", "eager", "flash_attention_2")  # of transformers
    trust_remote_code: bool = False


@dataclass
class GenerateConfig:
    """The resolved configuration of `alphapo generate`."""

    model: SubjectConfig = field(default_factory=SubjectConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = _number(0, ge=0)


def check_line(line: Line) -> None:
    """Refuse overrides without effect.

    Args:
        line: the overrides of the command line.

    Raises:
        ConfigError: a setting concerns training pairs only.
    """
    for key in line.values:
        group, _, name = key.partition(".")
        if group == "data" and name.partition(".")[0] in PAIRS_ONLY:
            raise ConfigError(f"{key}: concerns training pairs; alphapo generate reads prompts only")
