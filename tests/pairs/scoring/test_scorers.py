"""Scorers that read a model: against plain transformers, one answer at a time, and against `alphapo loss`."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.pairs import read
from alphapo_cli.pairs.candidates import Answer, Candidates
from alphapo_cli.pairs.scoring.log_probs import Implicit, LogProbs
from alphapo_cli.pairs.scoring.pairwise import PairModel, tournament, win_probabilities
from alphapo_cli.pairs.scoring.reward_model import RewardModel
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from alphapo_cli.pairs.scoring.store import scored
from tests.conftest import Ran, run_here, write_rows
from tests.data import data_tokenizers as kinds

Alphapo = Callable[..., Ran]
by_transformers = functools.partial(ScorerConfig, backend="transformers")
TEXTS = ["Paris.", "It is Paris, on the river Seine.", "No.", "Apples, pears and plums."]
PROMPTS = [
    Candidates([{"role": "user", "content": text}], tuple(Answer(t, n) for n, t in enumerate(TEXTS)))
    for text in ("What is the capital of France?", "Name three fruits, please.")
]


def classifier(folder: Path, *, scale: float = 1.0, labels: int = 1) -> Path:
    """A random Llama classifier of no padding token, with a tokenizer whose template writes a BOS."""
    disable_progress_bar()
    tokenizer = kinds.with_template(kinds.LLAMA2)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.3, num_labels=labels, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(config)
    model.score.weight.data *= scale
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def padded(folder: Path, to: Path, pad: str) -> Path:
    """The same weights with a padding token: the end token, or one of its own."""
    shutil.copytree(folder, to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    tokenizer.pad_token = tokenizer.eos_token if pad == "end" else "<|end|>"
    tokenizer.save_pretrained(to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "pad_token_id": tokenizer.pad_token_id}))
    return to


def by_template(tokenizer: Any, prompt: Candidates, text: str) -> list[int]:
    whole = tokenizer.apply_chat_template([*prompt.messages, {"role": "assistant", "content": text}], tokenize=False)
    found: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return found


def by_hand(folder: Path, prompt: Candidates, text: str) -> float:
    """The logit of the last token, from the inner model alone: no padding, no pooling of transformers."""
    model, tokenizer = (
        LlamaForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = torch.tensor([by_template(tokenizer, prompt, text)])
    assert ids[0].tolist().count(tokenizer.bos_token_id) == 1
    with torch.no_grad():
        return float(model.score(model.model(ids).last_hidden_state[0, -1])[0])


def test_a_reward_is_the_logit_at_the_last_token_whatever_the_padding(tmp_path: Path) -> None:
    """Pad equal to the end token, or none, changes nothing; nor does the batch. Large rewards do not tie."""
    found: dict[str | None, list[list[float | None]]] = {}
    plain = classifier(tmp_path / "None")
    for pad in (None, "own", "end"):
        folder = plain if pad is None else padded(plain, tmp_path / pad, pad)
        scorer = RewardModel("rm", by_transformers(name="reward_model", model=str(folder)), tmp_path)
        found[pad] = scorer.score(PROMPTS)
        alone = [[scorer.score([replace(p, answers=(a,))])[0][0] for a in p.answers] for p in PROMPTS]
        # float32, 2 layers of width 64: what batching moves is far below 1e-4.
        assert torch.allclose(torch.tensor(found[pad]), torch.tensor(alone), atol=1e-4)
    for pad in ("own", "end"):
        assert torch.allclose(torch.tensor(found[pad]), torch.tensor(found[None]), atol=1e-4)
    expected = [[by_hand(tmp_path / "end", p, a.text) for a in p.answers] for p in PROMPTS]
    assert torch.allclose(torch.tensor(found["end"]), torch.tensor(expected), atol=1e-4)
    large = classifier(tmp_path / "large", scale=60.0)
    for dtype in ("float32", "bfloat16"):  # above 16 the numbers of bfloat16 are an eighth apart
        cfg = by_transformers(name="reward_model", model=str(large), dtype=dtype)
        scores = RewardModel("rm", cfg, tmp_path).score(PROMPTS)
        assert max(abs(value) for row in scores for value in row) > 20
        assert all(len(set(row)) == len(TEXTS) for row in scores)
        assert all(value * 8 % 1 for row in scores for value in row if abs(value) > 16)


GATE = """from types import SimpleNamespace
from transformers import LlamaForSequenceClassification

