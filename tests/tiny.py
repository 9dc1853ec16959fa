"""Small things that the numerical tests share: random models, generated pairs, real pairs where they are at hand.

Generated pairs have the lengths of HH-RLHF's harmless-base test split, measured in words: log-normal with these medians
and spreads, chosen and rejected correlated. `scale` shortens them for models that only have to be right.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import DataConfig, ObjectiveConfig, TrainConfig, TrainerConfig
from alphapo_cli.data.bpe import train_bpe
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.text_pairs import TextPair, Verbatim
from alphapo_cli.data.token_pairs import Ragged, TokenPairs
from alphapo_cli.data.tokenise import encode_pairs
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.build import build
from alphapo_cli.objective.catalog import Method, methods
from alphapo_cli.objective.objective import Objective
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder
from alphapo_cli.training.inputs import TrainingInputs
from alphapo_cli.training.trainer import PreferenceTrainer, StepHooks

HH = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"

PROMPT = (52.8, 1.08)  # exp(mean of the log), standard deviation of the log; words
CHOSEN = (20.2, 0.97)
REJECTED = (24.8, 1.02)
CORRELATION = 0.3

PAD, BOS, EOS, FIRST = 0, 1, 2, 3  # ids of the vocabulary that `token_pairs` draws from

# name -> (classes' stem, settings); every way in which a head may differ from one matrix is among them.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral, window 8": ("Mistral", {"sliding_window": 8}),
    "gemma2, soft-capped": ("Gemma2", {"head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 8}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "cohere, scaled": ("Cohere", {"logit_scale": 0.25}),
    "granite, divided": ("Granite", {"logits_scaling": 4.0}),
    "olmo2": ("Olmo2", {}),
    "phi3, window 8": ("Phi3", {"sliding_window": 8}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "qwen3 moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    # The others normalise and rotate in float32 whatever their weights are; this one is float64 throughout.
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
}


def model(family: str = "llama", *, vocab: int = 97, seed: int = 0, spread: float = 0.3, **settings: Any) -> Any:
    """A random causal language model of about 20k parameters in float32, evaluation mode.

    `spread` is the standard deviation of its weights: large enough that its distributions are far from uniform.
    """
    import transformers

    stem, more = FAMILIES[family]
    config = getattr(transformers, f"{stem}Config")(
        **{
            "vocab_size": vocab,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
            "initializer_range": spread,
            "init_std": spread,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            **more,
            **settings,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


class Wide(TorchFunctionMode):
    """Within it, float64 stays float64: transformers' norms and softmax go through float32 whatever their input is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float or (func is torch.Tensor.to and torch.float32 in args[1:]):
                return args[0]
            if func in (torch.softmax, torch.nn.functional.softmax) and kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@functools.cache
def needs_bf16() -> None:
    """Skip where torch has no attention in bfloat16: its kernel for AVX-512 refuses a capability set below that."""
    import pytest

    try:
        q = torch.ones(1, 2, 64, 16, dtype=torch.bfloat16)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    except RuntimeError as error:
        pytest.skip(f"torch: {error}")


def perturbed(lm: nn.Module, seed: int, size: float = 0.02) -> Any:
    """A copy with noise on every weight: a reference that differs from the policy."""
    import copy

    other = copy.deepcopy(lm)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype))
    return other


def lengths(rng: Random, scale: float) -> tuple[int, int, int]:
    """Words of a prompt and of its two answers, at least 1 each."""
    common = rng.gauss(0, 1)

    def draw(median: float, spread: float, z: float) -> int:
        return max(1, round(scale * median * math.exp(spread * z)))

    def mix() -> float:
        return math.sqrt(CORRELATION) * common + math.sqrt(1 - CORRELATION) * rng.gauss(0, 1)

    return draw(*PROMPT, rng.gauss(0, 1)), draw(*CHOSEN, mix()), draw(*REJECTED, mix())


