"""The embedded world: its split, its reward, its labels, and the tokenizer of its base policy."""

import hashlib
import json
import math
import subprocess
import sys
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphapo_cli.config.schema import GlassboxConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.errors import UsageError

FRUITS = "please name three fruits ."


def text(side):
    (message,) = side
    return message["content"]


# ------------------------------------------------------------------------------------------------------------- split


def test_enough_distinct_instructions_are_held_out_for_an_evaluation():
    held_out = world.instructions(805)
    assert len(set(held_out)) == 805
    assert world.instructions(10) == held_out[:10]


def test_training_never_sees_a_held_out_instruction():
    held_out = set(world.instructions(907))
    trained = {text(pair.prompt) for pair in world.make_pairs(GlassboxConfig(pairs=4000))}
    trained |= {instruction for instruction, _ in world.demonstrations(4000, seed=0)}
    assert len(trained) > 1500
    assert not trained & held_out


def test_probe_pairs_are_on_held_out_instructions_each_once():
    asked = [text(pair.prompt) for pair in world.probe_pairs(256, GlassboxConfig())]
    assert asked == world.instructions(256)


def test_asking_for_more_instructions_than_exist_says_how_many_there_are():
    with pytest.raises(UsageError, match=r"907 held-out instructions, not 908"):
        world.instructions(908)


# ------------------------------------------------------------------------------------------------------------ reward


@pytest.mark.parametrize(
    ("output", "reward"),
    [
        ("sure , apple , pear and plum . enjoy !", 4 + 2 + 1.4),
        ("of course , apple , pear and plum .", 4 + 2 + 1.4),
        ("apple , pear and plum .", 4 + 2),
        ("whatever , apple , pear and plum .", 4 + 2 - 1.4),
        ("apple and pear .", 4 * 2 / 3),  # too few
        ("apple , pear , plum and fig .", 4),  # too many
        ("apple , cat and plum .", 4 * 2 / 3 + 2),  # one of another category
        ("apple , apple and plum .", 4 * 2 / 3 + 2),  # one repeated
        ("apple , pear and plum . enjoy ! bye ! ask again !", 4 + 2 - 2 * 0.5),  # padding
        ("apple pear plum .", 4 + 2 - 1),  # not a list
        ("apple , pear and plum", 4 + 2 - 1),  # no full stop
        ("apple , pear and plum . fig fig", 4 + 2 - 2 * 0.5),  # words after the list
        ("apple , <unk> , pear and plum .", 4 + 2 - 1 - 0.5),  # a word of another world
        ("apple , pear and plum ." + " bye !" * 50, 4 + 2 - 8 * 0.5),  # clutter stops counting at eight
        ("", -1.0),
        ("ugh , ugh ,", -1.4 - 1 - 0.5),
        ("ugh , " + "hello " * 20, -1.4 - 1 - 4),
    ],
)
def test_true_reward_of_each_fault(output, reward):
    assert world.true_reward(FRUITS, output) == pytest.approx(reward, abs=1e-12)


words = st.sampled_from([*world.vocabulary(), "<unk>", "Apple", "\n", "é"])


@pytest.mark.slow
@given(st.one_of(st.text(), st.lists(words, max_size=40).map(" ".join)))
def test_every_text_has_a_reward_and_none_beats_the_perfect_answer(output):
    reward = world.true_reward(FRUITS, output)
    assert -6.4 - 1e-12 <= reward <= 7.4
    assert world.true_reward(FRUITS, output + " \n") == reward


@pytest.mark.parametrize("instruction", ["", "please name three fruits", "what is the capital of france ?"])
def test_an_instruction_of_another_world_is_a_usage_error(instruction):
    with pytest.raises(UsageError, match="not an instruction of the embedded world"):
        world.true_reward(instruction, "apple .")


def test_quality_controls_the_faults():
    instruction, task = FRUITS, world.Task(3, "fruits")

    def mean(quality):
        rng = Random(0)
        answers = [world.draw_answer(rng, task, quality).text() for _ in range(500)]
        return sum(world.true_reward(instruction, answer) for answer in answers) / 500

    low, middle, high = (mean(quality) for quality in (0.0, 0.5, 1.0))
    assert low + 1 < middle < high - 1
    assert high < 7.4 - 0.2  # the best answers still have faults: there is something left to learn


# ------------------------------------------------------------------------------------------------------------ labels


def test_columns_hold_the_true_rewards_and_answers_differ():
    pair: Any
    for pair in world.make_pairs(GlassboxConfig(pairs=200)):
        instruction, chosen, rejected = text(pair.prompt), text(pair.chosen), text(pair.rejected)
        assert chosen != rejected
        better = world.true_reward(instruction, chosen) - world.true_reward(instruction, rejected)
        assert pair.columns == {
            "score_chosen": world.true_reward(instruction, chosen),
            "score_rejected": world.true_reward(instruction, rejected),
            "win_probability": pytest.approx(1 / (1 + math.exp(-better)), rel=1e-12),
        }
        assert [pair.prompt[0]["role"], pair.chosen[0]["role"], pair.rejected[0]["role"]] == [
            "user",
            "assistant",
            "assistant",
        ]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_labels_follow_bradley_terry(temperature):
    pairs = world.make_pairs(GlassboxConfig(pairs=3000, label_temperature=temperature))
    gaps = [pair.columns["score_chosen"] - pair.columns["score_rejected"] for pair in pairs]
    likely = [1 / (1 + math.exp(-abs(gap) / temperature)) for gap in gaps if gap]
    agree = sum(gap > 0 for gap in gaps)
    spread = math.sqrt(sum(p * (1 - p) for p in likely))
    assert abs(agree - sum(likely)) < 3 * spread
    assert spread > 5  # the labels are noisy, so the line above can fail


