"""What the tests of `eval` share: generated AlpacaEval files, the command in this process, and AlpacaEval's real files."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "alpaca_eval"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="AlpacaEval's files are not beside the checkout")


def alphapo(*arguments: Any) -> int:
    """The exit code of one command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return int(ended.value.code or 0)


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def load(path: Path) -> Any:
    if path.suffix == ".gz":
        return json.loads(gzip.decompress(path.read_bytes()))
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(n: int, generator: str, seed: int = 0) -> list[dict[str, str]]:
    """n outputs of varied length to the same n instructions, whatever the generator."""
    rng = random.Random(f"{generator}{seed}")
    return [
        {"dataset": "made", "instruction": f"Question {i}: why?", "output": f"{generator} {i} " + "x" * rng.randrange(400),
         "generator": generator}
        for i in range(n)
    ]  # fmt: skip


def judgements(reference: list[dict[str, str]], model: list[dict[str, str]], seed: int = 0) -> list[dict[str, Any]]:
    """A judge that likes length a little and the reference a little more."""
    rng, known = random.Random(seed), {row["instruction"]: row for row in reference}
    rows = []
    for row in model:
        base = known[row["instruction"]]
        liking = (len(row["output"]) - len(base["output"])) / 150 - 0.4 + rng.gauss(0, 1.5)
        rows.append(
            {"instruction": row["instruction"], "dataset": "made", "output_1": base["output"],
             "generator_1": base["generator"], "output_2": row["output"], "generator_2": row["generator"],
             "annotator": "a_judge", "preference": 1 + 1 / (1 + math.exp(-liking))}
        )  # fmt: skip
    return rows


def length_control_files(folder: Path, n: int) -> tuple[Path, Path]:
    """(difficulty, gamed) in AlpacaEval's columns."""
    rng = random.Random(5)
    hard = [rng.gauss(0, 1) for _ in range(n)]
    lines = ["index,instruction_difficulty", *(f"{i},{d}" for i, d in enumerate(hard))]
    gamed = ["preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for model, shift in (("verbose", -1.5), ("concise", 1.5)):
        for i, d in enumerate(hard):
            t = shift + rng.gauss(0, 0.7)
            p = 1 / (1 + math.exp(1.2 * math.tanh(t) - 0.3 * d))
            gamed.append(f"{p},{i},{t},{d},False,{model}")
    return (
        write(folder / "difficulty.csv", "\n".join(lines) + "\n"),
        write(folder / "gamed.csv", "\n".join(gamed) + "\n"),
    )


class Case:
    """A folder with outputs.json, reference.json, annotations.json, difficulty.csv and gamed.csv of n instructions."""

    def __init__(self, folder: Path, n: int = 40, generator: str = "tuned") -> None:
        self.folder, self.out = folder, folder / "out"
        self.reference_rows, self.rows = outputs(n, "base"), outputs(n, generator)
        self.judged = judgements(self.reference_rows, self.rows)
        self.outputs = write(folder / "outputs.json", self.rows)
        self.reference = write(folder / "reference.json", self.reference_rows)
        self.annotations = write(folder / "annotations.json", self.judged)
        self.difficulty, self.gamed = length_control_files(folder, n)

    def replay(self, *more: Any, out: Path | None = None) -> int:
        return alphapo(
            "eval", self.outputs, "--reference", self.reference, "--judge", "replay", "--annotations", self.annotations,
            "--out", out or self.out, *more
        )  # fmt: skip

    def length_controlled(self) -> list[Any]:
        return ["--difficulty", self.difficulty, "--gamed", self.gamed]

    def results(self) -> dict[str, Any]:
        """The figures; their checksum and that of annotations.json are no part of what is printed."""
        found = load(self.out / "results.json")
        assert {"checksum", "files"} <= found.keys()
        return {key: value for key, value in found.items() if key not in ("checksum", "files")}


def one_line(text: str) -> str:
    """An error is exactly one line on stderr, and says who speaks."""
    assert text.count("\n") == 1, text
    assert text.startswith("alphapo: ")
    return text
