"""Thoughts in answers: how models mark them, and answers without them.

The marks are those that the reasoning parsers of vLLM and llama.cpp know, so that what a server would have split off is
found, and the names that public data and prompts use (<thinking>, <reasoning>, <scratchpad>). A mark in code, in quotes or
used as a word of a sentence is a mention, which an answer about such marks may hold, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NAMES = r"(?:[\w|]{1,12}[:|_])?(?:think(?:ing)?|thoughts?|reasoning|scratchpad)"
# (opening, closing). In XML any name may close any other: models mix <think> with </thinking>.
_KINDS = (
    (rf"<\s*{_NAMES}(?:\s+[\w:-]+\s*=\s*\"[^\"<>]*\")*\s*>", rf"<\s*/\s*{_NAMES}\s*>"),
    (r"(?-i:\[THINK\])", r"(?-i:\[/THINK\])"),  # Magistral; in small letters it is a stage direction
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"◁think▷", r"◁/think▷"),  # Kimi-VL
    (r"<\|open\|>\s*think\s*<\|sep\|>", r"<\|close\|>\s*think\s*<\|sep\|>"),  # Kimi K3
    (r"<\|channel>\s*thought\b", r"<channel\|>"),  # Gemma 4
    (r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)\b",
     r"(?:<\|start\|>assistant)?<\|channel\|>final\s*(?:<\|constrain\|>\w+)?<\|message\|>"),  # gpt-oss
)  # fmt: skip
_MARK = re.compile(
    "|".join(f"(?P<open{i}>{begin})|(?P<close{i}>{end})" for i, (begin, end) in enumerate(_KINDS)), re.IGNORECASE
)
_OPENED = re.compile("(?:" + "|".join(begin for begin, _ in _KINDS) + r")(?:<\|message\|>)?\s*\Z", re.IGNORECASE)
# Without special tokens, gpt-oss's channels are words grown together; Granite's marks are sentences.
_SPELT = re.compile(
    r"\A\s*(?:(?:assistant)?analysis(?=\S).*?assistantfinal|Here(?:'s| is) my thought process:.*?Here(?:'s| is) my response:)\s*",
    re.DOTALL,
)
_SPELT_UNFINISHED = re.compile(r"\A\s*(?:assistant)?analysis(?=[A-Z][a-z']* ).*", re.DOTALL)
_CODE = re.compile(
    r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[`~]*\s*?$|(?<!`)(`+)(?!`)[^\n]*?(?<!`)\2(?!`)|<code\b[^>]*>.*?</code>",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "*": "*", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "(": ")"}
_ITEM = re.compile(r"\s*(?:(?:\d+[.)]|[-*•#]+)\s*)?")  # what may stand before the first word of a line
_EXPLAINED = re.compile(r"[ \t]*(?:[-–—:=|]|(?:is|opens|begins|marks|starts|closes|ends|means)\b)")
_GOES_ON = re.compile(r"[.,;:!?)]|[ \t]+[a-z]")  # a sentence, after a word


@dataclass(frozen=True)
class Split:
    """An answer taken apart.

    `answer`: what is left without thoughts; `thoughts`: how many there were, `inside`: those behind the answer's beginning;
    `unfinished`: whether one does not end; `mentions`: whether marks were left alone as mentions.
    """

    answer: str
    thoughts: int = 0
    inside: int = 0
    unfinished: bool = False
    mentions: bool = False


@dataclass(frozen=True)
class _Cut:
    """One step through a text: what comes before and behind the next thought, or mark that is none."""

    before: str
    behind: str
    thought: bool = True
    unfinished: bool = False


def split_thoughts(text: str) -> Split:
    """Take the thoughts out of an answer.

    A thought reaches from its opening to its closing mark, or to the end of the text where it is not closed. A closing mark
    without an opening one ends a thought that began in the prompt, as templates in the manner of DeepSeek-R1 write it.

    Args:
        text: the answer.

    Returns:
        The answer without them, and what was found. Where there is none, the answer is `text` itself.
    """
    found = _pass(text)
    while found.thoughts:
        again = _pass(found.answer)  # what stood on both sides of a thought may be one now
        if not again.thoughts:
            return Split(found.answer, found.thoughts, found.inside, found.unfinished, again.mentions)
        found = Split(
            again.answer,
            found.thoughts + again.thoughts,
            found.inside + again.inside,
            found.unfinished or again.unfinished,
        )
    return found


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends with the opening mark of a thought, with which the answer then begins."""
    return _OPENED.search(prompt[-80:]) is not None


def is_mark(token: str) -> bool:
    """Whether a token by itself begins or ends a thought."""
    return _MARK.fullmatch(token) is not None


def code_spans(text: str) -> list[tuple[int, int]]:
    """(begin, end) of code in Markdown or HTML: fences that are closed, spans in backticks, <code>."""
    return [match.span() for match in _CODE.finditer(text)]