def token_pairs(n: int, *, seed: int = 0, vocab: int = 97, scale: float = 0.2) -> TokenPairs:
    """`n` pairs of random ids, each prompt with a BOS and each completion with its end token."""
    rng = Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(FIRST, vocab) for _ in range(count)]

    sizes = [lengths(rng, scale) for _ in range(n)]
    return TokenPairs(
        prompt=Ragged.from_lists([[BOS, *ids(p)] for p, _, _ in sizes]),
        chosen=Ragged.from_lists([[*ids(c), EOS] for _, c, _ in sizes]),
        rejected=Ragged.from_lists([[*ids(r), EOS] for _, _, r in sizes]),
        prompt_keys=tuple(f"{i:064x}" for i in range(n)),
        index=np.arange(n),
    )


WORDS = [
    "the",
    "of",
    "and",
    "to",
    "you",
    "a",
    "I",
    "is",
    "it",
    "that",
    "in",
    "not",
    "do",
    "can",
    "are",
    "for",
    "your",
    "this",
    "have",
    "be",
    "me",
    "what",
    "how",
    "would",
    "my",
    "with",
    "on",
    "if",
    "they",
    "about",
    "like",
    "so",
    "just",
    "people",
    "don't",
    "know",
    "think",
    "but",
    "want",
    "tell",
    "could",
    "should",
    "sure",
    "sorry",
    "help",
    "there",
    "something",
    "police",
]


def dialogues(n: int, *, seed: int = 0, scale: float = 1.0) -> list[TextPair]:
    """`n` generated pairs in the form in which HH-RLHF is loaded."""
    rng = Random(seed)

    def say(count: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(count)) + rng.choice((".", "?", "!"))

    pairs = []
    for row in range(n):
        p, c, r = lengths(rng, scale)
        question, chosen, rejected = say(p), say(c), say(r) + " no"
        pairs.append(
            TextPair(
                ({"role": "user", "content": question},),
                ({"role": "assistant", "content": chosen},),
                ({"role": "assistant", "content": rejected},),
                row=row + 1,
                verbatim=Verbatim(f"\n\nHuman: {question}\n\nAssistant:", f" {chosen}", f" {rejected}"),
            )
        )
    return pairs


def hh_dialogues() -> list[TextPair]:
    """The real pairs; look first whether `HH` is a file."""
    return load_pairs(DataConfig(source="files", path=str(HH), format="dialogue")).pairs


def encoded(pairs: list[TextPair], *, vocab: int = 400, max_length: int = 256) -> tuple[Any, TokenPairs]:
    """(byte-level BPE trained on the pairs, the pairs as ids)."""
    texts = [text for p in pairs if p.verbatim for text in (p.verbatim.prompt, p.verbatim.chosen, p.verbatim.rejected)]
    tokenizer = train_bpe(texts, vocab)
    e = encode_pairs(pairs, tokenizer, DataConfig(max_length=max_length))
    kept = np.asarray(e.kept)
    return tokenizer, TokenPairs(e.prompt, e.chosen, e.rejected, tuple(pairs[i].prompt_key for i in e.kept), kept)


