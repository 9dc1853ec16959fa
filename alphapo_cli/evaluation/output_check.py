"""What can be seen of answers before a judge is paid: empty ones, thoughts, leftovers of chat templates.

A judge reads what it is given. A thought makes an answer long and unlike what a user would see, and a special token at
its end says that generation stopped too late; either moves a win rate, and neither is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# How models mark a thought at the beginning of an answer, and its end. The first mark may stand in the prompt.
_THOUGHTS = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
)  # fmt: skip
_SPECIAL = re.compile(r"(<[|｜][^<>]{1,40}[|｜]>|</?s>|<(eos|pad|end_of_turn|endoftext)>|\[/?INST\])\s*$")
# The beginning of a turn, which belongs to no answer: the model went on with the conversation by itself.
_HEADER = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(user|assistant|system)\|>|\[INST\]"
    r"|\n+(### (Human|Instruction|User|Assistant|Response)|Human|User|Assistant):\s*$"
)
_WORDS = {
    "empty": "{n} empty", "thoughts": "{n} with a thought (<think>)",
    "unfinished_thoughts": "{n} whose thought does not end", "special_tokens": "{n} ending in a special token",
    "headers": "{n} with the header of another turn",
}  # fmt: skip


def without_thought(text: str) -> str:
    """An answer without the thought that it begins with.

    Args:
        text: the answer.

    Returns:
        What follows the thought; an empty answer where the thought does not end. A mark further back in an answer, as in
        one about such marks, is left alone, but for the end of a thought that began in the prompt.
    """
    head = text.lstrip()
    for begin, end in _THOUGHTS:
        if head.startswith(begin):
            return without_thought(head.partition(end)[2].lstrip()) if end in head else ""
        if end in head and begin not in head:
            return head.rpartition(end)[2].lstrip()
    return text


def look(texts: Sequence[str]) -> dict[str, int]:
    """Count what is odd about answers.

    Args:
        texts: the answers of one model.

    Returns:
        Number of answers ("n"), and of those which are empty, begin with a thought, have one that does not end, end in a
        special token, or hold the header of another turn.
    """
    thoughts = [text for text in texts if without_thought(text) != text]
    return {
        "n": len(texts),
        "empty": sum(not text.strip() for text in texts),
        "thoughts": len(thoughts),
        "unfinished_thoughts": sum(not any(end in text for _, end in _THOUGHTS) for text in thoughts),
        "special_tokens": sum(_SPECIAL.search(text) is not None for text in texts),
        "headers": sum(_HEADER.search(text) is not None for text in texts),
    }


def notes(looked: Mapping[str, Mapping[str, int]], stripped: bool) -> list[str]:
    """Lines that say what is odd.

    Args:
        looked: "outputs" and "reference" -> what `look` counted.
        stripped: whether thoughts were removed.

    Returns:
        One line for each side that has something odd.
    """
    lines = []
    for side, counts in looked.items():
        found = [words.format(n=f"{counts[key]:,}") for key, words in _WORDS.items() if counts[key]]
        if found:
            done = "; thoughts removed (--strip-think)" if stripped and counts["thoughts"] else ""
            advice = "; --strip-think removes thoughts, on both sides" if counts["thoughts"] and not stripped else ""
            lines.append(f"of {counts['n']:,} answers of the {_SIDES[side]}: {', '.join(found)}{done}{advice}")
    return lines


_SIDES = {"outputs": "model", "reference": "reference"}
