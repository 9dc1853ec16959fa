"""Rewards by the real vLLM: the logits of transformers, one by one and in batches, by one engine and after a kill."""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from alphapo_cli.errors import AlphapoError
from alphapo_cli.pairs.scoring.pairwise import PairModel
from alphapo_cli.pairs.scoring.reward_model import RewardModel
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from tests.pairs.scoring.test_scorers import PROMPTS, TEXTS, by_hand, classifier, padded

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.usefixtures("warm_engines"),
]


def scorer(folder: Path, cache: Path, backend: str = "vllm") -> RewardModel:
    return RewardModel("rm", ScorerConfig(name="reward_model", model=str(folder), backend=backend), cache)


def test_rewards_are_the_logits_of_transformers_whatever_the_batch_and_the_padding(tmp_path: Path) -> None:
    """1e-4 in float32; rewards above 20, whose sigmoid is 1, do not tie; one BOS; one engine for all calls."""
    plain = classifier(tmp_path / "None", scale=6.0)
    found = {}
    for pad in (None, "end"):
        folder = plain if pad is None else padded(plain, tmp_path / pad, pad)
        ours = scorer(folder, tmp_path)
        found[pad] = torch.tensor(ours.score(PROMPTS))
        if pad is None:
            process = ours.classifier._engine._engine.process
            alone = [[ours.score([replace(p, answers=(a,))])[0][0] for a in p.answers] for p in PROMPTS]
            assert torch.allclose(found[pad], torch.tensor(alone), atol=1e-4)
            assert ours.classifier._engine._engine.process is process
        log = ours.classifier._engine._log
        ours.close()
        assert not log.exists()
    expected = torch.tensor([[by_hand(plain, p, a.text) for a in p.answers] for p in PROMPTS])
    theirs = torch.tensor(scorer(plain, tmp_path, "transformers").score(PROMPTS))
    for values in (*found.values(), theirs):
        assert torch.allclose(values, expected, atol=1e-4)
    assert expected.abs().max() > 20
    assert all(len(set(row)) == len(TEXTS) for row in found[None].tolist())
    bos = AutoTokenizer.from_pretrained(plain).bos_token_id
    assert scorer(plain, tmp_path).ids(PROMPTS[0], TEXTS[0]).count(bos) == 1


def test_an_engine_that_dies_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    ours = PairModel(
        "pm",
        ScorerConfig(name="pair_model", model=str(classifier(tmp_path / "pm", labels=3)), label=1, backend="vllm"),
        tmp_path,
    )
    (row,) = ours.score(PROMPTS[:1])
    plain = replace(ours.cfg, backend="transformers")
    assert row == pytest.approx(PairModel("pm", plain, tmp_path).score(PROMPTS[:1])[0], abs=1e-4)
    engine = ours.classifier._engine._engine
    os.kill(engine.process.pid, signal.SIGKILL)
    with pytest.raises(AlphapoError, match=r"was ended by SIGKILL.*its log: "):
        ours.score(PROMPTS[:1])
    ours.close()
    assert engine.log.exists()
    engine.log.unlink()
