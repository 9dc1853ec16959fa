"""Templates of published models, as TRL carries them: what is trained is what they write, or it is said that they do not."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.template import TODAY
from alphapo_cli.data.tokenise import encode_pairs
from alphapo_cli.errors import UsageError
from tests.data import data_tokenizers as kinds

SPEC = importlib.util.find_spec("trl")
FOLDER = Path(SPEC.origin).parent / "chat_templates" if SPEC is not None and SPEC.origin is not None else Path("none")
# In CI; the others at night.
CHOSEN = ("deepseek_r1_distill", "deepseekv3", "gptoss", "lfm2_v2", "llama3_1", "nemotron_3_nano", "qwen3", "gemma")
SPECIAL = re.compile(
    r"<\|[\w▁ ]+?\|>|<｜[\w▁ ]+?｜>|<\w+_of_turn>|<turn\|>|<\|turn>|\[gMASK\]|<sop>|<end_of_utterance>"
)


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(city):
    return {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": city}}}


SCHEMA = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city."}}},
    },
}
THOUGHT = {
    "chosen": [answer("<think>\nLet me see.\n</think>\n\nFine.")],
    "rejected": [answer("<think>\nHm.\n</think>\n\nBad.")],
}
# row -> what the chosen completion must hold
ROWS: dict[str, Any] = {
    "text": ({"prompt": "How is it?", "chosen": "Fine.", "rejected": "Bad."}, ("Fine.",)),
    "thought": ({"prompt": [user("How is it?")], **THOUGHT}, ("Let me see.", "Fine.")),
    "reasoning": (
        {"prompt": [user("How is it?")], "chosen": [answer("Fine.", reasoning_content="Let me see.")], "rejected": [answer("Bad.")]},
        ("Let me see.", "Fine."),
    ),
    "call": (
        {"prompt": [user("Rome?")], "tools": [SCHEMA], "chosen": [answer(None, tool_calls=[call("Rome")])],
         "rejected": [answer("", tool_calls=[call("Oslo")])]},
        ("weather", "Rome"),
    ),
    "call and text": (
        {"prompt": [user("Rome?")], "tools": [SCHEMA], "chosen": [answer("Look:", tool_calls=[call("Rome")])], "rejected": [answer("Bad.")]},
        ("Look:", "weather", "Rome"),
    ),
    "called": (
        {"prompt": [user("Rome?"), answer(None, tool_calls=[call("Rome")]), {"role": "tool", "content": "20 degrees", "name": "weather"}],
         "tools": [SCHEMA], "chosen": [answer("Warm.")], "rejected": [answer("Cold.")]},
        ("Warm.",),
    ),
}  # fmt: skip


def tokenizer_with(template):
    backend = Tokenizer.from_str(kinds.plain().backend_tokenizer.to_str())
    special = sorted(set(SPECIAL.findall(template)))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=special
    )
    tokenizer.chat_template = template
    return tokenizer


def templates():
    names = [file.stem for file in sorted(FOLDER.glob("*.jinja")) if not file.stem.endswith("_training")]
    return [pytest.param(name, marks=[] if name in CHOSEN else [pytest.mark.nightly]) for name in names]


@pytest.mark.skipif(not FOLDER.is_dir(), reason="TRL carries no templates here")
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", templates())
def test_an_answer_is_whole_or_its_loss_is_said(name, row, tmp_path):
    tokenizer = tokenizer_with((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    values, parts = ROWS[row]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(values) + "\n")
    cfg = DataConfig(source="files", path=str(file), max_length=100_000)
    (pair,) = load_pairs(cfg)
    refusal = ""
    try:
        encoded = encode_pairs([pair], tokenizer, cfg)
    except UsageError as error:
        refusal = str(error)
    if refusal:
        assert "chat template" in refusal
        assert "\n" not in refusal
        return
    prompt, chosen = (tokenizer.decode(side[0], skip_special_tokens=False) for side in (encoded.prompt, encoded.chosen))
    for part in parts:
        assert part in chosen
    # The prompt is the template's own, once with the BOS that the tokenizer adds.
    messages = [user(pair.prompt)] if isinstance(pair.prompt, str) else list(pair.prompt)
    if not any("tool_calls" in message for message in messages):  # whose form depends on the template
        own = tokenizer.apply_chat_template(
            messages, tools=values.get("tools"), add_generation_prompt=True, tokenize=False, strftime_now=TODAY.strftime
        )
        assert prompt.removeprefix("<s>") == own.removeprefix("<s>")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="TRL carries no templates here")
@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("deepseek_r1_distill", "thought", "leaves out an answer's text up to '</think>'.*cuts answers at '</think>'"),
        ("deepseek_r1_distill", "reasoning", "leaves out an answer's reasoning_content"),
        ("nemotron_3_nano", "text", r"type data\.chat_template_kwargs\.enable_thinking=false"),
        ("llama3_1", "call and text", "leaves out a part of an answer's text beside tool calls"),
        ("llama3_1", "reasoning", "write the reasoning into the answer's text, as <think>...</think>"),
        ("gemma", "call", "leaves out an answer's tool_calls"),
    ],
)
def test_what_they_do_not_write_comes_with_advice(name, row, says, tmp_path):
    if not (FOLDER / f"{name}.jinja").is_file():
        pytest.skip("this TRL carries no such template")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[row][0]) + "\n")
    cfg = DataConfig(source="files", path=str(file), max_length=100_000)
    tokenizer = tokenizer_with((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    with pytest.raises(UsageError, match=says):
        encode_pairs(load_pairs(cfg).pairs, tokenizer, cfg)