def in_quotes(text: str, begin: int, end: int) -> bool:
    """Whether text[begin:end] stands alone in quotes, backticks, asterisks or parentheses."""
    return begin > 0 and end < len(text) and _QUOTES.get(text[begin - 1]) == text[end]


def _pass(text: str) -> Split:
    kept, rest, thoughts, inside, unfinished = "", text, 0, 0, False
    spelt = _SPELT.match(rest) or _SPELT_UNFINISHED.match(rest)
    if spelt is not None:
        thoughts, unfinished, rest = 1, spelt.re is _SPELT_UNFINISHED, rest[spelt.end() :]
    while (cut := _next(kept, rest)) is not None:
        if not cut.thought:
            kept, rest = cut.before, cut.behind
            continue
        thoughts, inside, unfinished = thoughts + 1, inside + bool(cut.before.strip()), unfinished or cut.unfinished
        kept, rest = _joined(cut.before, cut.behind)
    answer = kept + rest
    return Split(answer, thoughts, inside, unfinished, mentions=_MARK.search(answer) is not None)


def _next(kept: str, rest: str) -> _Cut | None:
    """The first thought in `rest`, or the first mark that looks like one and is a mention; `kept`: what stands before."""
    marks = _live(rest)
    if not marks:
        return None
    mark = marks[0]
    kind = str(mark.lastgroup)
    if kind.startswith("close"):
        if _is_word(kept, rest, mark):
            return _Cut(kept + rest[: mark.end()], rest[mark.end() :], thought=False)
        # Behind a part of the answer that a thought was cut out of, only the mark is too much.
        before = kept + rest[: mark.start()] if kept.strip() else ""
        return _Cut(before, rest[mark.end() :])
    close = _closing(kind.removeprefix("open"), rest[mark.end() :])
    if close is None:
        if _is_word(kept, rest, mark):
            return _Cut(kept + rest[: mark.end()], rest[mark.end() :], thought=False)
        return _Cut(kept + rest[: mark.start()], "", unfinished=True)
    begin, end = mark.end() + close[0], mark.end() + close[1]
    # A thought that is used as a word would have to lie on one line; in a list each mark is explained on its own.
    words = _is_word(kept, rest, mark) and ("\n" not in rest[mark.end() : begin] or _is_item(kept, rest, mark))
    words = words and (end == len(rest) or _GOES_ON.match(rest, end) is not None)
    if words or in_quotes(rest, mark.start(), end):
        return _Cut(kept + rest[:end], rest[end:], thought=False)
    return _Cut(kept + rest[: mark.start()], rest[end:])


def _live(text: str) -> list[re.Match[str]]:
    """The marks in a text that stand neither in code nor in quotes."""
    marks = list(_MARK.finditer(text))
    spans = code_spans(text) if marks else []
    return [m for m in marks if not _within(m.start(), spans) and not in_quotes(text, *m.span())]


def _within(at: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(begin <= at < end for begin, end in spans)


def _closing(kind: str, thought: str) -> tuple[int, int] | None:
    """(begin, end) of the mark that closes a thought, which may hold others; `thought`: what follows its opening mark."""
    live, depth = [m for m in _live(thought) if m.lastgroup in (f"open{kind}", f"close{kind}")], 1
    for mark in live:
        depth += 1 if str(mark.lastgroup).startswith("open") else -1
        if depth == 0:
            return mark.span()
    # A thought that speaks of its own marks: the first that may end it does.
    marks = [m for m in (*live, *_MARK.finditer(thought)) if m.lastgroup == f"close{kind}"]
    return marks[0].span() if marks else None


def _is_word(kept: str, rest: str, mark: re.Match[str]) -> bool:
    """Whether a mark is used as a word of the sentence around it ("the tag <think> opens")."""
    if _is_item(kept, rest, mark):
        return True
    before = (kept + rest[: mark.start()]).rpartition("\n")[2]
    after = rest[mark.end() :].partition("\n")[0]
    if _ITEM.fullmatch(before):
        return False
    if not before[-1].isspace():
        return False
    last = before.rstrip()[-1]
    if not (last.isalnum() or last in ",;:(/|&+=–—-"):
        return False
    if str(mark.lastgroup).startswith("close"):
        return _GOES_ON.match(after) is not None
    return not after or after[0].isspace() or after[0] in ".,;:!?)"


def _is_item(kept: str, rest: str, mark: re.Match[str]) -> bool:
    """Whether a mark begins a line, not the first one, that says what it means ("- <think>: opens a thought")."""
    before = kept + rest[: mark.start()]
    begins = bool(before.strip()) and _ITEM.fullmatch(before.rpartition("\n")[2]) is not None
    return begins and _EXPLAINED.match(rest, mark.end()) is not None


def _joined(before: str, behind: str) -> tuple[str, str]:
    """What stands on both sides of a thought, with the white space between them that was widest."""
    left, right = before.rstrip(), behind.lstrip()
    if not left.strip() or not right:
        return left, right
    lines = before[len(left) :].count("\n"), behind[: len(behind) - len(right)].count("\n")
    return left + ("\n" * min(max(lines), 2) or " "), right
