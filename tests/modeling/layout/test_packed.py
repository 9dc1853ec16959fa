"""The packed layout computes what the model itself computes, one answer at a time: log-probs and every gradient.

Two oracles: the model's own logits of single sequences, and the padded layout. Comparisons are in float64 all through
(`tiny.Wide`), where the two differ by sums taken in another order, some 1e-15 of what is added up.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPair
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout import packed, padded
from alphapo_cli.modeling.layout.attention import FLEX, SDPA
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.layout.patching import FAMILIES, prepare
from alphapo_cli.modeling.policy import PolicyModel, inference
from tests import tiny
from tests.pair_shapes import ARCHITECTURES, CORNERS, DETECTED, MODELS, model, pair_lists, pair_of


def gradients(lm: Any, batch: PairBatch, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs [N], and the gradient of their weighted sum by every parameter."""
    lm.zero_grad()
    with tiny.Wide():
        logps = PolicyModel(lm)(batch).logps
        (logps * weights).sum().backward()
    return logps.detach(), {n: p.grad.clone() for n, p in lm.named_parameters() if p.grad is not None}


def assert_equal(lm: Any, pairs: list[TokenPair], sides: int = 2) -> None:
    """Packed and padded: the same tokens in the same order, log-probs and gradients to 1e-10."""
    one, other = (layout.collate(pairs, pad_id=tiny.PAD, sides=sides) for layout in (packed, padded))
    for name in ("index", "weight"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name in ("ids", "answer"):
        assert torch.equal(getattr(one.tokens, name), getattr(other.tokens, name))
    weights = torch.linspace(-1, 1, len(one.tokens.ids), dtype=torch.float64) + 0.01
    logps, grads = gradients(copy.deepcopy(lm), one, weights)
    expected, expected_grads = gradients(lm, other, weights)
    assert torch.allclose(logps, expected, rtol=0, atol=1e-10)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        # A gradient may cancel to nothing (one-token prompts leave queries without effect); so against the largest.
        scale = max(1.0, expected_grads[name].abs().max().item())
        assert torch.allclose(grad, expected_grads[name], rtol=0, atol=1e-10 * scale), name


def test_every_architecture_that_can_be_packed_is_here() -> None:
    assert {MODELS[name].config.model_type for name in ARCHITECTURES} == set(FAMILIES)


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=12)
@given(pairs=pair_lists, sides=st.sampled_from([2, 2, 2, 1]))
@example(pairs=CORNERS, sides=2)
@example(pairs=CORNERS, sides=1)
def test_packed_equals_padded(name: str, pairs: list[TokenPair], sides: int) -> None:
    assert_equal(MODELS[name], pairs, sides)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_the_models_own_logits(name: str) -> None:
    lm = MODELS[name]
    pairs = [*CORNERS, *tiny.token_pairs(4, seed=2, scale=0.1)]
    with torch.no_grad(), tiny.Wide():
        tokens = PolicyModel(copy.deepcopy(lm)).score(packed.collate(pairs, pad_id=tiny.PAD))
        for i, pair in enumerate(pairs):
            for side, answer in enumerate((pair.chosen, pair.rejected)):
                whole = torch.tensor([*pair.prompt.tolist(), *answer.tolist()])
                table = lm(input_ids=whole.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
                first = len(pair.prompt)
                expected = table[torch.arange(first - 1, len(whole) - 1), whole[first:]]
                mine = tokens.logps[(tokens.tokens.pair == i) & (tokens.tokens.side == side)]
                assert torch.allclose(mine, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_loss_and_gradients_agree_to_round_off(name: str) -> None:
    lm = model(name, spread=0.1)
    pairs = [*CORNERS, *tiny.token_pairs(8, seed=3, scale=0.1)]
    losses, grads = [], []
    for layout in (packed, padded):
        own = copy.deepcopy(lm)
        answers = PolicyModel(own).score(layout.collate(pairs, pad_id=tiny.PAD)).answers()
        loss = tiny.objective("objective=alphapo")(answers).loss
        loss.mean().backward()
        losses.append(loss.detach())
        grads.append(torch.cat([p.grad.flatten() for p in own.parameters()]))
    assert tiny.relative_error(*losses) <= 2e-5
    assert 0 < tiny.relative_error(*grads) <= 2e-5  # not bitwise: they are two computations


@pytest.mark.slow
@given(pair_lists)
def test_every_token_is_predicted_from_all_before_it(pairs: list[TokenPair]) -> None:
    batch = packed.collate(pairs, pad_id=tiny.PAD)
    assert batch.packing is not None
    assert batch.position_ids is not None
    pair, part, position = batch.packing.coordinates()
    assert torch.equal(position, batch.position_ids[0])
    for kept, target, answer in zip(batch.predict, batch.tokens.ids, batch.tokens.answer, strict=True):
        q = batch.packing.rows[kept]
        seen = (pair == pair[q]) & ((part == 0) | (part == part[q])) & (position <= position[q])
        order = position[seen].argsort()
        assert position[seen][order].tolist() == list(range(int(seen.sum())))
        read = batch.input_ids[0][seen][order].tolist()
        source = pairs[int(answer) % len(pairs)]
        whole = [*source.prompt.tolist(), *(source.chosen, source.rejected)[int(answer) // len(pairs)].tolist()]
        assert [*read, int(target)] == whole[: len(read) + 1]


def test_what_answers_have_in_common_is_encoded_once() -> None:
    pairs = [pair_of(list(range(10, 30)), [5, 6, 7, 8], [5, 6, 9]), pair_of([1, 2], [3, 4, 5], [6, 7])]
    batch = packed.collate(pairs, pad_id=tiny.PAD)
    # 20 + the two answers' 5 6 + 7; 2 + 3 4 + 6. What ends an answer predicts nothing and is not there.
    assert batch.input_ids.tolist() == [[*range(10, 30), 5, 6, 7, 1, 2, 3, 4, 6]]
    # the last layer keeps what predicts an answer's token: from the prompt's last position on
    assert batch.packing is not None
    assert batch.packing.rows.tolist() == [19, 20, 21, 22, 24, 25, 26, 27]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_layer_returns_only_rows_that_are_read(name: str) -> None:
    lm, batch = model(name), packed.collate(CORNERS, pad_id=tiny.PAD)
    prepare(lm)
    assert batch.packing is not None
    seen: dict[str, int] = {}
    lm.base_model.norm.register_forward_hook(lambda m, i, o: seen.update(norm=o.shape[1]))
    lm.base_model.layers[0].mlp.register_forward_hook(lambda m, i, o: seen.update(first=o.shape[1]))
    lm.base_model.layers[1].mlp.register_forward_hook(lambda m, i, o: seen.update(last=o.shape[1]))
    with torch.no_grad():
        PolicyModel(lm)(batch)
    rows = len(batch.packing.rows)
    assert seen == {"norm": rows, "first": batch.input_ids.shape[1], "last": rows}
    assert rows < batch.input_ids.shape[1] / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_flex_attention_sees_what_segments_see(name: str) -> None:
    """Uncompiled, which runs everywhere but has no backward pass on a CPU: masks, window and caps are what is tested."""
    lm = MODELS[name]
    flex = copy.deepcopy(lm)
    prepare(flex, "flex")
    batch = packed.collate(CORNERS, pad_id=tiny.PAD)
    with torch.no_grad(), tiny.Wide():
        ours, expected = (PolicyModel(m)(batch).logps for m in (flex, copy.deepcopy(lm)))
    assert torch.allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "lm_head"]], ids=str)
def test_adapters_get_the_same_gradients(targets: Any) -> None:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        lm = get_peft_model(model("llama"), config).double().eval()
    assert_equal(lm, CORNERS)
    trained = [n for n, p in lm.named_parameters() if p.grad is not None]
    assert trained
    assert all("lora" in n for n in trained)


def test_gradient_checkpointing_changes_nothing() -> None:
    batch = packed.collate(CORNERS, pad_id=tiny.PAD)
    made = []
    for saving in (False, True):
        policy = PolicyModel(model("gemma3"))
        forwards: list[int] = []
        if saving:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.train()
        # the layer that is cut short too
        policy.lm.base_model.layers[1].mlp.register_forward_hook(lambda m, i, o, f=forwards: f.append(1))
        policy(batch).logps.sum().backward()
        assert len(forwards) == 1 + saving
        made.append([p.grad for p in policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3"])
def test_a_prepared_model_still_generates_as_before(name: str, tmp_path: Any) -> None:
    lm = model(name)
    ours = copy.deepcopy(lm)
    prepare(ours)
    ids = torch.tensor([[tiny.PAD] * 3 + [5, 6, 7], [8, 9, 10, 11, 12, 13]])
    mask = (ids != tiny.PAD).long()
    settings = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    said = [
        m.generate(input_ids=ids, attention_mask=mask, use_cache=cache, **settings)
        for m, cache in ((lm, True), (ours, True), (ours, False))
    ]
    for other in said[1:]:
        assert torch.equal(other.sequences, said[0].sequences)
        assert torch.allclose(torch.stack(other.logits), torch.stack(said[0].logits), rtol=0, atol=1e-4)
    # and what is saved loads as any other model
    from transformers import AutoModelForCausalLM

    ours.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    assert "packed" not in loaded.config._attn_implementation


@pytest.mark.parametrize("name", DETECTED)
def test_what_is_packed_by_what_it_does_equals_padded(name: str) -> None:
    """A window, layers without positions and the gradients of a router among them."""
    assert_equal(MODELS[name], CORNERS)


def _alone(lm: Any) -> None:
    """One layer attends by itself, not through the registered function that the configuration names."""
    lm.base_model.layers[0].self_attn.config = copy.deepcopy(lm.config)


def _counting(lm: Any) -> None:
    """Positions are counted, whatever `position_ids` says."""
    rotary = lm.base_model.rotary_emb
    own = rotary.forward
    rotary.forward = lambda x, position_ids, **more: own(x, torch.arange(position_ids.shape[1])[None], **more)


def _window(lm: Any) -> None:
    """Attention is local by a mask, of which its function is not told."""
    lm.config.sliding_window = 8


def _chunks(lm: Any) -> None:
    lm.config.layer_types = ["chunked_attention", "full_attention"]


def _layers(lm: Any) -> None:
    lm.base_model.blocks = lm.base_model._modules.pop("layers")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_alone, "it does not run a packed row"),
        (_counting, "a packed row gives other hidden states"),
        (_window, "its sliding window is in a mask alone"),
        (_chunks, "it has layers of chunked_attention"),
        (_layers, "it has no list of decoder layers"),
    ],
)
def test_an_architecture_that_does_not_what_a_packed_row_needs_is_refused(spoil: Any, reason: str) -> None:
    lm = tiny.model("granite, divided")
    spoil(lm)
    before = lm.config._attn_implementation
    with pytest.raises(
        UsageError, match=rf"layout=packed cannot run architecture 'granite': {reason}.*; add layout=padded$"
    ):
        prepare(lm)
    assert lm.config._attn_implementation == before


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_other_attentions_are_refused_by_name(attention: str) -> None:
    with pytest.raises(UsageError, match=rf"model.attention={attention} .*auto, sdpa, flex.*layout=padded$"):
        prepare(tiny.model(), attention)


