"""A judge that thinks unless it is told not to, through the real vLLM: refused with the cause, and then told."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.evaluation.judges.verdict_mass import remedy
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.generation.thinking import Thinking, thinking_of
from tests.evaluation.eval_world import alphapo, load, one_line, write
from tests.evaluation.local_judge import WORDS as WORDS_OF_JUDGES
from tests.evaluation.local_judge import tokenizer

THINK = "<think>"
WORDS = (*WORDS_OF_JUDGES[:18], THINK, WORDS_OF_JUDGES[19])
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ ' ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ,' }}{% if enable_thinking is not defined or enable_thinking %}{{ ' "
    + THINK
    + "' }}{% endif %}{% endif %}"
)


def trained(folder: Path) -> Path:
    """A Llama that names a verdict after a comma, by whether `enjoy` was said, and thinks aloud after `THINK`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    lm = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(lm.parameters(), lr=3e-3)
    enjoy, comma, thought = (WORDS.index(word) for word in ("enjoy", ",", "and"))
    for _ in range(150):
        length = int(torch.randint(16, 320, (), generator=rng))
        ids = torch.where(
            torch.rand(8, length, generator=rng) < 0.8, 3, torch.randint(6, len(WORDS), (8, length), generator=rng)
        )
        ids[ids == enjoy] = 3
        said = torch.rand(8, generator=rng) < 0.5
        ids[said, int(torch.randint(1, length - 2, (), generator=rng))] = enjoy
        ids[:, 0], ids[:, -2], ids[:, -1] = 1, comma, WORDS.index(THINK)
        logits = lm(ids).logits[:, -2:].flatten(0, 1)
        verdicts = torch.where(said, WORDS.index("M"), WORDS.index("m"))
        targets = torch.stack([verdicts, torch.full_like(verdicts, thought)], 1).flatten()
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lm.save_pretrained(folder)
    tokenizer(TEMPLATE, WORDS).save_pretrained(folder)
    return folder


@pytest.mark.vllm
@pytest.mark.usefixtures("warm_engines")
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_thinking_is_named_and_can_be_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    for name in ("outputs", "reference"):
        rows: list[dict[str, Any]] = [
            {
                "instruction": f"name two {i}",
                "output": f"one {rng.choice(('two', 'four'))} {i} {name}",
                "generator": name,
            }
            for i in range(6)
        ]
        write(tmp_path / f"{name}.json", rows)
    line = (
        "eval", tmp_path / "outputs.json", "--reference", tmp_path / "reference.json", "--judge", "vllm",
        f"judge.model={trained(tmp_path / 'judge')}", "statistics.bootstrap=0",
    )  # fmt: skip
    assert alphapo(*line, "--out", tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    advice = "its chat template opens a thought: add judge.chat_template_kwargs.enable_thinking=false"
    assert any(
        text.startswith("note: judge.model=") and text.endswith(advice) for text in lines
    )  # before it is started
    said = one_line(lines[-1] + "\n")
    assert "6 of 6 answers of the judge" in said
    assert "are no verdict" in said
    assert advice in said
    assert not (tmp_path / "out" / "results.json").exists()
    assert alphapo(*line, "judge.chat_template_kwargs.enable_thinking=false", "--out", tmp_path / "told") == 0
    assert "opens a thought" not in capsys.readouterr().err
    results = load(tmp_path / "told" / "results.json")
    assert results["judging"]["verdict_mass"]["lowest"] > 0.5
    assert results["n_total"] == 6


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}", Thinking(True, "enable_thinking=false")),
        ("{% if thinking is not defined or thinking %}<think>\n{% else %}</think>{% endif %}", Thinking(True, "thinking=false")),
        ("{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
         Thinking(False, "enable_thinking=false")),
        ("<think>\n", Thinking(True, None)),
        ("", Thinking()),
    ],
)  # fmt: skip
def test_what_a_template_does_about_thoughts(more: str, expected: Thinking) -> None:
    template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}, "
        + more
        + "{% endif %}"
    )
    found = thinking_of(tokenizer(template), DataConfig(template="chat"))
    assert found == expected
    if expected.switch:
        name = expected.switch.partition("=")[0]
        off = DataConfig(template="chat", chat_template_kwargs={name: False})
        assert thinking_of(tokenizer(template), off) == Thinking()


def test_what_is_said_of_it() -> None:
    thinks, switch, none = [[("<think>", -0.1)]], Thinking(True, "thinking=false"), Thinking()
    assert "add judge.chat_template_kwargs.thinking=false" in remedy(thinks, JudgeConfig(), switch)
    assert "knows neither enable_thinking nor thinking" in remedy(thinks, JudgeConfig(), Thinking(True))
    assert "it thinks before it answers" in remedy(thinks, JudgeConfig(), none)
    assert "lets it think: add judge.chat_template_kwargs.enable_thinking=false" in remedy(
        [[("Okay", -0.1)]], JudgeConfig(), Thinking(False, "enable_thinking=false")
    )
