"""Sampling: an answer depends on its prompt and its seed, and is a draw from the model's own distribution."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from alphapo_cli.modeling.sampling import sample

VOCAB, PAD, EOS = 12, 0, 1
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 2, 3], [4, 4], [5, 6, 7, 8], [9], [3, 4, 5]]
SEEDS = [11, 12, 13, 14, 15, 16, 17]


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,  # so that the distributions are far from flat and depend on the context
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def gpt2():
    """Learned absolute positions: wrong position ids under padding would show."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, resid_pdrop=0.5,
        attn_pdrop=0.5, embd_pdrop=0.5, pad_token_id=PAD, bos_token_id=2, eos_token_id=EOS,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def draw(model, prompts=PROMPTS, seeds=SEEDS, **changes):
    settings = {"max_new_tokens": 12, "temperature": 1.0, "eos_ids": [EOS], "pad_id": PAD} | changes
    return sample(model, prompts, seeds, **settings)


@torch.no_grad()
def next_logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("build", [llama, gpt2])
def test_neither_batch_nor_order_changes_an_answer(build):
    model = build()
    together = draw(model)
    alone = [draw(model, [prompt], [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    backwards = draw(model, PROMPTS[::-1], SEEDS[::-1])[::-1]
    assert together == alone == backwards == draw(model, batch_size=2)
    assert len({tuple(answer.ids) for answer in together}) > 4


def test_same_prompt_with_another_seed_gives_another_answer():
    answers = draw(llama(), [[3, 4, 5]] * 6, list(range(6)))
    assert len({tuple(answer.ids) for answer in answers}) > 3
    first, second = draw(llama(), [[3, 4, 5]] * 2, [5, 5])
    assert first == second == answers[5]


def test_global_random_state_is_neither_read_nor_written():
    model = llama()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert draw(model) == first


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_token_follows_the_softmax(temperature):
    model, prompt, n = llama(), [3, 4, 5], 4000
    drawn = draw(model, [prompt] * n, range(n), max_new_tokens=1, temperature=temperature, eos_ids=[])
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in drawn]), minlength=VOCAB)
    expected = n * torch.softmax(next_logits(model, prompt).double() / temperature, -1)
    common = expected > 5
    chi_squared = ((counts - expected) ** 2 / expected)[common].sum().item()
    freedom = int(common.sum()) - 1
    # 99.9 % quantile of chi-squared after Wilson and Hilferty.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert freedom >= 3
    assert chi_squared < limit


def test_later_tokens_are_drawn_given_the_earlier_ones():
    model, n = llama(), 3000
    drawn = draw(model, [[3, 4]] * n, range(n), max_new_tokens=2, eos_ids=[])
    first = torch.mode(torch.tensor([answer.ids[0] for answer in drawn])).values.item()
    second = torch.tensor([answer.ids[1] for answer in drawn if answer.ids[0] == first])
    share = torch.bincount(second, minlength=VOCAB) / len(second)
    expected = torch.softmax(next_logits(model, [3, 4, first]), -1)
    assert len(second) > 500
    assert (share - expected).abs().max().item() < 4 * math.sqrt(0.25 / len(second))


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_top_p_draws_from_the_nucleus_in_proportion(top_p):
    model, prompt, n = llama(), [3, 4, 5], 4000
    drawn = draw(model, [prompt] * n, range(n), max_new_tokens=1, temperature=1.5, top_p=top_p, eos_ids=[])
    share = torch.bincount(torch.tensor([answer.ids[0] for answer in drawn]), minlength=VOCAB) / n
    probabilities = torch.softmax(next_logits(model, prompt).double() / 1.5, -1)
    nucleus, held = [], 0.0  # the likeliest tokens, until they hold top_p
    for token in sorted(range(VOCAB), key=lambda t: -probabilities[t]):
        if held >= top_p:
            break
        nucleus.append(token)
        held += float(probabilities[token])
    assert 0 < len(nucleus) < VOCAB
    for token in range(VOCAB):
        expected = float(probabilities[token]) / held if token in nucleus else 0.0
        # Four standard deviations of a share of n draws; exactly none outside.
        assert abs(float(share[token]) - expected) <= 4 * math.sqrt(expected * (1 - expected) / n)


def test_a_narrow_nucleus_is_greedy_and_a_whole_one_changes_nothing():
    model = llama()
    assert draw(model, top_p=1e-6) == draw(model, temperature=0.0)
    assert draw(model, top_p=1.0) == draw(model)


def test_temperature_zero_takes_the_likeliest_token():
    model = llama()
    for answer, prompt in zip(draw(model, temperature=0.0, eos_ids=[]), PROMPTS, strict=True):
        expected: list[int] = []
        for _ in range(12):
            expected.append(int(next_logits(model, [*prompt, *expected]).argmax()))
        assert answer.ids == expected


def test_an_answer_ends_before_its_end_token_and_says_when_the_limit_cut_it():
    model = llama()
    whole = draw(model, eos_ids=[], max_new_tokens=40)
    assert all(answer.cut and len(answer.ids) == 40 for answer in whole)
    for ended, full in zip(draw(model, eos_ids=[EOS, 2], max_new_tokens=40), whole, strict=True):
        end = min(full.ids.index(token) if token in full.ids else 40 for token in (EOS, 2))
        assert (ended.ids, ended.cut) == (full.ids[:end], end == 40)
    assert not all(answer.cut for answer in draw(model, max_new_tokens=40))


def test_a_longer_limit_only_adds_to_an_answer():
    model = llama()
    short, long = draw(model, max_new_tokens=4), draw(model, max_new_tokens=12)
    assert all(b.ids[: len(a.ids)] == a.ids for a, b in zip(short, long, strict=True))
    assert any(a.cut and len(b.ids) > 4 for a, b in zip(short, long, strict=True))


def test_the_models_own_generation_settings_do_not_bend_the_draw_and_survive_it():
    model = llama()
    plain = draw(model)
    config = model.generation_config
    config.repetition_penalty, config.suppress_tokens, config.max_length = 5.0, [3, 4, 5, 6], 3
    config.do_sample, config.top_k, config.temperature, config.eos_token_id = True, 1, 0.1, [7]
    kept = config.to_dict()
    assert draw(model) == plain
    assert model.generation_config is config
    assert config.to_dict() == kept


def test_dropout_is_off_while_sampling_and_every_module_is_as_before():
    model = gpt2()
    quiet = draw(model.eval())
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert draw(model) == quiet
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError):
        draw(model, [[VOCAB + 5]], [0])  # no such token
    assert [module.training for module in model.modules()] == modes


def test_the_model_can_still_be_trained_afterwards():
    model = llama()
    draw(model)
    loss = model(input_ids=torch.tensor([[3, 4]])).logits.sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_peft_model_is_sampled_with_its_adapter():
    from peft import LoraConfig, get_peft_model

    base = llama()
    plain = draw(base)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.5))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted.train()
    with_adapter = draw(adapted)
    assert with_adapter != plain
    assert adapted.training
    assert draw(adapted.merge_and_unload()) == with_adapter


@pytest.mark.parametrize(
    "wrong",
    [{"seeds": [1]}, {"prompts": [[]] * 7}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}],
    ids=["seeds", "empty prompt", "limit", "temperature", "top_p"],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011 - each case has its own sentence
        draw(llama(), **wrong)


def test_no_prompts_no_answers():
    assert draw(llama(), [], []) == []