def test_flex_attention_refuses_dropout_before_training() -> None:
    lm = tiny.model(attention_dropout=0.1)
    with pytest.raises(UsageError, match=r"model.attention=flex.*attention_dropout.*auto.*layout=padded$"):
        prepare(lm, "flex")
    prepare(lm, "auto")


def test_heads_too_small_for_the_kernel_of_cuda_take_the_other_attention() -> None:
    """FlexAttention's kernel multiplies 16 dimensions at least; a head of 8 would fail when it is compiled."""
    cuda = torch.device("cuda")
    small, large = tiny.model(num_attention_heads=4), tiny.model(num_attention_heads=2)
    prepare(small, device=cuda)
    prepare(large, device=cuda)
    assert (small.config._attn_implementation, large.config._attn_implementation) == (SDPA, FLEX)
    with pytest.raises(UsageError, match=r"model.attention=flex: the heads .* 8 dimensions.* 16; .*layout=padded$"):
        prepare(tiny.model(num_attention_heads=4), "flex")


def test_bf16_autocast_keeps_log_probs_in_float32() -> None:
    lm = tiny.model(spread=0.1)
    pairs = list(tiny.token_pairs(8, seed=5, scale=0.1))
    policy = PolicyModel(lm)
    with inference(policy):
        truth = policy(packed.collate(pairs, pad_id=tiny.PAD)).logps
        with torch.autocast("cpu", torch.bfloat16):
            ours, other = (policy(layout.collate(pairs, pad_id=tiny.PAD)).logps for layout in (packed, padded))
    assert ours.dtype == torch.float32
    # Logits of about 1 rounded to 8 bits are off by up to 4e-3 each; the layouts round different intermediate sums.
    assert (ours - truth).abs().max() < 0.05
    assert (ours - truth).abs().mean() < 1.5 * (other - truth).abs().mean()
    # bf16 log-probs would lie on a grid of 1/32 between 4 and 8
    assert ((ours * 32).round() / 32 != ours).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapters"),
    [*(pytest.param(name, False, id=name) for name in ARCHITECTURES), pytest.param("llama", True, id="fresh adapters")],
)
def test_fifty_steps_draw_the_same_curve(name: str, adapters: bool) -> None:
    from peft import LoraConfig, get_peft_model

    pairs = list(tiny.token_pairs(24, seed=6, scale=0.1))
    objective = tiny.objective("objective=alphapo")
    curves = []
    for layout in (packed, padded):
        lm: Any = model(name, spread=0.1)
        if adapters:
            torch.manual_seed(0)
            lm = get_peft_model(lm, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        policy = PolicyModel(lm.double())
        trained = [p for p in lm.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3 if adapters else 1e-3, fused=True)
        curve = []
        for step in range(50):
            batch = layout.collate([pairs[(4 * step + i) % 24] for i in range(4)], pad_id=tiny.PAD)
            with tiny.Wide():
                answers = policy.score(batch).answers()
                loss = objective(answers).loss.mean()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(torch.cat([loss.detach().reshape(1), answers.sums.detach().flatten()]))
        curves.append(torch.stack(curve))
    assert curves[0][0, 0] - curves[0][-1, 0] > 0.3  # it learnt
    assert torch.allclose(curves[0], curves[1], rtol=0, atol=1e-8)
