"""Arena-Hard's judges by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.arena_hard.answers import Answer, Answers
from alphapo_cli.evaluation.arena_hard.judge import ArenaHardJudge, Replay, TextJudge
from alphapo_cli.evaluation.arena_hard.judgments import check_judgments, read_judgments
from alphapo_cli.evaluation.arena_hard.schema import STYLE, ArenaHardConfig
from alphapo_cli.evaluation.judges.registry import check_settings

PILOT = 12  # answers of an endpoint without any label, after which it is asked for nothing more


def build(
    cfg: ArenaHardConfig,
    outputs: Answers,
    reference: Answers,
    pairs: Sequence[tuple[Answer, Answer]],
    annotations: Path | None,
    whole: Sequence[tuple[Answer, Answer]] | None = None,
) -> ArenaHardJudge:
    """Build the judge and read its files.

    Args:
        cfg: the configuration.
        outputs: the model's answers.
        reference: the baseline's.
        pairs: (baseline's, model's) answers to each question.
        annotations: the model_judgment file of --annotations, None without the option.
        whole: `pairs` with their thoughts, where these were removed.

    Returns:
        The judge.

    Raises:
        UsageError: a setting or file is missing, superfluous or wrong.
    """
    check_settings(cfg.judge, annotations)
    unknown = [name for name in cfg.statistics.style if name not in STYLE]
    if unknown:
        raise UsageError(f"statistics.style={cfg.statistics.style}: no {unknown[0]!r}; choose among {', '.join(STYLE)}")
    if cfg.judge.name == "replay":
        assert annotations is not None
        judgments = read_judgments(annotations)
        check_judgments(judgments, outputs, reference, pairs, whole)
        return Replay(judgments)
    version = cfg.statistics.version
    if cfg.judge.name == "openai":
        from alphapo_cli.evaluation.arena_hard.openai_text import OpenAITextEngine

        annotator = cfg.judge.annotator or str(cfg.judge.model)
        return TextJudge(OpenAITextEngine.from_environment(cfg.judge), cfg.judge, annotator, version, PILOT)
    from alphapo_cli.evaluation.arena_hard.vllm_text import VLLMTextEngine

    engine = VLLMTextEngine(cfg.judge)
    return TextJudge(engine, cfg.judge, cfg.judge.annotator or engine.subject.name, version)
