"""A rule of the user's: a command, or a Python function, that gives every answer a number.

It reads JSON Lines {"prompt", "response"} on stdin (prompt: the last message; "messages" has all) and writes a number a
line. A function, MODULE:FUNCTION, is called with the list of these objects and returns as many numbers. Either runs in a
process of its own that is ended at `scorer.timeout`, with the rights of the user: that is no sandbox.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import AlphapoError, UsageError
from alphapo_cli.pairs.candidates import NO_SCORE, Candidates, is_score
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from alphapo_cli.pairs.scoring.scorer import Scores, Whole

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# What the process of a function runs; the current directory is on its path, as for a script of the user's.
_CALL = (
    "import importlib, json, sys; sys.path.insert(0, ''); module, _, name = sys.argv[1].partition(':'); "
    "rows = [json.loads(line) for line in sys.stdin]; out, sys.stdout = sys.stdout, sys.stderr; "
    "found = getattr(importlib.import_module(module), name)(rows); "
    "print(*map(float, found), sep='\\n', file=out)"
)


class Rule(Whole):
    """Numbers of a command or function."""

    together = False
    batch: int | None = None
    free = False

    def __init__(self, column: str, cfg: ScorerConfig) -> None:
        """Check that the rule can be found; UsageError where it cannot."""
        if not cfg.rule:
            raise UsageError(
                "scorer=rule: which rule? type scorer.rule='python check.py' (reads JSON Lines, writes a number a line) or "
                "scorer.rule=MODULE:FUNCTION on this line; it runs with your rights, in no sandbox"
            )
        self.column, self.rule, self.timeout = column, cfg.rule, cfg.timeout
        if _FUNCTION.fullmatch(cfg.rule):
            self.command = [sys.executable, "-c", _CALL, cfg.rule]
        else:
            try:
                self.command = shlex.split(cfg.rule)
            except ValueError as error:
                raise UsageError(f"scorer.rule={cfg.rule}: is no command ({error})") from error
            if not self.command or shutil.which(self.command[0]) is None:
                raise UsageError(
                    f"scorer.rule={cfg.rule}: no such command; give one that can be run, or MODULE:FUNCTION"
                )

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`: the command, and the content of files that it names, or of the function's module."""
        from alphapo_cli.storage.hashing import content

        words = [_module_file(self.rule)] if _FUNCTION.fullmatch(self.rule) else self.command
        files = [found for word in words if (found := content(word)) is not None]
        return {"scorer": "rule", "rule": self.rule, "files": files}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`."""

    def close(self) -> None:
        """See `Scorer.close`."""

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`."""
        rows = [
            {"prompt": prompt.text, "messages": prompt.messages, "response": answer.text}
            for prompt in prompts
            for answer in prompt.answers
        ]
        lines = self._run("".join(json.dumps(row) + "\n" for row in rows), len(rows)).split("\n")
        lines = lines[:-1] if lines and not lines[-1].strip() else lines
        if len(lines) != len(rows):
            raise UsageError(
                f"scorer.rule={self.rule}: wrote {len(lines)} lines for {len(rows)} answers; it must write one number for each"
            )
        values = iter([self._number(line, number) for number, line in enumerate(lines, 1)])
        return [[next(values) for _ in prompt.answers] for prompt in prompts]

    def _number(self, line: str, number: int) -> float:
        try:
            value = float(line)
        except ValueError as error:
            raise UsageError(f"scorer.rule={self.rule}: line {number} is {line[:60]!r}, not a number") from error
        if not is_score(value):
            raise UsageError(f"scorer.rule={self.rule}: line {number} is {value}, {NO_SCORE}")
        return value

    def _run(self, text: str, answers: int) -> str:
        # A session of its own: what the rule starts is ended with it.
        try:
            started = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:  # such as a script whose first line names no interpreter
            raise UsageError(f"scorer.rule={self.rule}: cannot be run ({error.strerror or error})") from error
        with started as process:
            try:
                out, err = process.communicate(text, timeout=self.timeout)
            except subprocess.TimeoutExpired as error:
                raise AlphapoError(
                    f"scorer.rule={self.rule}: took longer than {self.timeout:g} seconds for {answers:,} answers and was "
                    "ended; none of them has a score. Type scorer.timeout=SECONDS, for all of them together"
                ) from error
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != 0:
            last = err.strip().splitlines()[-1] if err.strip() else "no message"
            raise AlphapoError(f"scorer.rule={self.rule}: ended with code {process.returncode} ({last})")
        return out


def _module_file(rule: str) -> str | None:
    """The file of MODULE:FUNCTION's module as Python will find it, without importing anything; None if there is none."""
    name = Path(*rule.partition(":")[0].split("."))
    for folder in map(Path, ("", *sys.path)):
        for file in (folder / name / "__init__.py", (folder / name).with_suffix(".py")):
            if file.is_file():
                return str(file)
    return None