class Gate(LlamaForSequenceClassification):
    def forward(self, input_ids, attention_mask):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = states[range(len(states)), attention_mask.sum(1) - 1]
        return SimpleNamespace(logits=self.score(last), score=2 * self.score(last)[:, 0])
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_a_class_of_the_repository_runs_where_that_was_allowed_alone_and_its_score_is_the_reward(
    trusted: bool, tmp_path: Path
) -> None:
    """ArmoRM's interface: the output has a `score` beside its logits."""
    folder = classifier(tmp_path / "gate")
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModelForSequenceClassification": "modeling_gate.Gate"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "modeling_gate.py").write_text(GATE)
    cfg = by_transformers(name="reward_model", model=str(folder), trust_remote_code=trusted)
    (row,) = RewardModel("rm", cfg, tmp_path).score(PROMPTS[:1])
    plain = [by_hand(folder, PROMPTS[0], text) for text in TEXTS]
    assert row == pytest.approx([(1 + trusted) * value for value in plain], abs=1e-4)
    if trusted:
        with pytest.raises(UsageError, match=r"code of its repository.*type scorer\.backend=transformers"):
            RewardModel("rm", replace(cfg, backend="vllm"), tmp_path)


def test_a_reward_model_has_one_bos_or_none_and_says_what_does_not_fit(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(**settings: Any) -> list[int] | None:
        scorer = RewardModel("rm", by_transformers(name="reward_model", model=str(folder), **settings), tmp_path)
        return scorer.ids(PROMPTS[0], TEXTS[1])

    whole = ids()
    assert whole[0] == tokenizer.bos_token_id
    assert whole.count(tokenizer.bos_token_id) == 1
    assert ids(bos="none") == whole[1:]
    assert ids(max_length=len(whole) - 1) is None
    assert ids(max_length=len(whole) - 1, too_long="cut") == [whole[0], *whole[2:]]
    assert ids(max_length=4, too_long="cut") is None, "an answer is never cut"

    def shortened(**settings: Any) -> int:
        cfg = by_transformers(name="reward_model", model=str(folder), **settings)
        return RewardModel("rm", cfg, tmp_path).shortened(PROMPTS[:1])

    lengths = [len(by_template(tokenizer, PROMPTS[0], text)) for text in TEXTS]
    assert shortened(max_length=max(lengths) - 1, too_long="cut") == sum(n == max(lengths) for n in lengths)
    assert shortened(max_length=max(lengths) - 1) == shortened(max_length=4, too_long="cut") == 0


def test_what_is_no_reward_model_is_refused_before_it_loads(tmp_path: Path, shared_cache: Path) -> None:
    several = classifier(tmp_path / "several", labels=3)
    with pytest.raises(UsageError, match=r"has 3 labels; which one is the reward\? type scorer.label=N \(0 to 2\)"):
        RewardModel("rm", ScorerConfig(name="reward_model", model=str(several)), tmp_path)
    with pytest.raises(UsageError, match="has 3 label"):
        RewardModel("rm", ScorerConfig(name="reward_model", model=str(several), label=3), tmp_path)
    assert RewardModel("rm", ScorerConfig(name="reward_model", model=str(several), label=2), tmp_path).label == 2
    (base,) = (shared_cache / "base").iterdir()
    with pytest.raises(UsageError, match=r"is a language model .* not a sequence classifier"):
        RewardModel("rm", ScorerConfig(name="reward_model", model=str(base)), tmp_path)
    bare = classifier(tmp_path / "bare")
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    for file in bare.glob("*.jinja"):
        file.unlink()
    tokenizer.save_pretrained(bare)
    scorer = RewardModel("rm", ScorerConfig(name="reward_model", model=str(bare)), tmp_path)
    with pytest.raises(UsageError, match="no chat template, and 2 of 2 prompts are messages"):
        scorer.check(PROMPTS)


def test_scores_are_kept_and_batches_do_not_depend_on_what_is_kept(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "rm")

    def ask(prompts: list[Candidates], cache: str) -> tuple[list[list[float]], int]:
        cfg = by_transformers(name="reward_model", model=str(folder), batch_size=3)
        found, new = scored(prompts, RewardModel("rm", cfg, tmp_path / cache), tmp_path / cache)
        return [[a.scores["rm"] for a in p.answers] for p in found], new

    whole, new = ask(PROMPTS, "a")
    assert new == 8
    assert ask(PROMPTS[::-1], "a") == (whole[::-1], 0)
    fewer = [replace(p, answers=p.answers[:2]) for p in PROMPTS]
    assert ask(fewer, "b")[1] == 4
    assert ask(PROMPTS, "b") == (whole, 4), "the numbers of answers that are added do not change the others'"
    # A kill between two lines: what is missing is computed in the batch that it was in.
    (file,) = (tmp_path / "a" / "scores").glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][:20])
    assert ask(PROMPTS, "a") == (whole, 4)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, Path, Path]:
    """(answers of the embedded base model, that model, another one with moved weights)."""
    folder = tmp_path_factory.mktemp("sampled")
    ran = run_here(
        ("generate", "generation=transformers", "data.limit=4", "generation.samples=3"), folder, shared_cache
    )
    assert ran.code == 0, ran.err
    base = Path(json.loads((ran.path / "manifest.json").read_text())["model"])
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder / "moved")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "moved")
    return ran.path, base, folder / "moved"


