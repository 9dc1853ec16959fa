"""What the tests of Arena-Hard share: generated questions, answers and judgements in the public tool's forms."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tests.evaluation.eval_world import alphapo, load, write
from tests.evaluation.judge_server import Answer

LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
STYLES = ("# Head\n", "### Deep\n", "- an item\n", "1. first\n", "**bold** ", "some words here ", "\n")


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def text(model: str, i: int) -> str:
    rng = random.Random(f"{model}{i}")
    return f"{model} says {i} " + "".join(rng.choice(STYLES) for _ in range(rng.randrange(4, 30)))


def labels(i: int) -> tuple[str, str]:
    """The labels of both games: mostly for the model, and not always the same one."""
    rng = random.Random(f"labels{i}")
    return rng.choices(LABELS, (1, 3, 2, 4, 2))[0], rng.choices(LABELS, (3, 4, 2, 2, 1))[0]


def said(label: str | None, tokens: int = 40, finish: str = "stop") -> Answer:
    """A chat completion whose text ends with a label, 100 tokens in and `tokens` out."""
    written = "I would answer so. Both are fine." + ("" if label is None else f"\n\n[[{label}]]")
    choice = {"index": 0, "message": {"role": "assistant", "content": written}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}
    return Answer(body={"choices": [choice], "usage": usage})


class Arena:
    """A folder data/ with question.jsonl and the answers of `tuned` and `base`, in v2.0's form."""

    def __init__(self, folder: Path, n: int = 8, version: str = "v2.0") -> None:
        self.folder, self.n, self.out = folder, n, folder / "out"
        self.uids = [f"uid{i:04d}" for i in range(n)]
        data = folder / "data"
        self.questions = lines(data / "question.jsonl", [self.question(i, version) for i in range(n)])
        answers = data / "model_answer"
        self.outputs = lines(answers / "tuned.jsonl", [self.answer("tuned", i, version) for i in range(n)])
        self.reference = lines(answers / "base.jsonl", [self.answer("base", i, version) for i in range(n)])
        self.judgments = lines(
            data / "model_judgment" / "a-judge" / "tuned.jsonl", [self.judgment(i, version) for i in range(n)]
        )

    def prompt(self, i: int) -> str:
        return f"Question {i}: why\u2028so?"

    def question(self, i: int, version: str) -> dict[str, Any]:
        category = "hard_prompt" if i % 2 else "creative_writing"
        if version == "v0.1":
            return {
                "question_id": self.uids[i],
                "category": category,
                "cluster": "c",
                "turns": [{"content": self.prompt(i)}],
            }
        return {"uid": self.uids[i], "category": category, "subcategory": "s", "prompt": self.prompt(i)}

    def answer(self, model: str, i: int, version: str) -> dict[str, Any]:
        answer = text(model, i)
        if version == "v0.1":
            turns = [{"content": answer, "token_len": len(answer.split())}]
            return {"question_id": self.uids[i], "answer_id": "a", "model_id": model, "choices": [{"index": 0, "turns": turns}],
                    "tstamp": 1.0}  # fmt: skip
        messages = [{"role": "user", "content": self.prompt(i)}, {"role": "assistant", "content": {"answer": answer}}]
        return {"uid": self.uids[i], "ans_id": "a", "model": model, "messages": messages, "tstamp": 1.0,
                "metadata": {"token_len": len(answer.split())}}  # fmt: skip

    def judgment(self, i: int, version: str) -> dict[str, Any]:
        games: list[dict[str, Any]] = []
        for label, order in zip(labels(i), (("base", "tuned"), ("tuned", "base")), strict=True):
            shown = "<|User Prompt|>\n" + self.prompt(i) + "".join(f"\n{text(model, i)}" for model in order)
            if version == "v0.1":
                games.append({"user_prompt": shown, "judgment": f"My final verdict is [[{label}]]", "score": label})
            else:
                games.append(
                    {
                        "score": label,
                        "judgment": {"answer": f"[[{label}]]"},
                        "prompt": [{"role": "user", "content": shown}],
                    }
                )
        own: dict[str, Any] = {"question_id": self.uids[i], "model": "tuned", "judge": "a-judge", "games": games}
        if version == "v0.1":
            return own
        return {"uid": own.pop("question_id"), "category": "hard_prompt", **own, "baseline": "base"}

    def alpaca_eval(self, model: str) -> Path:
        rows = [{"instruction": self.prompt(i), "output": text(model, i), "generator": model} for i in range(self.n)]
        return write(self.folder / f"{model}.json", rows)

    def run(self, *more: Any, out: Path | None = None) -> int:
        return alphapo(
            "eval", self.outputs, "--protocol", "arena_hard", "--reference", self.reference, "--out", out or self.out, *more
        )  # fmt: skip

    def replay(self, *more: Any, out: Path | None = None) -> int:
        return self.run("--annotations", self.judgments, *more, out=out)

    def ask(self, url: str, *more: Any, out: Path | None = None) -> int:
        return self.run(
            "--judge", "openai", f"judge.base_url={url}", "judge.model=a-judge", "judge.wait=0.01", "judge.timeout=5",
            "judge.concurrency=3", "statistics.bootstrap=50", *more, out=out
        )  # fmt: skip

    def results(self) -> dict[str, Any]:
        """The figures; their checksum and that of annotations.json are no part of what is printed."""
        found = load(self.out / "results.json")
        assert {"checksum", "files"} <= found.keys()
        return {key: value for key, value in found.items() if key not in ("checksum", "files")}


def which(body: dict[str, Any]) -> tuple[int, bool]:
    """(number of the question, whether the model is shown as A) of a request."""
    content = body["messages"][-1]["content"]
    match = re.search(r"Question (\d+): why", content)
    assert match
    return int(match.group(1)), content.index("tuned says") < content.index("base says")


def by_labels(number: int, body: dict[str, Any]) -> Answer:
    """The judge that says `labels`."""
    i, switched = which(body)
    return said(labels(i)[switched])
