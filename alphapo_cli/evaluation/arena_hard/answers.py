"""Answers to Arena-Hard's questions: question.jsonl and model_answer/<model>.jsonl in both of the public tool's forms.

v0.1   {"question_id", "turns": [{"content"}]}   {"question_id", "model_id", "choices": [{"turns": [{"content"}]}]}
v2.0   {"uid", "category", "prompt"}             {"uid", "model", "messages": [..., {"content": {"answer"}}]}

AlpacaEval's model_outputs.json is read as well. Source: lmarena/arena-hard-auto, gen_answer.py and the files under data/,
at bc367c0 (v0.1) and 196f6b8 (v2.0, whose form v0.1's files have there, too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.formats import read_outputs, short
from alphapo_cli.evaluation.json_rows import read_rows
from alphapo_cli.evaluation.output_check import without_thought
from alphapo_cli.storage import strict_json
from alphapo_cli.storage.hashing import digest

QUESTIONS = "question.jsonl"


@dataclass(frozen=True)
class Question:
    """A row of question.jsonl."""

    uid: str
    prompt: str
    category: str | None = None


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question. `tokens`: the token_len that the file gives, None without one."""

    uid: str
    instruction: str
    text: str
    category: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Answers:
    """All answers of one model. `named`: the file names it; `by_uid`: the file, or question.jsonl, gives the uids."""

    path: str
    generator: str
    rows: tuple[Answer, ...]
    named: bool
    by_uid: bool

    def without_thoughts(self) -> Answers:
        """The answers without the thoughts that they begin with; their token counts, which had them, are unknown then."""
        rows = [(row, without_thought(row.text)) for row in self.rows]
        kept = (row if row.text == text else replace(row, text=text, tokens=None) for row, text in rows)
        return replace(self, rows=tuple(kept))

    def hash(self) -> str:
        """Hash of what is judged, independent of the file's form."""
        return digest([self.generator, [[row.uid, row.instruction, row.text] for row in self.rows]])


def read_questions(path: Path) -> dict[str, Question]:
    """Read a question.jsonl.

    Args:
        path: the file.

    Returns:
        The questions by uid.

    Raises:
        UsageError: the file is unreadable, or a row is no question of one turn.
    """
    found: dict[str, Question] = {}
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        uid = _uid(row, where)
        if uid in found:
            raise UsageError(f"{where}: question {uid} occurs twice")
        prompt = row.get("prompt")
        if prompt is None:
            prompt = _one_turn(row.get("turns"), f"{where}: 'prompt' or 'turns'")
        found[uid] = Question(uid, _checked(prompt, "prompt", where), _category(row))
    return found


def read_answers(path: Path, questions: Path | None = None) -> Answers:
    """Read the answers of one model.

    Args:
        path: a model_answer file of either form, AlpacaEval's outputs, or a directory with a model_outputs.json.
        questions: the question.jsonl; None: the one in the folder above a model_answer file, if there is one.

    Returns:
        The answers in file order.

    Raises:
        UsageError: the file is unreadable or mixes models, a row is no answer, a question occurs twice or is not in
            question.jsonl, or the questions' texts are in no file.
    """
    first = {} if path.is_dir() else read_rows(path)[0]
    if path.is_dir() or not ("choices" in first or "messages" in first):
        answers = _alpaca_eval(path)
        return answers if questions is None else _with_uids(answers, read_questions(questions), questions)
    beside = path.absolute().parent.parent / QUESTIONS
    if questions is None and beside.is_file():
        questions = beside
    asked = None if questions is None else read_questions(questions)
    rows, names = [], []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        answer = _answer(row, where)
        rows.append(_asked(answer, asked, questions, where))
        names.append(row.get("model", row.get("model_id")))
    _unique([row.uid for row in rows], path, "question")
    _unique([row.instruction for row in rows], path, "instruction")
    distinct = list(dict.fromkeys(names))
    if len(distinct) > 1:
        raise UsageError(f"{path}: answers of {len(distinct)} models in one file ({distinct[0]!r}, {distinct[1]!r})")
    name = str(distinct[0]) if distinct[0] else path.name.partition(".jsonl")[0]
    return Answers(str(path), name, tuple(rows), named=bool(distinct[0]), by_uid=True)


def matched(outputs: Answers, reference: Answers) -> list[tuple[Answer, Answer]]:
    """Pair the answers of two models to the same questions.

    Args:
        outputs: the model's answers.
        reference: the baseline's, which must have every question of `outputs`.

    Returns:
        (baseline's, model's) answers in the baseline's order, by uid where both files have uids, else by instruction.

    Raises:
        UsageError: the baseline lacks questions, or the same uid stands for two texts.
    """
    by_uid = outputs.by_uid and reference.by_uid
    own = {(row.uid if by_uid else row.instruction): row for row in outputs.rows}
    known = {(row.uid if by_uid else row.instruction) for row in reference.rows}
    unknown = [row for key, row in own.items() if key not in known]
    if unknown:
        raise UsageError(
            f"{outputs.path}: {len(unknown)} of {len(outputs.rows)} questions are not in the reference "
            f"{reference.path}, first {short(unknown[0].instruction)}"
        )
    pairs = []
    for base in reference.rows:
        model = own.get(base.uid if by_uid else base.instruction)
        if model is None:
            continue
        if model.instruction != base.instruction:
            raise UsageError(
                f"{outputs.path} and {reference.path}: question {base.uid} has two texts, {short(model.instruction)} and "
                f"{short(base.instruction)}; give --questions FILE with the right ones"
            )
        kept = outputs if outputs.by_uid else reference  # whose uids are the public ones
        uid = model.uid if kept is outputs else base.uid
        category = model.category or base.category
        pairs.append((replace(base, uid=uid, category=category), replace(model, uid=uid, category=category)))
    return pairs


