"""The product's answers against the world's: a real instruct model, both backends, plain transformers and plain vLLM.

Greedy in float32 on both sides, so that answers part only where two tokens are tied to round-off, which the
two logits show.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import real_model
from tests.conftest import Ran, write_rows
from tests.generation.generate_world import outputs

pytestmark = [
    *real_model.NEEDED,
    pytest.mark.nightly,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore:You're using a"),  # tokenizer.pad, where ids are at hand
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
ASKED = ("What is {}?", "Write one sentence about {}.", "Name three facts about {}, please.", "Why do people like {}?")
OF = (
    "the capital of France", "cats", "bread", "the moon", "chess", "rain", "Python", "a violin", "the river Nile", "tea",
    "photosynthesis", "gold", "a haiku", "snow ❄", "naïve café owners", "the number seven",
)  # fmt: skip
TEXTS = [ask.format(what) for what in OF for ask in ASKED]
NEW = 16  # tokens of an answer


def test_its_answers_are_the_worlds(
    tmp_path_factory: pytest.TempPathFactory, alphapo: Callable[..., Ran], real_cache: Path, tmp_path: Path
) -> None:
    directory = str(real_model.directory(tmp_path_factory))
    model, tokenizer = real_model.plain(directory)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    ids = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": text} for text in TEXTS])
    answers = {
        "plain transformers": real_model.greedy(model, tokenizer, ids, NEW),
        "plain vllm": real_model.greedy_by_vllm(directory, tokenizer, ids, NEW, tmp_path),
    }
    for backend in ("transformers", "vllm"):
        ran = alphapo(
            "generate", directory, "data=jsonl", f"data.path={file}", f"generation={backend}", "model.dtype=float32",
            "generation.temperature=0", f"generation.max_new_tokens={NEW}", "--out", str(tmp_path / backend),
            cache=real_cache,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        answers[backend] = outputs(tmp_path / backend)
    for one, other in (
        ("transformers", "plain transformers"), ("vllm", "plain vllm"), ("transformers", "vllm"),
        ("plain transformers", "plain vllm"),
    ):  # fmt: skip
        real_model.assert_same_answers(answers, one, other, ids, model, tokenizer)
