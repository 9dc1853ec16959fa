"""The judges by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.formats import ModelOutputs, read_annotations
from alphapo_cli.evaluation.judges.base import Judge
from alphapo_cli.evaluation.schema import JudgeConfig


def build(cfg: JudgeConfig, outputs: ModelOutputs, annotations: Path | None) -> Judge:
    """The judge of `cfg`, its files read and checked; imports no more than it needs.

    Raises:
        UsageError: a setting or file that this judge needs is missing or wrong.
    """
    if annotations is not None and cfg.name != "replay":
        raise UsageError(f"--annotations goes with --judge replay, not {cfg.name}")
    if cfg.name == "replay":
        from alphapo_cli.evaluation.judges.replay import Replay

        if annotations is None:
            raise UsageError("--judge replay needs --annotations FILE: the judgements to take")
        replay = Replay(read_annotations(annotations))
        replay.check_model(outputs)
        return replay
    if cfg.name == "glassbox":
        from alphapo_cli.evaluation.judges.glassbox import Glassbox

        return Glassbox()
    from alphapo_cli.evaluation.judges.asking import ModelJudge

    if cfg.model is None:
        raise UsageError(f"--judge {cfg.name} needs judge.model=NAME")
    if cfg.name == "openai":
        from alphapo_cli.evaluation.judges.openai import OpenAIEngine

        return ModelJudge(OpenAIEngine.from_environment(cfg), cfg)
    from alphapo_cli.evaluation.judges.vllm import VLLMEngine

    engine = VLLMEngine(cfg)
    # A model's path is no name for a judge.
    return ModelJudge(engine, replace(cfg, annotator=cfg.annotator or f"alphapo_vllm_{engine.subject.name}"))
