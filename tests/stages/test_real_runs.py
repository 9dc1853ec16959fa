"""AlphaPO on a real instruct model, whole, by adapters and by adapters over a quantised base: three steps of two pairs.

What plain transformers (and peft) makes of the start, of the saved models and of the pairs is the oracle. Everything is
float32 on either side, so that all tolerances are of round-off.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.tokenise import encode_pairs
from tests import real_model, real_pairs, tiny
from tests.conftest import Ran, run_here, strict_rows, write_rows
from tests.generation.generate_world import outputs
from tests.stages.test_resume import assert_same, killed_at, weights
from tests.training.test_sharded import torchrun

pytestmark = [*real_model.NEEDED]
QUANTISED = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra quant)"
)
LINE = (
    "train", "objective=alphapo", "data=jsonl", "trainer.max_steps=3", "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=1", "trainer.order=given", "trainer.warmup_ratio=0",
    "trainer.lr_scheduler_type=constant", "trainer.learning_rate=2e-5", "trainer.use_cpu=true", "trainer.threads=1",
    # Adam divides each gradient by its own size: one that is nothing but round-off becomes a whole step.
    "trainer.adam_epsilon=1e-5", "probe.every=3", "probe.samples=0", "tracking.mode=disabled", "tracking.pictures=false",
)  # fmt: skip
SIDES = ("chosen", "rejected")
HELD_OUT_LENGTHS = [(21, 13), (27, 6), (9, 3), (7, 18)]  # tokens of the answers of real_pairs.HELD_OUT
ADAPTERS = ("model.lora.r=8", "trainer.learning_rate=1e-3")
KINDS = {
    "full": (),
    "lora": ADAPTERS,
    "qlora": (*ADAPTERS, "model.quantization=nf4", "model.merge=true"),
}
# Nats by which the log-prob of a token may differ between two orders of the same float32 arithmetic. Each tensor is
# rounded by half of eps; twelve a layer, in thirty layers, and four of embedding and head add up as independent errors;
# condition numbers are allowed for by a factor of 4; and a log-prob is a difference of logits of at most about 30.
A_TOKEN = 4 * torch.finfo(torch.float32).eps / 2 * math.sqrt(12 * 30 + 4) * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For runs, of which each takes half a gigabyte: they are not kept."""
    made = tmp_path_factory.mktemp("real")
    real_pairs.write(made)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(real_model.directory(tmp_path_factory))


@pytest.fixture(scope="module")
def before(start: str) -> list[dict[str, float]]:
    """Log-probs of the held-out pairs under the start."""
    return real_model.log_probs(*real_model.plain(start), real_pairs.HELD_OUT)


@pytest.fixture(scope="module")
def train(folder: Path, start: str) -> Callable[..., Ran]:
    def run(*overrides: str) -> Ran:
        files = (f"data.path={folder / 'pairs.jsonl'}", f"data.eval_path={folder / 'held-out.jsonl'}")
        words = {word.partition("=")[0]: word for word in (*LINE, f"model.path={start}", *files, *overrides)}
        return run_here(tuple(words.values()), folder, folder / "cache")

    return run


@pytest.fixture(scope="module")
def runs(train: Callable[..., Ran]) -> Callable[[str], Ran]:
    """The run of a kind: trained when it is first asked for."""
    made: dict[str, Ran] = {}

    def of(kind: str) -> Ran:
        if kind not in made:
            made[kind] = train(*KINDS[kind], f"run.name={kind}")
            assert made[kind].code == 0, made[kind].err
        return made[kind]

    return of


def probe(run: Path, step: int, key: str = "logps/{}_sum") -> list[dict[str, float]]:
    """What the run measured of the held-out pairs (a run shuffles them; their lengths tell them apart)."""
    rows = [row for row in strict_rows(run / "probe.jsonl") if row["step"] == step]
    lengths = [(row["tokens/chosen"], row["tokens/rejected"]) for row in rows]
    found = {sizes: {side: row[key.format(side)] for side in SIDES} for sizes, row in zip(lengths, rows, strict=True)}
    return [found[sizes] for sizes in HELD_OUT_LENGTHS]


