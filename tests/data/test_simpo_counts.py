"""SimPO's counts of tokens against a script of its documented steps, written here and independent of the package.

The templates of Llama 3 and Gemma are those that TRL ships; Mistral's is the one that SimPO's recipe puts in the place
of the tokenizer's own: it strips texts, and writes a space before and after an answer and no BOS.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.answer_frame import header_of
from alphapo_cli.data.prepare import prepare
from alphapo_cli.data.rendering import render_pair
from alphapo_cli.data.template import style_of
from alphapo_cli.data.text_pairs import LoadCounts, LoadedPairs, TextPair
from alphapo_cli.data.tokenise import encode_pairs, encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.parity import check_run, check_template
from alphapo_cli.generation.run_settings import RecordedPrompts, RunRecord
from tests.data import data_tokenizers as kinds

SHIPPED = Path(trl.__file__).parent / "chat_templates"
GEMMA = (SHIPPED / "gemma.jinja").read_text()
ALTERNATE = GEMMA[
    GEMMA.index("{% if (message['role'] == 'user')") : GEMMA.index("{% if (message['role'] == 'assistant')")
]
MISTRAL = (
    "{% set rest = messages %}{% set system = '' %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content.strip() + '\n\n' %}"
    "{% set rest = messages[1:] %}{% endif %}"
    "{% for m in rest %}{% set text = (system if loop.first else '') + m.content %}"
    "{% if m.role == 'user' %}[INST] {{ text.strip() }} [/INST]"
    "{% else %} {{ text.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
# Template, its special tokens, BOS and EOS. An EOS that is not the end of turn follows it.
FAMILIES = {
    "llama3": ((SHIPPED / "llama3.jinja").read_text(), "<|start_header_id|> <|end_header_id|> <|eot_id|>",
               "<|begin_of_text|>", "<|end_of_text|>"),
    "llama3, eos ends a turn": ((SHIPPED / "llama3.jinja").read_text(), "<|start_header_id|> <|end_header_id|>",
                                "<|begin_of_text|>", "<|eot_id|>"),
    "gemma": (GEMMA, "<start_of_turn> <end_of_turn>", "<bos>", "<eos>"),
    "mistral": (MISTRAL, "", "<s>", "</s>"),
}  # fmt: skip
COUNTED = DataConfig(completion_includes_header=True, second_end_token=True)


def made(family: str, kind: str, *, adds_bos: bool = True) -> Any:
    """A tokenizer with a family's template: bytes as GPT-2's, or pieces with a space put before a text as Llama 2's."""
    template, special, bos, eos = FAMILIES[family]
    backend = Tokenizer(models.BPE(byte_fallback=kind == "pieces", unk_token=None))
    names = [bos, eos, *special.split()]
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        # Pieces do not cross line breaks, nor begin before a space.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
        )
        alphabet = sorted({c for text in (*TEXTS, template) for c in text} - {" "} | {"▁"})
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    )
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, additional_special_tokens=special.split()
    )
    tokenizer.chat_template = template
    return tokenizer


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def fifty_pairs() -> list[TextPair]:
    """Answers of many lengths, with white space at their ends, line breaks, code, and earlier turns in the prompts."""
    rng = random.Random(0)
    words = [
        "the",
        "a",
        "sorted",
        "list",
        "of",
        "naïve",
        "pears,",
        "(x",
        "+",
        "1)/2",
        "=",
        "3.5;",
        "and\nso",
        "on\n\n\tdef",
        "f():",
        "return",
        "'größe'",
        "東京",
        "🙂",
        "<b>",
    ]

    def text(longest: int) -> str:
        body = " ".join(rng.choice(words) for _ in range(rng.randint(1, longest)))
        return rng.choice(["", " ", "\n", "\n\n"]) + body + rng.choice(["", ".", " ", "\n", "!\n\n"])

    pairs = []
    for i in range(50):
        earlier = [turn("user", text(9)), turn("assistant", text(20))] * (i % 3)
        prompt = (*earlier, turn("user", f"{text(12)} {i}"))
        chosen, rejected = ((turn("assistant", f"{text(30)} {end}"),) for end in ("yes", "no"))
        pairs.append(TextPair(prompt, chosen, rejected, row=i + 1))
    return pairs


PAIRS = fifty_pairs()
TEXTS = [dict(m)["content"] for pair in PAIRS for side in (pair.prompt, pair.chosen, pair.rejected) for m in side] * 3


