"""Judges by name: checks of their settings, and construction."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.schema import JudgeConfig

if TYPE_CHECKING:
    from alphapo_cli.evaluation.formats import ModelOutputs
    from alphapo_cli.evaluation.judges.judge import Judge

# The form of an environment variable's name, which a key pasted in its place rarely has.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


# Fields of a request that judge.extra_body must not replace, and what says the same.
_OWN_FIELDS = {
    "messages": "the question is alphapo's own; judge.prompt_file changes it",
    "model": "type judge.model",
    "top_logprobs": "type judge.top_logprobs",
}


def check_settings(cfg: JudgeConfig, annotations: Path | None) -> None:
    """Check the judge settings alone.

    Args:
        cfg: the judge settings.
        annotations: the file of --annotations, None without the option.

    Raises:
        UsageError: a setting or file is missing or superfluous, or a key is given in place of its variable's name.
    """
    if annotations is not None and cfg.name != "replay":
        raise UsageError(f"--annotations goes with --judge replay, not {cfg.name}")
    if cfg.name == "replay" and annotations is None:
        raise UsageError("--judge replay needs --annotations FILE: the judgements to take")
    if cfg.name in ("openai", "vllm") and cfg.model is None:
        raise UsageError(f"--judge {cfg.name} needs judge.model=NAME")
    if len(set(cfg.verdict_tokens)) != 2 or len(cfg.verdict_tokens) != 2 or not all(cfg.verdict_tokens):
        raise UsageError(
            f"judge.verdict_tokens={cfg.verdict_tokens}: two different tokens are needed, for the output shown first and for "
            'the other, such as [" m"," M"]'
        )
    if cfg.name != "openai":
        return
    for field, instead in _OWN_FIELDS.items():
        if field in cfg.extra_body:
            raise UsageError(f"judge.extra_body.{field}: {instead}")
    name = cfg.api_key_env
    if name and not _VARIABLE.fullmatch(name):
        # Not shown: it may be the key itself.
        raise UsageError(
            "judge.api_key_env takes the name of an environment variable (letters, digits and _), not a key; "
            "export the key and give the variable's name"
        )


def check_key(cfg: JudgeConfig) -> None:
    """Check that the API key is set; needed only while judgements are missing.

    Args:
        cfg: the judge settings.

    Raises:
        UsageError: the environment variable `cfg.api_key_env` is empty or unset.
    """
    name = cfg.api_key_env if cfg.name == "openai" else None
    if name and not os.environ.get(name, "").strip():
        raise UsageError(
            f"no API key: put it into the environment variable {name} "
            "(judge.api_key_env=NAME for another one, judge.api_key_env=null for a server without keys)"
        )


def check_judge(cfg: JudgeConfig, annotations: Path | None) -> None:
    """Check a judge before there are outputs to judge, and so before training.

    Args:
        cfg: the judge settings.
        annotations: the file of --annotations, None without the option.

    Raises:
        UsageError: a setting, file, model, key or price is missing, or the endpoint cannot be reached.
    """
    check_settings(cfg, annotations)
    if cfg.name == "replay":
        from alphapo_cli.evaluation.formats import read_annotations

        assert annotations is not None
        read_annotations(annotations, cfg.preferences)
    if cfg.name not in ("openai", "vllm"):
        return
    from alphapo_cli.evaluation.judges.prompt import load_template

    load_template(cfg.prompt_file)
    if cfg.name == "openai":
        from alphapo_cli.evaluation.judges.openai import OpenAIEngine

        check_key(cfg)
        engine = OpenAIEngine.from_environment(cfg)
        engine.check_price()
        engine.reach()
        return
    from alphapo_cli.evaluation.judges.vllm import VLLMEngine

    VLLMEngine(cfg)


def build(cfg: JudgeConfig, outputs: ModelOutputs, annotations: Path | None, spent: float = 0.0) -> Judge:
    """Build the judge and read its files; only the modules of that judge are imported.

    Args:
        cfg: the judge settings.
        outputs: the outputs to judge.
        annotations: the file of --annotations, None without the option.
        spent: USD that other evaluations took of judge.max_cost.

    Returns:
        The judge.

    Raises:
        UsageError: a required setting or file is missing or wrong.
    """
    check_settings(cfg, annotations)
    if cfg.name == "replay":
        from alphapo_cli.evaluation.formats import read_annotations
        from alphapo_cli.evaluation.judges.replay import Replay

        assert annotations is not None
        replay = Replay(read_annotations(annotations, cfg.preferences))
        replay.check_model(outputs)
        return replay
    if cfg.name == "glassbox":
        from alphapo_cli.evaluation.judges.glassbox import Glassbox

        return Glassbox()
    from alphapo_cli.evaluation.judges.model_judge import ModelJudge

    if cfg.name == "openai":
        from alphapo_cli.evaluation.judges.openai import OpenAIEngine

        return ModelJudge(OpenAIEngine.from_environment(cfg), cfg, spent)
    from alphapo_cli.evaluation.judges.vllm import VLLMEngine

    engine = VLLMEngine(cfg)
    # The annotator is named after the model, not after its path.
    return ModelJudge(engine, replace(cfg, annotator=cfg.annotator or f"alphapo_vllm_{engine.subject.name}"))