def test_log_probs_are_those_of_the_sampler(sampled: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """From the sampled ids, and, as the world's tokenizer is unambiguous, from the texts alone too."""
    answers, base, _ = sampled
    prompts = read.of_directory(answers)
    for found in (
        prompts,
        [replace(p, ids=None, answers=tuple(replace(a, ids=None) for a in p.answers)) for p in prompts],
    ):
        scorer = LogProbs("lp", ScorerConfig(name="logprob"), DataConfig(), tmp_path, str(base), "scorer.model")
        values = scorer.score(found)
        for prompt, row in zip(prompts, values, strict=True):
            for answer, value in zip(prompt.answers, row, strict=True):
                if not answer.cut:  # from the text alone nobody knows that the limit cut it
                    assert value == pytest.approx(answer.logprob, abs=1e-3)
    mean = LogProbs(
        "lp", ScorerConfig(name="logprob", reduce="mean"), DataConfig(), tmp_path, str(base), "scorer.model"
    )
    for prompt, row in zip(prompts, mean.score(prompts), strict=True):
        for answer, value in zip(prompt.answers, row, strict=True):
            assert value == pytest.approx(answer.logprob / (len(answer.ids) + (not answer.cut)), abs=1e-3)


def test_the_implicit_reward_is_dpos_reward_in_alphapo_loss(
    sampled: tuple[Path, Path, Path], alphapo: Alphapo, tmp_path: Path
) -> None:
    answers, base, moved = sampled
    prompts = read.of_directory(answers)
    cfg = ScorerConfig(name="implicit", model=str(moved), reference=str(base), beta=0.3)
    rewards = Implicit("implicit", cfg, DataConfig(), tmp_path).score(prompts)
    models = [AutoModelForCausalLM.from_pretrained(path).eval().double() for path in (moved, base)]
    end = AutoTokenizer.from_pretrained(base).eos_token_id

    def log_prob(model: Any, prompt: Candidates, answer: Answer) -> float:
        ids = [*answer.ids, *([] if answer.cut else [end])]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.ids, *ids]])).logits[0, len(prompt.ids) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())

    rows = []
    for prompt in prompts:
        sides = prompt.answers[:2]
        now, before = ([log_prob(model, prompt, a) for a in sides] for model in models)
        lengths = [len(a.ids) + (not a.cut) for a in sides]
        rows.append({
            "chosen_logp": now[0], "rejected_logp": now[1], "ref_chosen_logp": before[0], "ref_rejected_logp": before[1],
            "chosen_tokens": lengths[0], "rejected_tokens": lengths[1],
        })  # fmt: skip
    ran = alphapo("loss", str(write_rows(tmp_path / "rows.jsonl", rows)), "objective=dpo", "objective.beta=0.3")
    assert ran.code == 0, ran.err
    for line, row in zip(ran.out.splitlines(), rewards, strict=True):
        found = json.loads(line)
        # Sums of some ten float32 log-probs on one side, of float64 ones on the other.
        assert row[:2] == pytest.approx([found["chosen_reward"], found["rejected_reward"]], abs=1e-4)


def _won(order: Sequence[int], duels: Sequence[tuple[int, int]]) -> list[float]:
    return [float(order[i] > order[j]) for i, j in duels]


def test_win_probabilities_and_the_tournament() -> None:
    strength = [0.3, 2.0, -1.0, 0.9, 0.1, -0.4, 1.2, 0.5]
    asked: list[tuple[int, int]] = []

    def compare(duels: Any) -> list[float]:
        asked.extend(duels)
        return [float(torch.sigmoid(torch.tensor(strength[i] - strength[j]))) for i, j in duels]

    assert tournament(8, compare) == [0, 1, -1, 0, 0, 0, 0, 0]
    assert len(asked) == 11
    assert tournament(8, lambda duels: [0.5] * len(duels)) == [0.0] * 8
    means = win_probabilities(8, compare)
    table = torch.sigmoid(torch.tensor(strength)[:, None] - torch.tensor(strength))
    assert means == pytest.approx(table.mean(1).tolist())
    assert sum(means) / 8 == pytest.approx(0.5)
    for size in range(2, 7):
        for order in itertools.permutations(range(size)):
            found = tournament(size, functools.partial(_won, order))
            assert order[found.index(1.0)] == size - 1
            assert sum(found) == 0.0


def test_a_pair_model_asks_both_orders(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "pm")
    cfg = by_transformers(name="pair_model", model=str(folder), batch_size=5)
    scorer = PairModel("pm", cfg, tmp_path)
    (scores,) = scorer.score([PROMPTS[0]])
    model, tokenizer = (
        LlamaForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )

    def first(a: str, b: str) -> float:
        text = f"<|source|>{PROMPTS[0].text}<|candidate1|>{a}<|candidate2|>{b}"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            return float(torch.sigmoid(model.score(model.model(ids).last_hidden_state[0, -1])[0]))

    for i, a in enumerate(TEXTS):
        wins = [0.5 if i == j else (first(a, b) + 1 - first(b, a)) / 2 for j, b in enumerate(TEXTS)]
        assert scores[i] == pytest.approx(sum(wins) / len(wins), abs=1e-4)