def assert_same_log_probs(ours: list[dict[str, float]], theirs: list[dict[str, float]], run: Path) -> None:
    sizes = probe(run, 0, "tokens/{}")
    gaps = [
        abs(a[side] - b[side]) / size[side] for a, b, size in zip(ours, theirs, sizes, strict=True) for side in SIDES
    ]
    print(f"{run.name}: {max(gaps):.1e} nats a token apart, of {A_TOKEN:.1e}")
    assert max(gaps) <= A_TOKEN


def moved(run: Path) -> float:
    """Nats a token by which the held-out answer that training moved most has moved."""
    rows = [row for row in strict_rows(run / "probe.jsonl") if row["step"] == 3]
    return max(abs(row[f"displacement/{side}"]) for row in rows for side in SIDES)


@pytest.mark.slow
def test_ids_are_those_of_apply_chat_template(start: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start)
    cfg = DataConfig(source="files", path=str(folder / "pairs.jsonl"))
    encoded = encode_pairs(load_pairs(cfg).pairs, tokenizer, cfg)
    assert list(encoded.kept) == list(range(len(real_pairs.TRAINING)))
    for i, row in enumerate(real_pairs.TRAINING):
        for side in SIDES:
            ours = encoded.prompt[i].tolist(), getattr(encoded, side)[i].tolist()
            assert ours == real_model.ids_of(tokenizer, row, side), row


@pytest.mark.slow
def test_a_full_run_is_what_plain_transformers_computes(
    runs: Callable[[str], Ran], start: str, before: list[dict[str, float]]
) -> None:
    """The start, the first step's loss by plain floats, and the saved model."""
    ran = runs("full")
    model, tokenizer = real_model.plain(ran.path / "model")
    assert_same_log_probs(probe(ran.path, 0), before, ran.path)
    assert_same_log_probs(probe(ran.path, 3), real_model.log_probs(model, tokenizer, real_pairs.HELD_OUT), ran.path)
    assert moved(ran.path) > 100 * A_TOKEN  # it was trained
    recorded = [row["ids"] for row in json.loads((ran.path / "prompts.json").read_text())]
    assert recorded == [real_model.ids_of(tokenizer, row, "chosen")[0] for row in real_pairs.TRAINING[: len(recorded)]]
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()  # tied, as the start is

    losses = []
    model, tokenizer = real_model.plain(start)
    for row, sums in zip(
        real_pairs.TRAINING[:2], real_model.log_probs(model, tokenizer, real_pairs.TRAINING[:2]), strict=True
    ):
        rewards = []
        for side in SIDES:
            mean = sums[side] / len(real_model.ids_of(tokenizer, row, side)[1])
            rewards.append(2.5 * (1 - math.exp(-0.25 * mean)) / 0.25)
        losses.append(math.log1p(math.exp(-(rewards[0] - rewards[1] - 0.25))))
    first = strict_rows(ran.path / "metrics.jsonl")[1]
    # The loss moves by at most 2.5 e^(-0.25 a) nats for each of a mean log-prob a, of which there are two.
    assert first["train/loss"] == pytest.approx(sum(losses) / 2, abs=2 * 2.5 * math.exp(0.25 * 5) * A_TOKEN)


