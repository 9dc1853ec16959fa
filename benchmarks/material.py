"""What both sides of a benchmark are given: token pairs, a random Llama, and the same as files on disk.

Without data of your own, pairs are generated with the lengths of HH-RLHF's harmless-base test split under a BPE of 8,192
tokens: log-normal, mean prompt 126, chosen 41, rejected 52 tokens, answers correlated by 0.3; the spread of the prompts is such
that batches of eight pairs need as much padding as with the real ones (3.9 times the packed tokens). `long` puts
earlier dialogues before each prompt, up to about 726 tokens.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.bpe import train_bpe
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.text_pairs import TextPair, Verbatim
from alphapo_cli.data.token_pairs import Ragged, TokenPairs
from alphapo_cli.data.tokenise import encode_pairs

VOCABULARIES = {"8k": 8192, "32k": 32768}
LONG = 726
# mean of the length, standard deviation of its logarithm, longest; tokens
PROMPT, CHOSEN, REJECTED = (126, 0.85, 825), (41, 0.86, 281), (52, 0.91, 575)
CORRELATION = 0.3
SIZE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
BILLION = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 20, "num_attention_heads": 16}


@dataclass(frozen=True)
class Case:
    """`name` is short|long, a slash, 8k|32k."""

    name: str
    long: bool
    vocabulary: int


def case(name: str) -> Case:
    prompts, _, vocabulary = name.partition("/")
    if prompts not in ("short", "long") or vocabulary not in VOCABULARIES:
        raise SystemExit(f"--cases {name}: no such case; choose of short/8k, short/32k, long/8k, long/32k")
    return Case(name, prompts == "long", VOCABULARIES[vocabulary])


def texts(data: Path | None, count: int) -> list[TextPair]:
    """Dialogues from a file, or `count` generated ones."""
    if data is not None:
        return load_pairs(DataConfig(source="files", path=str(data))).pairs
    rng = Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(6000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]

    def say(length: float) -> str:
        return " ".join(rng.choices(words, weights, k=max(1, round(length))))

    pairs = []
    for row in range(count):
        p, c, r = _lengths(rng)
        # What surrounds the words takes some ten tokens of a prompt and two of an answer.
        question, chosen, rejected = say(p - 10), say(c - 2), say(r - 2) + " no"
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


def _lengths(rng: Random) -> tuple[float, float, float]:
    """Tokens of a prompt and of its two answers."""
    common = rng.gauss(0, 1)

    def draw(law: tuple[int, float, int], z: float) -> float:
        mean, spread, longest = law
        return min(longest, mean * math.exp(spread * z - spread**2 / 2))

    def mixed() -> float:
        return math.sqrt(CORRELATION) * common + math.sqrt(1 - CORRELATION) * rng.gauss(0, 1)

    return draw(PROMPT, rng.gauss(0, 1)), draw(CHOSEN, mixed()), draw(REJECTED, mixed())


def tokens(pairs: list[TextPair]) -> tuple[Any, TokenPairs]:
    """(a byte-level BPE of 8,192 tokens trained on the pairs, the pairs as ids)."""
    written = [t for p in pairs if p.verbatim for t in (p.verbatim.prompt, p.verbatim.chosen, p.verbatim.rejected)]
    if not written:
        written = [str(x) for p in pairs for x in (p.prompt, p.chosen, p.rejected)]
    tokenizer = train_bpe(written, VOCABULARIES["8k"])
    tokenizer.model_max_length = 4096
    e = encode_pairs(pairs, tokenizer, DataConfig(max_length=1024))
    keys = tuple(pairs[i].prompt_key for i in e.kept)
    return tokenizer, TokenPairs(e.prompt, e.chosen, e.rejected, keys, np.asarray(e.kept))


def lengthened(pairs: TokenPairs, length: int = LONG) -> TokenPairs:
    """The same answers behind prompts of `length` tokens, an eighth more or less, made of earlier dialogues."""
    rng = Random(1)
    prompts, answers = [], []
    source = 0
    for i in range(len(pairs)):
        prompt = pairs[i].prompt.tolist()
        want = round(length * rng.uniform(7 / 8, 9 / 8))
        while len(prompt) < want:
            earlier = pairs[source % len(pairs)]
            prompt = [*prompt[:1], *earlier.prompt.tolist()[1:], *earlier.chosen.tolist()[:-1], *prompt[1:]]
            source += 1
        prompts.append([prompt[0], *prompt[len(prompt) - want + 1 :]])
        answers.append((pairs[i].chosen.tolist(), pairs[i].rejected.tolist()))
    return TokenPairs(
        Ragged.from_lists(prompts),
        Ragged.from_lists([a for a, _ in answers]),
        Ragged.from_lists([b for _, b in answers]),
        pairs.prompt_keys,
        pairs.index,
    )


def random_llama(vocabulary: int, size: dict[str, int] | None = None, **more: Any) -> Any:
    """A Llama of `size` with weights drawn from seed 0; 2,048 positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"max_position_embeddings": 2048, **SIZE, **(size or {}), **more}
    config = LlamaConfig(vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape)
    return LlamaForCausalLM(config)


def write(folder: Path, pairs: list[TextPair], vocabulary: int) -> tuple[Path, Path]:
    """(a directory with model and tokenizer, pairs.jsonl) for runs as whole processes."""
    tokenizer, _ = tokens(pairs)
    random_llama(vocabulary).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = []
    for p in pairs:
        v = p.verbatim or p
        if not isinstance(v.prompt, str):
            raise SystemExit("--data: whole processes need dialogues or plain text, not messages")
        rows.append(json.dumps({"prompt": v.prompt, "chosen": v.chosen, "rejected": v.rejected}) + "\n")
    (folder / "pairs.jsonl").write_text("".join(rows))
    return folder / "model", folder / "pairs.jsonl"