def simpo_row(pair: TextPair, tokenizer: Any, alone: str) -> tuple[list[str], list[list[int]]]:
    """Texts and ids of prompt, chosen and rejected answer by SimPO's steps; `alone` renders an answer by itself."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token_id
    texts = [tokenizer.apply_chat_template(list(pair.prompt), tokenize=False)]
    for side in (pair.chosen, pair.rejected):
        answer = tokenizer.apply_chat_template(list(side), tokenize=False, chat_template=alone)
        texts.append(answer[len(bos) :] if answer.startswith(bos) else answer)
    prompt = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    rows = [prompt if prompt[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *prompt]]
    for answer in texts[1:]:
        both = tokenizer(texts[0] + answer, add_special_tokens=False)["input_ids"]
        assert both[: len(prompt)] == prompt, "no token of these tokenizers crosses the boundary"
        ids = both[len(prompt) :]
        rows.append(ids if ids and ids[-1] == eos else [*ids, eos])
    return texts, rows


@pytest.mark.parametrize(
    ("family", "kind", "adds_bos"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if i % 2 else [])
        for i, case in enumerate((f, k, b) for f in FAMILIES for k, b in (("bytes", True), ("pieces", True),
                                                                          ("pieces", False), ("bytes", False)))
    ],
)  # fmt: skip
class TestAgainstTheScript:
    def test_texts_and_ids_of_fifty_pairs(self, family: str, kind: str, adds_bos: bool) -> None:
        tokenizer = made(family, kind, adds_bos=adds_bos)
        # Gemma's template refuses an answer without a question; SimPO's recipe for it is the same without that check.
        alone = FAMILIES[family][0].replace(ALTERNATE, "")
        encoded = encode_pairs(PAIRS, tokenizer, COUNTED)
        assert encoded.kept == tuple(range(50))
        assert (encoded.counts.boundary, encoded.counts.truncated_pairs, encoded.counts.special_inside) == (0, 0, 0)
        for n, pair in enumerate(PAIRS):
            texts, rows = simpo_row(pair, tokenizer, alone)
            rendered = render_pair(pair, tokenizer, COUNTED, style_of(tokenizer, COUNTED))
            assert rendered is not None
            assert [rendered.prompt, *rendered.completions] == texts
            assert [side[n].tolist() for side in (encoded.prompt, encoded.chosen, encoded.rejected)] == rows

    def test_generation_is_fed_the_prompt_and_the_header(self, family: str, kind: str, adds_bos: bool) -> None:
        tokenizer = made(family, kind, adds_bos=adds_bos)
        encoded = encode_pairs(PAIRS, tokenizer, COUNTED)
        header = header_of(tokenizer, COUNTED).ids
        assert bool(header) == (family != "mistral")
        for n, pair in enumerate(PAIRS):
            fed = encode_prompt(pair.prompt, tokenizer, COUNTED)
            for side in (encoded.chosen, encoded.rejected):
                assert fed == [*encoded.prompt[n].tolist(), *header]
                assert tuple(side[n][: len(header)].tolist()) == header
        prompts = [pair.prompt for pair in PAIRS]
        check_template(prompts, [encode_prompt(p, tokenizer, COUNTED) for p in prompts], tokenizer, COUNTED)


def answer_of(tokenizer: Any, **settings: Any) -> str:
    pair = TextPair("What is it?", "It is a pear.", "No.")
    ids = encode_pairs([pair], tokenizer, DataConfig(**settings)).chosen[0].tolist()
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def test_each_setting_by_itself_and_neither() -> None:
    gemma, header, end = made("gemma", "bytes"), "<start_of_turn>model\n", "<end_of_turn>"
    assert answer_of(gemma) == f"It is a pear.{end}"
    assert answer_of(gemma, completion_includes_header=True) == f"{header}It is a pear.{end}"
    assert answer_of(gemma, second_end_token=True) == f"It is a pear.{end}\n<eos>"
    both = answer_of(gemma, completion_includes_header=True, second_end_token=True)
    assert both == f"{header}It is a pear.{end}\n<eos>"
    assert answer_of(kinds.plain(), second_end_token=True) == answer_of(kinds.plain())  # text has one end


def test_special_tokens_that_an_answer_spells_are_still_counted() -> None:
    tokenizer = made("llama3", "bytes")
    pair = TextPair("What?", "It is <|eot_id|> no.", "No.")
    for cfg in (DataConfig(), COUNTED, replace(COUNTED, second_end_token=False)):
        assert encode_pairs([pair], tokenizer, cfg).counts.special_inside == 1
        assert encode_pairs([replace(pair, chosen="It is.")], tokenizer, cfg).counts.special_inside == 0


class TestWhatARunRecords:
    """prompts.json holds what generation must be fed, also where training cut the prompt."""

    def recorded(self, tokenizer: Any, cfg: DataConfig, tmp_path: Path) -> RunRecord:
        loaded = LoadedPairs(PAIRS, LoadCounts(read=50), "made", "messages")
        one = LoadedPairs(PAIRS[:1], LoadCounts(read=1), "made", "messages")
        data = prepare(cfg, ProbeConfig(pairs=1), tokenizer, train_pairs=loaded, probe_pairs=one, cache_dir=tmp_path)
        prompts = tuple(RecordedPrompts(sample.prompt, sample.ids) for sample in data.prompt_samples)
        return RunRecord(prompts, "files", cfg.max_length, cfg.max_prompt_length)

    @pytest.mark.parametrize("longest", [None, 20])
    def test_it_is_what_generation_makes(self, longest: int | None, tmp_path: Path) -> None:
        tokenizer, cfg = made("llama3", "bytes"), replace(COUNTED, max_prompt_length=longest)
        record = self.recorded(tokenizer, cfg, tmp_path)
        header = header_of(tokenizer, cfg).ids
        for prompt in record.prompts:
            assert prompt.ids[-len(header) :] == header
            assert longest is None or len(prompt.ids) <= longest + len(header)
            cut = encode_prompt(prompt.prompt, tokenizer, cfg)
            assert cut == list(prompt.ids)
        check_run(record, tokenizer, cfg)

    def test_another_header_in_generation_is_found(self, tmp_path: Path) -> None:
        tokenizer = made("llama3", "bytes")
        record = self.recorded(tokenizer, COUNTED, tmp_path)
        template = tokenizer.chat_template
        tokenizer.chat_template = template.replace("<|end_header_id|>\n\n", "<|end_header_id|>\n")
        with pytest.raises(UsageError, match="training prompt 1: token ids differ at position"):
            check_run(record, tokenizer, COUNTED)
        before, mark, after = template.rpartition("assistant")
        tokenizer.chat_template = f"{before}{mark}s{after}"  # in the generation prompt alone
        with pytest.raises(UsageError, match="something else before an answer than what it feeds to generation"):
            check_run(record, tokenizer, COUNTED)


@pytest.mark.parametrize(
    ("template", "settings", "reason"),
    [
        (None, {}, "data.completion_includes_header needs a chat template"),
        (kinds.TWO_ENDS, {"trajectories": True}, "for answers of one turn"),
        (kinds.THINK, {}, "writes something else before an answer than what it feeds to generation"),
    ],
)
def test_where_a_header_cannot_be_counted(template: str | None, settings: dict[str, Any], reason: str) -> None:
    tokenizer = kinds.plain() if template is None else kinds.with_template(template)
    with pytest.raises(UsageError, match=reason):
        encode_pairs(
            [TextPair("What?", "This.", "That.")], tokenizer, DataConfig(completion_includes_header=True, **settings)
        )


def test_a_second_end_needs_an_eos() -> None:
    tokenizer = kinds.with_template(kinds.BARE.replace("\n", "<|end|>\n"))
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match=r"data\.second_end_token: .* has no eos_token"):
        encode_pairs([TextPair("What?", "This.", "That.")], tokenizer, DataConfig(second_end_token=True))


def test_they_are_part_of_the_cache_of_ids(tmp_path: Path) -> None:
    """A run with other counts must not read the ids of one without."""
    tokenizer = made("gemma", "bytes")
    lengths = [
        prepare(
            cfg, ProbeConfig(pairs=1), tokenizer, train_pairs=LoadedPairs(PAIRS, LoadCounts(), "made", "messages"),
            probe_pairs=LoadedPairs(PAIRS[:1], LoadCounts(), "made", "messages"), cache_dir=tmp_path,
        ).train.chosen.lengths
        for cfg in (DataConfig(), DataConfig(completion_includes_header=True), DataConfig(second_end_token=True), COUNTED)
    ]  # fmt: skip
    header = len(header_of(tokenizer, COUNTED).ids)
    assert [np.unique(found - lengths[0]).tolist() for found in lengths] == [[0], [header], [2], [header + 2]]