@pytest.mark.slow
@QUANTISED
def test_a_merged_qlora_run_gives_the_log_probs_that_were_trained(
    runs: Callable[[str], Ran], before: list[dict[str, float]]
) -> None:
    ran = runs("qlora")
    model, tokenizer = real_model.plain(ran.path / "model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    assert_same_log_probs(probe(ran.path, 3), real_model.log_probs(model, tokenizer, real_pairs.HELD_OUT), ran.path)
    assert moved(ran.path) > 100 * A_TOKEN
    # The base was quantised: a twentieth of a nat a token at least, and it is still the model that it was.
    rounded = [abs(a[s] - b[s]) for a, b in zip(probe(ran.path, 0), before, strict=True) for s in a]
    assert 100 * A_TOKEN < max(rounded) < 20


@pytest.mark.nightly
def test_an_adapter_is_read_by_plain_peft(runs: Callable[[str], Ran], start: str) -> None:
    from peft import PeftModel

    ran = runs("lora")
    base, tokenizer = real_model.plain(start)
    model = PeftModel.from_pretrained(base, ran.path / "model").eval()
    assert_same_log_probs(probe(ran.path, 3), real_model.log_probs(model, tokenizer, real_pairs.HELD_OUT), ran.path)
    assert moved(ran.path) > 100 * A_TOKEN


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["full", "lora", pytest.param("qlora", marks=QUANTISED)])
def test_a_killed_run_ends_as_an_undisturbed_one(
    kind: str, runs: Callable[[str], Ran], train: Callable[..., Ran]
) -> None:
    line = (*KINDS[kind], f"run.name={kind}-killed", "trainer.save_steps=2")
    with killed_at(2):
        assert train(*line).code == 1
    again = train(*line)
    assert again.code == 0, again.err
    assert "continues at step 2 of 3" in again.err
    assert_same(runs(kind).path, again.path)
    shutil.rmtree(again.path)


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Metrics, measurements and weights, to round-off."""
    for file in ("metrics.jsonl", "probe.jsonl"):
        for a, b in zip(strict_rows(ours / file), strict_rows(theirs / file), strict=True):
            tiny.assert_same_row(a, b, 10 * A_TOKEN)  # a reward is up to ten times a mean log-prob
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    for name, p in expected.items():
        # Training moves a weight by up to 6e-5, a thousandth of its size; float32 has a ten-millionth.
        assert tiny.relative_error(found[name], p) <= 1e-6, name


@pytest.mark.nightly
def test_packed_is_padded(runs: Callable[[str], Ran], train: Callable[..., Ran]) -> None:
    padded = train("layout=padded", "run.name=padded")
    assert padded.code == 0, padded.err
    assert_same_run(padded.path, runs("full").path)
    shutil.rmtree(padded.path)


@pytest.mark.nightly
def test_two_sharded_processes_are_one(runs: Callable[[str], Ran], folder: Path, start: str) -> None:
    more = (
        "sharding.mode=fsdp", "run.name=sharded", "trainer.per_device_train_batch_size=1", f"model.path={start}",
        f"data.path={folder / 'pairs.jsonl'}", f"data.eval_path={folder / 'held-out.jsonl'}",
    )  # fmt: skip
    ran = torchrun(2, *LINE, *more, cwd=folder, cache=folder / "cache")
    assert ran.code == 0, ran.err[-3000:]
    assert_same_run(ran.path, runs("full").path)
    model, tokenizer = real_model.plain(ran.path / "model")
    assert_same_log_probs(probe(ran.path, 3), real_model.log_probs(model, tokenizer, real_pairs.HELD_OUT), ran.path)
    shutil.rmtree(ran.path)


@pytest.mark.nightly
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore:You're using a")  # tokenizer.pad, where ids are at hand
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_greedy_answers_before_and_after(runs: Callable[[str], Ran], start: str, folder: Path) -> None:
    """Of start and trained model, by the product, by plain transformers, and of the trained one by plain vLLM."""
    rows = [*real_pairs.HELD_OUT, *real_pairs.TRAINING]
    file = write_rows(folder / "prompts.jsonl", [{"messages": row["prompt"]} for row in rows])
    trained, new = runs("full").path, 16
    answers: dict[str, list[str]] = {}
    for name, model_of, directory in (("before", start, start), ("after", trained, trained / "model")):
        out = folder / f"answers-{name}"
        ran = run_here(
            ("generate", str(model_of), "data=jsonl", f"data.path={file}", "generation=transformers", f"--out={out}",
             "model.dtype=float32", "generation.temperature=0", f"generation.max_new_tokens={new}"),
            folder, folder / "cache",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        answers[name] = outputs(out)
        model, tokenizer = real_model.plain(directory)
        ids = [real_model.ids_of(tokenizer, row, "chosen")[0] for row in rows]
        answers[f"{name}, plain transformers"] = real_model.greedy(model, tokenizer, ids, new)
        real_model.assert_same_answers(answers, name, f"{name}, plain transformers", ids, model, tokenizer)
    answers["after, plain vllm"] = real_model.greedy_by_vllm(trained / "model", tokenizer, ids, new, folder)
    real_model.assert_same_answers(answers, "after", "after, plain vllm", ids, model, tokenizer)
    different = [(a, b) for a, b in zip(answers["before"], answers["after"], strict=True) if a != b]
    print("\n".join(f"{a!r}\n  -> {b!r}" for a, b in different))
    assert different  # it was trained