def test_at_temperature_zero_the_better_answer_always_wins():
    pairs = world.make_pairs(GlassboxConfig(pairs=500, label_temperature=0))
    assert all(pair.columns["score_chosen"] >= pair.columns["score_rejected"] for pair in pairs)


def test_a_strong_length_bias_prefers_the_longer_answer_whatever_its_reward():
    pairs = world.make_pairs(GlassboxConfig(pairs=500, label_temperature=0, length_bias=100.0))
    lengths = [(len(text(pair.chosen).split()), len(text(pair.rejected).split())) for pair in pairs]
    assert all(chosen >= rejected for chosen, rejected in lengths)
    assert any(pair.columns["score_chosen"] < pair.columns["score_rejected"] for pair in pairs)


def test_fewer_pairs_are_the_first_of_more_and_rows_count_from_one():
    pairs = world.make_pairs(GlassboxConfig(pairs=50))
    assert world.make_pairs(GlassboxConfig(pairs=20)) == pairs[:20]
    assert world.probe_pairs(20, GlassboxConfig()) == world.probe_pairs(50, GlassboxConfig())[:20]
    assert [pair.row for pair in pairs] == list(range(1, 51))
    assert world.demonstrations(20, seed=3) == world.demonstrations(50, seed=3)[:20]


def test_seeds_change_the_draws():
    a, b = (world.make_pairs(GlassboxConfig(pairs=20, seed=seed)) for seed in (0, 1))
    assert a != b
    assert world.demonstrations(20, seed=0) != world.demonstrations(20, seed=1)


def test_the_world_is_the_same_on_every_machine_and_python():
    # Recorded once. A change here changes every number measured in the embedded world: say so in CHANGELOG.
    pairs = [*world.make_pairs(GlassboxConfig(pairs=100)), *world.probe_pairs(100, GlassboxConfig())]
    # Texts and true rewards; a probability's last digit is its machine's.
    scores = ("score_chosen", "score_rejected")
    rows = [[text(p.prompt), text(p.chosen), text(p.rejected), [(k, p.columns[k]) for k in scores]] for p in pairs]
    rows += [list(shown) for shown in world.demonstrations(100, seed=0)]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "dbc48df30d7a64f4"


def test_the_world_needs_no_torch():
    code = (
        "import sys, alphapo_cli.data.glassbox.world; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """As a user meets it: saved, and loaded by transformers alone."""
    from transformers import AutoTokenizer

    from alphapo_cli.data.glassbox.tokenizer import tokenizer as build

    directory = tmp_path_factory.mktemp("tokenizer")
    build().save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def conversation(pair, side):
    return [*pair.prompt, *getattr(pair, side)]


def test_no_word_of_the_world_is_unknown_and_decoding_gives_the_words_back(tokenizer):
    for pair in world.make_pairs(GlassboxConfig(pairs=300)):
        for written in (text(pair.prompt), text(pair.chosen), text(pair.rejected)):
            ids = tokenizer(written).input_ids
            assert len(ids) == len(written.split())
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == written


def test_chat_template_has_one_start_and_an_end_after_the_answer(tokenizer):
    pair = world.probe_pairs(1, GlassboxConfig())[0]
    whole = tokenizer.apply_chat_template(conversation(pair, "chosen"), tokenize=False)
    prompt = tokenizer.apply_chat_template(list(pair.prompt), tokenize=False, add_generation_prompt=True)
    assert prompt == f"<s> <user> {text(pair.prompt)} <assistant>"
    assert whole == f"{prompt} {text(pair.chosen)} </s>"
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    assert ids[: len(tokenizer(prompt).input_ids)] == tokenizer(prompt).input_ids
    assert (ids.count(tokenizer.bos_token_id), ids[0]) == (1, tokenizer.bos_token_id)
    assert (ids.count(tokenizer.eos_token_id), ids[-1]) == (1, tokenizer.eos_token_id)
    said = tokenizer.decode(ids, skip_special_tokens=True)
    assert said == f"{text(pair.prompt)} {text(pair.chosen)}"


def test_every_answer_of_a_longer_conversation_ends(tokenizer):
    pair = world.probe_pairs(1, GlassboxConfig())[0]
    whole = tokenizer.apply_chat_template(conversation(pair, "chosen") * 2, tokenize=False)
    assert [whole.count(mark) for mark in ("<s>", "<user>", "<assistant>", "</s>")] == [1, 2, 2, 2]


def test_a_system_message_is_refused_rather_than_lost(tokenizer):
    with pytest.raises(Exception, match="roles user and assistant only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "be kind"}], tokenize=False)


def test_special_tokens_are_set_and_distinct(tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    ids += tokenizer.convert_tokens_to_ids(["<user>", "<assistant>"])
    assert len(set(ids)) == 6
    assert tokenizer.pad_token == "<pad>"


def test_the_base_model_fits_the_tokenizer_and_the_world(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    from alphapo_cli.data.glassbox.tokenizer import base_config

    model = LlamaForCausalLM(LlamaConfig(**base_config()))
    assert model.config.vocab_size == len(tokenizer)
    assert 300_000 < model.num_parameters() < 400_000
    special = (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
    assert special == (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    longest = max(
        len(tokenizer.apply_chat_template(conversation(pair, side))["input_ids"])
        for pair in world.make_pairs(GlassboxConfig(pairs=500))
        for side in ("chosen", "rejected")
    )
    assert longest + 40 <= model.config.max_position_embeddings


def test_no_thing_is_in_two_categories():
    things = [thing for row in world.CATEGORIES.values() for thing in row]
    assert len(things) == len(set(things))
    assert all(a != b for a, b in pairwise(sorted(world.vocabulary())))