def _alpaca_eval(path: Path) -> Answers:
    outputs = read_outputs(path)
    rows = tuple(Answer(own_uid(r.instruction), r.instruction, r.output, r.dataset) for r in outputs.rows)
    return Answers(outputs.path, outputs.generator, rows, outputs.named, by_uid=False)


def own_uid(instruction: str) -> str:
    """The uid of a question that no file gives one: a hash of its text, of the length that v2.0's have."""
    return digest(["arena_hard", instruction])[:16]


def _with_uids(answers: Answers, questions: Mapping[str, Question], path: Path) -> Answers:
    """`answers` with the uids and categories of question.jsonl."""
    by_prompt = {question.prompt: question for question in questions.values()}
    missing = [row for row in answers.rows if row.instruction not in by_prompt]
    if missing:
        raise UsageError(
            f"{answers.path}: {len(missing)} of {len(answers.rows)} instructions are not in {path}, first "
            f"{short(missing[0].instruction)}"
        )
    found = [(row, by_prompt[row.instruction]) for row in answers.rows]
    rows = tuple(replace(row, uid=q.uid, category=q.category or row.category) for row, q in found)
    return replace(answers, rows=rows, by_uid=True)


def _answer(row: Mapping[str, Any], where: str) -> Answer:
    """A row of either form; the instruction is empty where the row does not have it."""
    uid = _uid(row, where)
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise UsageError(f"{where}: 'messages' is no list of messages")
        asked = [m.get("content") for m in messages if m.get("role") == "user"]
        if len(asked) != 1 or messages[-1].get("role") != "assistant":
            raise UsageError(f"{where}: 'messages' must hold one user message and end with the assistant's")
        content = messages[-1].get("content")
        text = content.get("answer") if isinstance(content, dict) else content
        instruction, length = _checked(asked[0], "the user message", where), row.get("metadata")
    elif "choices" in row:
        choices = row["choices"]
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        text = _one_turn(first.get("turns"), f"{where}: 'choices'")
        instruction, length = "", row.get("conv_metadata") or first["turns"][0]
    else:
        raise UsageError(
            f"{where}: neither 'messages' nor 'choices' (its columns: {', '.join(map(str, row)) or 'none'})"
        )
    tokens = length.get("token_len") if isinstance(length, dict) else None
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    return Answer(uid, instruction, _checked(text, "the answer", where), None, tokens if counted else None)


def _asked(answer: Answer, questions: Mapping[str, Question] | None, path: Path | None, where: str) -> Answer:
    """`answer` with the text and category that question.jsonl gives its question."""
    if questions is None:
        if not answer.instruction:
            raise UsageError(
                f"{where}: this form does not hold the question's text; give --questions FILE (the public tool's "
                f"{QUESTIONS})"
            )
        return answer
    question = questions.get(answer.uid)
    if question is None:
        raise UsageError(f"{where}: question {answer.uid} is not in {path}")
    return replace(answer, instruction=question.prompt, category=question.category)


def _uid(row: Mapping[str, Any], where: str) -> str:
    uid = row.get("uid", row.get("question_id"))
    if not isinstance(uid, str | int) or isinstance(uid, bool) or uid == "":
        raise UsageError(f"{where}: no 'uid' or 'question_id' (its columns: {', '.join(map(str, row)) or 'none'})")
    return str(uid)


def _category(row: Mapping[str, Any]) -> str | None:
    value = row.get("category")
    return value if isinstance(value, str) else None


def _one_turn(turns: Any, where: str) -> Any:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise UsageError(f"{where} holds no turns")
    if len(turns) > 1:
        raise UsageError(f"{where} has {len(turns)} turns; Arena-Hard's questions have one")
    return turns[0].get("content")


def _checked(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: {what} is {type(value).__name__}, not text")
    at = strict_json.half_character(value)
    if at is not None:
        raise UsageError(f"{where}: {what} holds half a character (\\u{ord(value[at]):04x}) at {at}")
    return value


def _unique(keys: Sequence[str], path: Path, what: str) -> None:
    first: dict[str, int] = {}
    for number, key in enumerate(keys, start=1):
        if key in first:
            raise UsageError(f"{path}: duplicate {what} {short(key)} (rows {first[key]} and {number})")
        first[key] = number
