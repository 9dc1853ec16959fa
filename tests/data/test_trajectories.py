"""Answers of several turns: which tokens are trained, what they weigh (DMPO), and rows that only then are pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.text_pairs import TextPair
from alphapo_cli.data.token_cache import encode_cached
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.data.tokenise import encode_pairs
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.policy import PolicyModel, attach_tokens
from alphapo_cli.probe.scoring import score_tokens
from alphapo_cli.runtime.distributed import Processes
from tests import tiny as small
from tests.data import data_tokenizers as kinds

CONFIG = DataConfig(trajectories=True)


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


LONG = (
    say("assistant", "Look at the map."), say("user", "The map shows a river."), say("assistant", "Follow it."),
    say("user", "There is a bridge."), say("assistant", "Cross the bridge."),
)  # fmt: skip
SHORT = (say("assistant", "I do not know."),)
PAIR = TextPair((say("user", "How do I get to Paris?"),), LONG, SHORT)


def pairs_of(encoded, count=1) -> TokenPairs:
    return TokenPairs(
        encoded.prompt, encoded.chosen, encoded.rejected, tuple("ab")[:count], np.arange(count), turns=encoded.turns
    )


@pytest.mark.parametrize("kind", ["bpe", "chatml", "llama2"])
def test_the_trained_tokens_are_the_assistants_turns_as_the_template_writes_them(kind):
    tokenizer = getattr(kinds, kind)()
    encoded = encode_pairs([PAIR], tokenizer, CONFIG)
    ids, turns = encoded.chosen[0], encoded.turns[0][0]
    assert len(ids) == len(turns)
    end = {"bpe": "<|end|>", "chatml": "<|im_end|>", "llama2": "</s>"}[kind]
    for turn, message in enumerate(LONG[::2]):
        text = tokenizer.decode(ids[turns == turn], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert text.strip().replace(f" {end}", end) == f"{message['content']}{end}"
    between = tokenizer.decode(ids[turns == -1], skip_special_tokens=False)
    assert "river" in between
    assert "bridge" in between
    assert not any(m["content"] in between for m in LONG[::2])
    assert set(encoded.turns[1][0].tolist()) == {0}  # the other answer is one turn, trained whole
    # one turn after the other, the whole conversation is what the template writes
    whole = tokenizer.apply_chat_template([*PAIR.prompt, *LONG], tokenize=True, return_dict=False)
    both = [*encoded.prompt[0].tolist(), *ids.tolist()]
    assert whole[: len(both)] == both


def test_one_turn_is_what_it_was_and_cuts_keep_the_turns_beside_the_ids(tmp_path):
    tokenizer = kinds.chatml()
    single = TextPair(PAIR.prompt, (LONG[0],), SHORT)
    plain, own = encode_pairs([single], tokenizer, DataConfig()), encode_pairs([single], tokenizer, CONFIG)
    assert plain.turns == ()
    assert own.chosen[0].tolist() == plain.chosen[0].tolist()
    assert set(own.turns[0].ids.tolist()) == {0}
    cut = encode_pairs([PAIR], tokenizer, DataConfig(trajectories=True, max_length=80))
    whole = encode_pairs([PAIR], tokenizer, CONFIG)
    kept = len(cut.chosen[0])
    assert kept < len(whole.chosen[0])
    assert cut.turns[0][0].tolist() == whole.turns[0][0][:kept].tolist()
    made, key = encode_cached([PAIR], tokenizer, CONFIG, tmp_path)
    read, again = encode_cached([PAIR], tokenizer, CONFIG, tmp_path)
    assert key == again
    assert [side.ids.tolist() for side in read.turns] == [side.ids.tolist() for side in made.turns]


def test_a_template_that_rewrites_earlier_turns_is_no_template_for_them():
    forgets = (
        "{% for message in messages %}{{ message['role'] }}: "
        "{{ '(said)' if message['role'] == 'assistant' and not loop.last else message['content'] }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(UsageError, match="writes earlier turns differently in a longer conversation"):
        encode_pairs([PAIR], kinds.with_template(forgets), CONFIG)


def test_text_is_one_turn_and_a_tokenizer_without_a_template_has_none():
    text = TextPair("How do I get to Paris?", "Follow the river.", "I do not know.")
    encoded = encode_pairs([text], kinds.chatml(), CONFIG)
    assert [set(side.ids.tolist()) for side in encoded.turns] == [{0}, {0}]
    with pytest.raises(UsageError, match=r"data\.trajectories needs a chat template"):
        encode_pairs([text], kinds.plain(), CONFIG)


def test_rows_part_where_the_assistant_first_speaks_differently(tmp_path):
    asked: Any = PAIR.prompt[0]
    rows = [
        {"prompt": list(PAIR.prompt), "chosen": list(LONG), "rejected": list(SHORT)},
        {"chosen": [*PAIR.prompt, *LONG], "rejected": [*PAIR.prompt, *LONG[:2], say("assistant", "Swim.")]},
        # they part at what a user says: the assistant's turn before it is part of both answers
        {"chosen": [*PAIR.prompt, *LONG[:3]], "rejected": [*PAIR.prompt, LONG[0], say("user", "No map."), LONG[2]]},
        # a prompt column says where the trajectories begin, even where both take the same first turn
        {"prompt": list(PAIR.prompt), "chosen": list(LONG), "rejected": [*LONG[:2], say("assistant", "Swim.")]},
        {"prompt": asked["content"], "chosen": list(LONG), "rejected": [*LONG[:2], say("assistant", "Swim.")]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = DataConfig(source="files", path=str(tmp_path / "rows.jsonl"), format="messages")
    with pytest.raises(UsageError, match="5 no common prompt"):
        load_pairs(cfg)
    found = load_pairs(DataConfig(source="files", path=cfg.path, format="messages", trajectories=True)).pairs
    assert [(len(p.prompt), len(p.chosen), len(p.rejected)) for p in found] == [
        (1, 5, 1), (3, 3, 1), (1, 3, 3), (1, 5, 3), (1, 5, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_what_others_say_is_read_and_not_trained(layout):
    """Against the model's own log-softmax at the assistant's tokens alone."""
    tokenizer = kinds.chatml()
    other = TextPair(PAIR.prompt, (*LONG[:2], say("assistant", "Swim.")), LONG)
    pairs = pairs_of(encode_pairs([PAIR, other], tokenizer, CONFIG), 2)
    lm = small.model(vocab=len(tokenizer), seed=2)
    policy = PolicyModel(small.model(vocab=len(tokenizer), seed=2), layout=layout)
    batch = LAYOUTS[layout].collate(list(pairs), pad_id=0)
    tokens = attach_tokens(policy(batch), batch)
    given = tokens.answers()
    flat = score_tokens(policy, pairs, batch_size=1, pad_id=0, processes=Processes(), sides=2)
    for side in range(2):
        for i in range(2):
            answer, turns = pairs.answers[side][i], pairs.turns[side][i]
            ids = torch.from_numpy(np.concatenate([pairs.prompt[i], answer]).astype(np.int64))
            with torch.no_grad():
                logp = lm(input_ids=ids.unsqueeze(0)).logits[0].log_softmax(-1)
            each = logp[len(pairs.prompt[i]) - 1 : -1].gather(1, ids[len(pairs.prompt[i]) :, None]).squeeze(1)
            trained = torch.from_numpy(turns >= 0)
            assert given.sums[side, i].item() == pytest.approx(each[trained].sum().item(), rel=1e-5)
            assert given.lengths[side, i] == trained.sum() == pairs.trained_lengths(side)[i]
            ragged = pairs.answers[side]
            here = flat[side][ragged.offsets[i] : ragged.offsets[i + 1]]
            assert np.allclose(here, torch.where(trained, each, 0.0), atol=1e-5)
    # DMPO's weights: three turns and one, by the formula
    weights = small.objective("objective=dmpo").parts["token"](given, tokens)
    g = 0.7
    three = [g**j * (1 - g ** (3 - j)) / (1 - g**3) for j in range(3)]
    mine = tokens.tokens.answer == 0  # the first pair's chosen answer
    assert torch.allclose(weights[mine], torch.tensor(three)[tokens.tokens.turn[mine]], rtol=1e-6)
    assert (weights[tokens.tokens.answer == 2] == 1).all()  # its rejected one
    even = small.objective("objective=dmpo", "objective.token.gamma=1").parts["token"](given, tokens)
    assert torch.allclose(even[mine], torch.tensor([1, 2 / 3, 1 / 3])[tokens.tokens.turn[mine]], rtol=1e-6)


@pytest.mark.slow
def test_training_on_trajectories(alphapo, tiny, tmp_path: Path):
    rows = [
        {"prompt": [say("user", f"Question {i}")],
         "chosen": [say("assistant", f"Let me see {i}"), say("user", "Well?"), say("assistant", f"It is {i}")],
         "rejected": [say("assistant", f"No idea {i}")]}
        for i in range(24)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = (
        "train", "data=jsonl", f"data.path={tmp_path}/rows.jsonl", "model=from_scratch", "model.scratch.hidden_size=16",
        "model.scratch.num_hidden_layers=1", "model.scratch.num_attention_heads=2", "model.scratch.vocab_size=320",
        "trainer=small", "trainer.threads=1", "trainer.max_steps=3", "trainer.per_device_train_batch_size=4",
        "probe.pairs=4", "probe.every=2", "tracking.mode=disabled", "tracking.pictures=false",
    )  # fmt: skip
    refused = alphapo(*line, "objective=dpo")
    assert refused.code == 2
    assert "none of its 24 rows is usable" in refused.fault
    both = [
        alphapo(*line, "objective=dmpo", "data.trajectories=true", f"layout={name}") for name in ("packed", "padded")
    ]
    assert [ran.code for ran in both] == [0, 0], both[0].err + both[1].err
    found = [[json.loads(row) for row in (ran.path / "metrics.jsonl").read_text().splitlines()] for ran in both]
    for packed, padded in zip(*found, strict=True):
        small.assert_same_row(packed, padded, 1e-4)
    kto = alphapo(*line, "objective=kto", "data.trajectories=true")
    assert kto.code == 2
    assert "takes single turns" in kto.fault