def saved_start(folder: Path, train_pairs: int, eval_pairs: int) -> Path:
    """Writes a small model with its tokenizer, training pairs and evaluation pairs into `folder`; see `line_from`."""
    texts = dialogues(train_pairs + eval_pairs, seed=2, scale=0.5)
    tokenizer, _ = encoded(texts)
    model(vocab=len(tokenizer), spread=0.1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, part in (("train", texts[:train_pairs]), ("eval", texts[train_pairs:])):
        rows = [{"prompt": list(p.prompt), "chosen": list(p.chosen), "rejected": list(p.rejected)} for p in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def other_rows(start: Path) -> Path:
    """Writes the pairs of `saved_start` as lists of four scored answers and as unpaired rows, into files beside them."""
    rng = Random(3)
    for name in ("train", "eval"):
        pairs = [json.loads(line) for line in (start / f"{name}.jsonl").read_text().splitlines()]
        lists, alone = [], []
        for i, row in enumerate(pairs):
            other = pairs[(i + 1) % len(pairs)]
            answers = [row["chosen"], row["rejected"], other["chosen"], other["rejected"]]
            scored = [{"content": a[-1]["content"], "score": rng.random()} for a in answers]
            lists.append({"prompt": row["prompt"], "responses": scored})
            alone.append({"prompt": row["prompt"], "completion": answers[i % 2], "label": i % 2 == 0})
        for kind, rows in (("lists", lists), ("unpaired", alone)):
            (start / f"{name}-{kind}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return start


def line_from(start: Path) -> list[str]:
    """Overrides of `alphapo train` for one epoch from `saved_start`'s folder, the probe every other step."""
    return [
        f"model.path={start / 'model'}", "data=jsonl", f"data.path={start / 'train.jsonl'}",
        f"data.eval_path={start / 'eval.jsonl'}", "probe.every=2", "probe.batch_size=3", "trainer.learning_rate=1e-3",
        "trainer.use_cpu=true", "trainer.threads=1", "trainer.num_train_epochs=1",
        # Adam divides each gradient by its own size: one that is nothing but round-off becomes a whole step. A larger
        # epsilon leaves round-off what it is.
        "trainer.adam_epsilon=1e-5", "tracking.mode=disabled", "tracking.pictures=false", "probe.samples=0",
    ]  # fmt: skip


RATIO = "displacement/rejected_to_chosen"


def assert_same_row(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float) -> None:
    """The same keys; nulls and NaNs in the same places; numbers equal to `tolerance`, relative or absolute.

    Two keys are ratios r = a / b: of changes of log-probs or rewards since step 0. With errors e of both, r is off by
    (e + r e) / b. The share of the margin that is due to the chosen answers has e of the size of b at hand; the rejected
    answers' displacement over the chosen ones' has that of the log-probs, of which the displacement is a small difference.
    """
    assert a.keys() == b.keys()
    for key, value in a.items():
        if value is None or b[key] is None:
            assert value is b[key], key
        elif math.isnan(value):  # a trainer's own rows; metrics.jsonl has null
            assert math.isnan(b[key]), key
        else:
            size = max(1.0, abs(value))
            if key == "displacement/margin_from_chosen":
                size *= 1 + abs(value)
            elif key == RATIO:
                size = (1 + abs(value)) / min(1.0, abs(a["displacement/chosen"]))
            assert abs(value - b[key]) <= tolerance * size, (key, value, b[key])


class Logged(StepHooks):
    """Keeps what a trainer logs."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, row: dict[str, float]) -> None:
        self.rows.append((step, row))


def trainer(
    policy: PolicyModel, objective: Objective, pairs: TokenPairs, cfg: TrainerConfig, folder: Path, *,
    hooks: StepHooks | None = None, seed: int = 0, pad_id: int = PAD, **more: Any,
) -> PreferenceTrainer:  # fmt: skip
    """A trainer of its own process; `more`: what else TrainingInputs holds."""
    inputs = TrainingInputs(policy=policy, objective=objective, pairs=pairs, pad_id=pad_id, **more)
    order = DataOrder.of(cfg, len(pairs), 1, seed)
    args = training_arguments(cfg, order, str(folder), seed)
    return PreferenceTrainer(inputs, order, args, hooks, logging_steps=cfg.logging_steps)


def config(*overrides: str) -> ObjectiveConfig:
    """The objective's configuration as the command line makes it."""
    where = Sources()
    return compose("train", TrainConfig, [read_line(overrides, where)], where).objective


def objective(*overrides: str, seed: int = 0) -> Objective:
    """The objective that a command line names, in a run with that seed."""
    return build(config(*overrides), seed)


@functools.cache
def catalogue() -> dict[str, Method]:
    """The methods of conf/objective/ by name, read once for all modules that ask for them while tests are collected."""
    return {m.name: m for m in methods()}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||ours - theirs|| / ||theirs||, computed in float64; 0 where both are 0."""
    ours, theirs = ours.double(), theirs.double()
    size, gap = theirs.norm().item(), (ours - theirs).norm().item()
    return gap / size if size else (math.inf if gap else 0.0)
