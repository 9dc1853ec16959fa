"""Thoughts are taken out of answers however models mark them; what merely speaks of the marks stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphapo_cli.data.thoughts import opens_thought, split_thoughts

# Each spelling with its thought, as models and their templates write it.
MARKS = {
    "DeepSeek, Qwen": "<think>\n{}\n</think>\n\n",
    "capitals": "<THINK>{}</THINK>",
    "spaces": "< think >{}</ think >",
    "an attribute": '<think type="plan">{}</think>',
    "prompted for": "<thinking>{}</thinking>\n",
    "mixed": "<thinking>{}</think>\n",
    "EXAONE Deep": "<thought>\n{}\n</thought>\n\n",
    "GRPO recipes": "<reasoning>\n{}\n</reasoning>\n",
    "scratchpad": "<scratchpad>{}</scratchpad>",
    "Seed": "<seed:think>{}</seed:think>",
    "MiniMax": "<mm:think>{}</mm:think>",
    "LongCat": "<longcat_think>{}</longcat_think>",
    "Magistral": "[THINK]{}[/THINK]",
    "Command A": "<|START_THINKING|>{}<|END_THINKING|>",
    "Sky-T1": "<|begin_of_thought|>\n{}\n<|end_of_thought|>\n\n",
    "Kimi-VL": "◁think▷{}◁/think▷",
    "Kimi K3": "<|open|>think<|sep|>{}<|close|>think<|sep|>",
    "Gemma 4": "<|channel>thought\n{}<channel|>",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
}


@pytest.mark.parametrize("kind", MARKS)
class TestEverySpelling:
    def test_at_the_beginning(self, kind: str) -> None:
        found = split_thoughts(MARKS[kind].format("so it is") + "Berlin.")
        assert (found.answer, found.thoughts, found.inside, found.unfinished) == ("Berlin.", 1, 0, False)

    def test_in_the_middle(self, kind: str) -> None:
        found = split_thoughts("It is Berlin.\n\n" + MARKS[kind].format("or is it?") + "Yes, Berlin.")
        assert (found.answer, found.inside) == ("It is Berlin.\n\nYes, Berlin.", 1)

    def test_without_an_end(self, kind: str) -> None:
        begun = MARKS[kind].partition("{}")[0] + "the user wants to know a"
        assert (split_thoughts(begun).answer, split_thoughts(begun).unfinished) == ("", True)

    def test_that_began_in_the_prompt(self, kind: str) -> None:
        begin, _, end = MARKS[kind].partition("{}")
        assert opens_thought(f"user\nWhich city?\nassistant\n{begin}")
        found = split_thoughts(f"the user wants a city.{end}Berlin.")
        assert (found.answer, found.thoughts) == ("Berlin.", 1)

    def test_in_code_or_in_quotes(self, kind: str) -> None:
        begin, _, end = MARKS[kind].partition("{}")
        said = (
            f"It begins with `{begin.strip()}` and ends with `{end.strip()}`.\n\n```\n{MARKS[kind].format('x')}\n```\n"
        )
        found = split_thoughts(said)
        assert (found.answer, found.thoughts, found.mentions) == (said, 0, True)


REMOVED = {
    "a</think>b</think>c": "c",
    "<think>a</think><think>b</think>Berlin.": "Berlin.",
    "<think>a<think>b</think>c</think>Berlin.": "Berlin.",
    "<think>of the mark <think> it says</think>Berlin.": "Berlin.",
    "<think>it ends with `</think>`, I know\n</think>Berlin.": "Berlin.",
    "<think>```py\nnever closed\n</think>```py\nprint()\n```": "```py\nprint()\n```",
    '<think>"Berlin"</think>"Berlin"': '"Berlin"',
    "<think></think>Berlin.": "Berlin.",
    "</think>\n\nBerlin.": "Berlin.",
    "<think>": "",
    "Berlin.<think>hm</think>Yes.": "Berlin. Yes.",
    "The answer is <think>3 * 4 = 12</think> 12.": "The answer is 12.",
    "The answer is <think> hmm, 12 </think> 12.": "The answer is 12.",
    "so it is </think> Berlin.": "Berlin.",
    "Berlin.\n<think>\nand so on": "Berlin.",
    "Berlin.<think>x</think>It is</think>Berlin.": "Berlin. It is Berlin.",
    "analysisThe user asks for a city.assistantfinalBerlin.": "Berlin.",
    "analysisThe user asks for a city and": "",
    "Here is my thought process: a city\n\nHere is my response:\nBerlin.": "Berlin.",
}
MENTIONS = (
    "The tag <think> opens a thought and </think> ends it.",
    "Put <think>, then text.", "It uses <think> and </think>.", "Close the block with </think> when done.",
    "Tags:\n- <think>: begins\n- </think>: ends", "Tags:\n<think> - a thought\n<answer> - an answer",
    "1. <think> opens a thought\n2. </think> closes it", "The marker is <think>",
    'Type "<think>" first.', 'He typed "<think>hello</think>".', "*<think>* opens (</think>) ends",
    "<code><think>x</think></code> is it", "~~~\n<think>\n~~~\nx", "Use ``<think>`` here.",
)  # fmt: skip
PLAIN = (
    "Berlin.",
    "",
    "  two\nlines ",
    "I think </b>so</b>.",
    "[thinking]",
    "[think] Berlin.",
    "Here is my thought process: none.",
    "analysis of it",
)


@pytest.mark.parametrize("text", REMOVED)
def test_what_is_a_thought(text: str) -> None:
    assert split_thoughts(text).answer == REMOVED[text]
    assert split_thoughts(text).thoughts


@pytest.mark.parametrize("text", MENTIONS)
def test_what_is_a_mention(text: str) -> None:
    found = split_thoughts(text)
    assert (found.answer, found.thoughts, found.mentions) == (text, 0, True)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_neither(text: str) -> None:
    found = split_thoughts(text)
    assert (found.answer, found.thoughts, found.mentions) == (text, 0, False)
    assert not opens_thought(text)


PIECES = st.sampled_from(
    ("<think>", "</think>", "<THINKING>", "</reasoning>", "[THINK]", "[/THINK]", "`", "```\n", '"', "\n", " ", "Berlin.",
     "the", "- ", "(", ")", "<|channel|>analysis", "<|channel|>final<|message|>", "analysisThe one ", "assistantfinal")
)  # fmt: skip


@given(st.lists(PIECES, max_size=24).map("".join))
def test_whatever_is_written_nothing_is_left_to_remove(text: str) -> None:
    found = split_thoughts(text)
    assert split_thoughts(found.answer).thoughts == 0
    assert len(found.answer) <= len(text)
    if not found.thoughts:
        assert found.answer == text
