"""`generation.exact`: an answer depends on the model, its prompt and its seed, whatever else is generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from alphapo_cli.modeling.declared import original_context
from alphapo_cli.modeling.sampling import sample
from tests import tiny
from tests.conftest import BARE, Ran, write_rows
from tests.data import data_tokenizers as kinds
from tests.generation.generate_world import chat_model, load, outputs

Alphapo = Callable[..., Ran]
TEXTS = [
    "Name three fruits", "How do I sort a list in Python?", "What is the capital of France? " * 4, "Why",
    "The quick brown fox jumps over the lazy dog while the other dogs are sleeping.", "Call it", "Apples " * 20,
    "Is Paris on the river Seine, and do plums grow on trees there?",
]  # fmt: skip
EXACT = ("generation.exact=true", "generation.max_new_tokens=16", "generation.temperature=0")


def answers(path: Path) -> dict[str, str]:
    return {row["instruction"]: row["output"] for row in load(path / "model_outputs.json")}


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "bfloat16":
        tiny.needs_bf16()
    # Flat distributions, in which ties are frequent.
    return chat_model(tmp_path_factory.mktemp(request.param) / "model", dtype=request.param, initializer_range=0.05)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", [{"instruction": text} for text in TEXTS])


@pytest.mark.slow
def test_the_same_bytes_for_batches_orders_limits_and_a_second_start(
    model: Path, prompts: Path, alphapo: Alphapo, interrupt: Callable[..., None], tmp_path: Path
) -> None:
    line = ("generate", str(model), "data=jsonl", "generation=transformers", *EXACT)
    whole = alphapo(*line, f"data.path={prompts}", "generation.batch_size=1")
    assert whole.code == 0, whole.err
    assert "depend on what else is in their batch" not in whole.err
    expected = answers(whole.path)
    assert len(set(expected.values())) > 1
    backwards = write_rows(tmp_path / "backwards.jsonl", [{"instruction": text} for text in reversed(TEXTS)])
    others = [
        ("data.path=" + str(prompts), "generation.batch_size=3"),
        ("data.path=" + str(prompts), "generation.batch_size=8"),
        (f"data.path={backwards}",),
        (f"data.path={prompts}", "data.limit=3"),
    ]
    for number, more in enumerate(others):
        ran = alphapo(*line, *more, "--out", str(tmp_path / f"other-{number}"))
        assert ran.code == 0, ran.err
        assert answers(ran.path).items() <= expected.items()
    out = tmp_path / "stopped"
    partial = out / "partial.jsonl"
    interrupt(lambda: partial.is_file() and partial.read_bytes().count(b"\n") >= 2)
    assert alphapo(*line, f"data.path={prompts}", "--out", str(out)).code == 130
    assert alphapo(*line, f"data.path={prompts}", "--out", str(out)).code == 0
    assert answers(out) == expected


def test_it_is_another_generation_and_offered_where_weights_have_16_bits(
    tmp_path: Path, prompts: Path, alphapo: Alphapo
) -> None:
    tiny.needs_bf16()
    model = chat_model(tmp_path / "model", dtype="bfloat16", num_hidden_layers=1)
    line = ("generate", str(model), "data=jsonl", f"data.path={prompts}", "generation=transformers", "data.limit=2")
    batch = alphapo(*line, "generation.max_new_tokens=2")
    assert "note: the weights are bfloat16" in batch.err
    assert "generation.exact=true" in batch.err
    assert "bfloat16" in load(batch.path / "summary.json")["notes"][0]
    exact = alphapo(*line, "generation.max_new_tokens=2", "generation.exact=true")
    assert "note:" not in exact.err
    assert exact.path != batch.path
    assert load(exact.path / "summary.json")["exact"] is True


def test_dynamic_rope_keeps_nothing_of_an_earlier_prompt() -> None:
    """Its frequencies grow with the longest sequence seen so far, and would stay."""
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = transformers.LlamaForCausalLM(config).eval()
    draw = torch.Generator().manual_seed(0)
    longest, middle = (torch.randint(3, 97, (n,), generator=draw).tolist() for n in (110, 45))

    def answer(*prompts: list[int]) -> Any:
        drawn = sample(
            lm, prompts, [1] * len(prompts), max_new_tokens=8, temperature=0, eos_ids=[], pad_id=0, batch_size=1
        )
        return drawn[-1].ids

    alone = answer(middle)
    answer(longest)
    assert answer(middle) == alone


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_probes_samples_are_the_same_in_any_number(
    dtype: str, tmp_path: Path, alphapo: Alphapo, pairs: dict[str, Path]
) -> None:
    """In 16 bits by default, in float32 on request."""
    if dtype == "bfloat16":
        tiny.needs_bf16()
    model = chat_model(tmp_path / "model", dtype=dtype, max_position_embeddings=512)
    line = (
        "train", *BARE, "probe.samples=0", f"model.path={model}", f"model.dtype={dtype}", "data=jsonl", f"data.path={pairs['plain']}",
        "trainer=small", "trainer.max_steps=1", "trainer.per_device_train_batch_size=4", "trainer.use_cpu=true",
        "probe.pairs=8", "probe.max_new_tokens=12",
    )  # fmt: skip
    more = () if dtype == "bfloat16" else ("probe.exact=true",)
    few, many = (alphapo(*line, *more, f"probe.samples={n}", f"run.name=samples-{n}") for n in (3, 8))
    assert many.code == 0, many.err
    for name in ("reference.json", "step-0.json", "step-1.json"):
        one, other = (outputs(ran.path / "samples", name) for ran in (few, many))
        assert one == other[:3]


@pytest.mark.vllm
@pytest.mark.usefixtures("warm_engines")
@pytest.mark.parametrize("model", ["bfloat16", pytest.param("float32", marks=pytest.mark.nightly)], indirect=True)
def test_vllm_answers_exactly_too(model: Path, prompts: Path, alphapo: Alphapo, tmp_path: Path) -> None:
    line = ("generate", str(model), "data=jsonl", f"data.path={prompts}", "generation=vllm", *EXACT, "--out")
    whole = alphapo(*line, str(tmp_path / "whole"))
    assert whole.code == 0, whole.err
    part = alphapo(*line, str(tmp_path / "part"), "data.limit=3", "generation.vllm.max_num_seqs=2")
    assert answers(part.path).items() <= answers(whole.path).items()


@pytest.mark.vllm
@pytest.mark.usefixtures("warm_engines")
def test_a_long_prompt_does_not_change_the_rope_of_the_short_ones(
    prompts: Path, alphapo: Alphapo, tmp_path: Path
) -> None:
    """LongRoPE has factors for sequences within the original context, and others above; an engine of vLLM uses one kind."""
    shape = {
        "vocab_size": len(kinds.chatml()), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 512, "original_max_position_embeddings": 128,
        "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [6.0] * 16}
    config = transformers.Phi3Config(**shape, rope_parameters={**rope, "rope_theta": 1e4})
    assert original_context(config) == 128
    model = tmp_path / "model"
    torch.manual_seed(0)
    transformers.Phi3ForCausalLM(config).save_pretrained(model)
    kinds.chatml().save_pretrained(model)
    line = ("generate", str(model), "data=jsonl", f"data.path={prompts}", *EXACT, "--out")
    whole = alphapo(*line, str(tmp_path / "whole"), "generation=vllm")
    assert whole.code == 0, whole.err
    for backend in ("vllm", "transformers"):
        part = alphapo(*line, str(tmp_path / backend), "data.limit=2", f"generation={backend}")
        assert answers(part.path).items() <= answers(whole.path).items()


def test_other_models_have_no_original_context() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    for rope in (None, yarn):
        assert original_context(transformers.LlamaConfig(rope_parameters=rope)) is None
