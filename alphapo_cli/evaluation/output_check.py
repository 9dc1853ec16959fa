"""What can be seen of answers before a judge is paid: empty ones, thoughts, leftovers of chat templates.

A judge reads what it is given. A thought makes an answer long and unlike what a user would see, and a special token in it
says that generation stopped too late; either moves a win rate, and neither is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alphapo_cli.data.thoughts import code_spans, in_quotes, split_thoughts

# Tokens that end a turn or a text, as any tokenizer spells them. They belong to no answer, wherever they stand in it.
_END_TOKEN = re.compile(
    r"<[|｜](?:im_end|eot_id|eom_id|end_of_text|endoftext|end|return|eot|endofprompt|end_of_turn|turn_end"
    r"|END_OF_TURN_TOKEN|end▁of▁sentence)[|｜]>|<(?:end_of_turn|end_of_utterance|endoftext|end_of_text|eos|eot)>"
    r"|\[(?:EOS|EOT)\]|\[\|endofturn\|\]|<turn\|>",
    re.IGNORECASE,
)
# Others say something only at the end: </s> is HTML, too, and [/INST] and <|...|> may be what an answer is about.
_AT_THE_END = re.compile(r"(?:<[|｜][^<>\n]{1,40}[|｜]>|<(?:pad|unk|bos)>|\[(?:PAD|SEP|UNK)\]|\[/?INST\])\s*\Z", re.I)
_SENTENCE = re.compile(r"</?s>\s*\Z")
_STRUCK = re.compile(r"\S\s*<s>")  # the beginning of what </s> ends in HTML
# The beginning of a turn, which belongs to no answer: in front of it, or where the model went on by itself.
_ROLE = r"(?:user|human|assistant|system|model|tool|developer)"
_HEADER = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|header_start\|>|<\|start_of_role\|>|<start_of_turn>|<\|turn>|<\|start\|>"
    rf"|<[|｜]{_ROLE}[|｜]>|\[\|{_ROLE}\|\]|<\|(?:START_OF_TURN|CHATBOT|USER|SYSTEM)_TOKEN\|>|\[INST\]",
    re.IGNORECASE,
)
# The same as plain words: templates that have no tokens for it, and tokens that were decoded without their brackets.
_NAMED = re.compile(
    r"\A\s*(?:assistant\s*\n|model\n|(?:GPT4 Correct )?Assistant:|ASSISTANT:|### ?(?:Assistant|Response):)"
    r"|(?:\n|(?<=[.!?:)\"'`]))(?:user|assistant)\n\n"
    r"|\n+(?:### ?(?:Human|Instruction|User|Assistant|Response)|Human|User|Assistant):\s*\Z"
    r"|\n\n(?:Human|USER): [^\n].*?\n\n(?:Assistant|ASSISTANT):",
    re.DOTALL,
)
_WORDS = {
    "empty": "{n} empty", "thoughts": "{n} with a thought (<think>)", "thoughts_inside": "{n} with one behind its beginning",
    "unfinished_thoughts": "{n} whose thought does not end", "only_thoughts": "{n} with nothing but a thought",
    "mentions": "{n} with such a mark in code, in quotes or as a word of a sentence, which stays",
    "special_tokens": "{n} with a special token as text", "headers": "{n} with the header of a turn",
}  # fmt: skip
_SIDES = {"outputs": "model", "reference": "reference"}
# How the judged answers differ from those that are given.
WITHOUT = "; they were judged without their thoughts: add --strip-think"
WITH = "; they were judged with their thoughts: leave --strip-think out, or give the outputs that hold them"


def without_thought(text: str) -> str:
    """An answer without its thoughts; see `split_thoughts`. Empty where there is nothing else."""
    return split_thoughts(text).answer


def look(texts: Sequence[str]) -> dict[str, int]:
    """Count what is odd about answers.

    Args:
        texts: the answers of one model.

    Returns:
        Number of answers ("n"), and of those which are empty, hold a thought, hold one behind their beginning or one that
        does not end, hold nothing else, mention the mark of a thought, hold a special token, or the header of a turn.
    """
    split = [split_thoughts(text) for text in texts]
    prose = [_prose(text) for text in texts]
    return {
        "n": len(texts),
        "empty": sum(not text.strip() for text in texts),
        "thoughts": sum(found.thoughts > 0 for found in split),
        "thoughts_inside": sum(found.inside > 0 for found in split),
        "unfinished_thoughts": sum(found.unfinished for found in split),
        "only_thoughts": sum(found.thoughts > 0 and not found.answer.strip() for found in split),
        "mentions": sum(found.mentions for found in split),
        "special_tokens": sum(map(_holds_special_token, prose)),
        "headers": sum(_HEADER.search(text) is not None or _NAMED.search(text) is not None for text in prose),
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
        # Counts of an earlier version have fewer keys.
        found = [words.format(n=f"{n:,}") for key, words in _WORDS.items() if (n := counts.get(key, 0))]
        if found:
            done = "; thoughts removed (--strip-think)" if stripped and counts["thoughts"] else ""
            advice = "; --strip-think removes thoughts, on both sides" if counts["thoughts"] and not stripped else ""
            lines.append(f"of {counts['n']:,} answers of the {_SIDES[side]}: {', '.join(found)}{done}{advice}")
    return lines


def notes_of(results: Mapping[str, Any]) -> list[str]:
    """The lines of `notes` for the content of results.json; none where it is of a version that counted nothing."""
    answers = dict(results.get("answers") or {})
    return notes(answers, answers.pop("strip_think")) if answers else []


def strip_hint(pairs: Sequence[tuple[str, str]]) -> str:
    """What --strip-think has to do with answers that differ from those that were judged.

    Args:
        pairs: (judged text, text given) of answers that differ.

    Returns:
        Advice, to be put behind an error; empty where the difference is another one.
    """
    stripped = [(without_thought(judged).strip(), without_thought(given).strip()) for judged, given in pairs]
    if any(judged != given for judged, given in stripped):
        return ""
    if any(text != given.strip() for (_, given), (_, text) in zip(pairs, stripped, strict=True)):
        return WITHOUT
    return WITH if any(text != judged.strip() for (judged, _), (text, _) in zip(pairs, stripped, strict=True)) else ""


def _prose(text: str) -> str:
    """A text without its code, in which tokens and headers are spoken of rather than left over."""
    for begin, end in reversed(code_spans(text)):
        text = f"{text[:begin]} {text[end:]}"
    return text


def _holds_special_token(text: str) -> bool:
    if any(not in_quotes(text, *match.span()) for match in _END_TOKEN.finditer(text)):
        return True
    if _AT_THE_END.search(text) is not None:
        return True
    sentence = _SENTENCE.search(text)
    return sentence is not None and _STRUCK.search(text[: sentence.start()]) is None
