"""The last lines of commands can be typed as they stand, and say what is so."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import termios
import threading
from types import SimpleNamespace

import pytest

from alphapo_cli.cli.common import typed_again
from alphapo_cli.cli.main import main as alphapo_main
from alphapo_cli.cli.run import _report as report_run
from alphapo_cli.cli.run import _tell as tell_run
from alphapo_cli.cli.sweep import tell
from alphapo_cli.errors import say
from alphapo_cli.stages.export import Exported
from tests.conftest import environment
from tests.crafted_sweep import ALPHA, craft


def lines(text: str) -> list[list[str]]:
    """The words of every `next:` line, as a shell reads them."""
    found = [line.removeprefix("next: ") for line in text.splitlines() if line.startswith("next: ")]
    return [shlex.split(line, comments=True) for line in found]


def test_the_line_that_runs_is_typed_again_with_what_changes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "sweep", "alpha", "seed=0,1", "run.name=two words", "--status"])
    assert typed_again(without="--status") == "alphapo sweep alpha seed=0,1 'run.name=two words'"
    assert typed_again(adding="seed=0,1,2") == "alphapo sweep alpha 'run.name=two words' --status seed=0,1,2"


@pytest.mark.parametrize("state", ["complete", None])
def test_after_status_the_line_is_there(state, alphapo, tmp_path):
    words = ("alpha", f"{ALPHA}=0,0.5", "seed=0", "--out", "my sweep")

    def change(cell, made):
        made.state = state if dict(cell.point)[ALPHA] else "complete"

    craft(tmp_path / "my sweep", *words[1:3], change=change)
    ran = alphapo("sweep", *words, "--status")
    assert ran.code == 0, ran.err
    assert lines(ran.err) == [["alphapo", "report", "my sweep"] if state else ["alphapo", "sweep", *words]]


def test_paths_with_spaces_are_quoted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "sweep", "alpha"])
    verdict = {"sentences": [], "best": "b", "control": "c", "outcome": "undecided"}
    tell(verdict, tmp_path / "my sweep")
    cells = [str(tmp_path / "my sweep" / "cells" / name) for name in "bc"]
    seeds, report, generate, chat = lines(capsys.readouterr().err)
    assert seeds == ["alphapo", "sweep", "alpha", "seed=0,1,2,3,4"]
    assert report == ["alphapo", "report", *cells]
    assert (generate[2], chat[2]) == (cells[0], cells[0])


def test_a_finished_training_says_its_verdict_again(trained, alphapo, tmp_path):
    from tests.conftest import TINY

    shutil.copytree(trained.path.parent, tmp_path / "runs")
    again = alphapo("train", *TINY)
    assert again.out.splitlines()[1] == "complete"

    def said(text):
        return [line for line in text.splitlines() if line.startswith("verdict: ")]

    assert said(trained.err)
    assert said(again.err) == said(trained.err)


def test_no_win_rate_of_a_run_is_without_its_n(capsys, tmp_path):
    metrics = {"eval/win_rate": 0.54, "eval/discrete_win_rate": 0.55, "eval/true_win_rate": 0.5, "eval/n_total": 256.0}
    found = {"metrics": metrics, "intervals": {"eval/win_rate": [0.48, 0.6]}, "eval": "runs/eval-a"}
    report_run(found, {}, tmp_path)
    table = [line for line in capsys.readouterr().err.splitlines() if "win rate" in line]
    assert len(table) == 3
    assert all(", n = 256" in line for line in table)


def test_a_finished_run_says_both_verdicts(capsys):
    tell_run({"verdict": {"sentence": "better"}}, {"verdict": {"sentences": ["less likely"]}})
    assert capsys.readouterr().err.splitlines() == ["verdict: better", "verdict on the training: less likely"]


def test_one_directory_is_not_compared(trained, alphapo, tmp_path):
    shutil.copytree(trained.path, tmp_path / "runs" / "only")
    assert [words[1] for words in lines(alphapo("ls").err)] == ["rm", "report"]


def test_two_sweeps_that_differ_have_a_page(alphapo, tmp_path):
    for name, seeds in (("one a", "seed=0"), ("two", "seed=0,1")):
        craft(tmp_path / name, f"{ALPHA}=0,0.5", seeds)
    assert lines(alphapo("diff", "one a", "two").err) == [["alphapo", "report", "one a", "two"]]


def test_the_line_that_exported_is_not_advised_again(trained, alphapo, tmp_path):
    """Its folder is no longer empty, so it would be refused."""
    ran = alphapo("export", str(trained.path), "--to", "out")
    assert ran.code == 0, ran.err
    assert "README.md, or take another --to and --license NAME" in ran.err
    assert not [words for words in lines(ran.err) if "--license" in words]
    assert "starting from the embedded world's base model, by alphapo" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_whose_base_is_only_here_says_so(tmp_path):
    (tmp_path / "base").mkdir()
    of_here = Exported(tmp_path, True, "float32", str(tmp_path / "base"))
    assert of_here.note is not None
    assert f"names the base as {tmp_path / 'base'}, a directory of this machine" in of_here.note
    assert Exported(tmp_path, True, "float32", "someone/model").note is None
    assert Exported(tmp_path, False, "float32", str(tmp_path / "base")).note is None


def test_a_rate_of_one_prompt_says_so(alphapo, tmp_path):
    craft(tmp_path / "few", f"{ALPHA}=0,0.5", "seed=0", prompts=1, change=lambda cell, made: SimpleNamespace())
    said = alphapo("report", "few").out
    assert "%, n = 1 prompt, at" in said, said


def test_a_terminal_cuts_no_words(tmp_path):
    """Sentences are broken between words; lines that can be typed stay as they are, and so does all in a file."""
    words = (
        "It is distinguishable from alpha = 0: advantage +26 points, 95 % interval [+15, +36] over prompts and 3 seeds."
    )
    path = "/".join(["", *["folder"] * 16])
    typed = f"next: alphapo report {path} # the best and alpha = 0 over one another, which is longer than a line"
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with open(terminal, "w") as screen:
        for text in (words, f"report: {path}", typed):
            say(text, file=screen)
        screen.flush()
        told = ""
        while not told.endswith("longer than a line\r\n"):
            told += os.read(main, 4096).decode()
        shown = told.split("\r\n")
    os.close(main)
    assert " ".join(shown[:2]) == words
    assert max(map(len, shown[:2])) <= 80
    assert shown[2:] == ["report:", path, typed, ""]
    with (tmp_path / "file").open("w") as file:
        say(words, file=file)
    assert (tmp_path / "file").read_text() == f"{words}\n"


def on_terminal(columns: int, call, monkeypatch) -> str:
    """What `call` prints on a terminal so wide."""
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    told = []

    def read() -> None:
        with contextlib.suppress(OSError):  # a terminal's way to say that nobody writes any more
            while part := os.read(main, 4096):
                told.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with open(terminal, "w") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        call()
    reader.join()
    os.close(main)
    return b"".join(told).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("line", [["metrics", "displacement/chosen"], ["metrics"], ["objectives", "alphapo"]])
def test_a_terminal_gets_no_line_that_it_would_cut(line, columns, alphapo, monkeypatch):
    def call() -> None:
        with pytest.raises(SystemExit):
            alphapo_main(line)

    whole = alphapo(*line).out
    shown = on_terminal(columns, call, monkeypatch)
    assert shown.split() == whole.split()
    assert max(map(len, whole.splitlines())) > columns
    assert max(map(len, shown.splitlines())) <= columns


def test_pairs_are_broken_between_words_on_a_terminal_alone():
    from rich.console import Console

    from alphapo_cli.cli.inspect import _show_pair
    from alphapo_cli.stages.inspect import Shown, Token

    words = [f"word{n} " for n in range(40)]
    shown = Shown(0, (("chosen", tuple(Token(1000 + n, word, True) for n, word in enumerate(words))),))
    for terminal in (True, False):
        file = io.StringIO()
        _show_pair(Console(file=file, width=50, force_terminal=terminal, color_system=None, highlight=False), shown)
        lines = file.getvalue().splitlines()
        assert (max(map(len, lines)) <= 50) is terminal
        assert set(file.getvalue().split()) >= {word.strip() for word in words} | {str(1000 + n) for n in range(40)}


def test_the_page_is_opened_by_the_line_that_is_printed(alphapo, tmp_path):
    craft(tmp_path / "my sweep", f"{ALPHA}=0,0.5")
    assert lines(alphapo("report", "my sweep").err)[-1] == ["xdg-open", "my sweep/report.html"]


# Each line with what its message must hold.
MISSING = (
    ("measure ./nowhere", "MODEL=./nowhere: no such directory"),
    ("measure some-model", "some-model: on which data? give data=... too"),
    ("measure --start some-model", "--start some-model: on which data? give data=... too"),
    ("measure --start ./nowhere data=glassbox", "--start=./nowhere: no such directory"),
    ("measure model.path=./nowhere", "is an argument (alphapo measure MODEL)"),
    ("measure some-model data=jsonl data.path=gone.jsonl", "gone.jsonl: no such file"),
    ("train objective=dpo model.reference=./nowhere", "model.reference=./nowhere: no such directory"),
    ("train objective=tgdpo model.guide=./nowhere", "model.guide=./nowhere: no such directory"),
    ("run prompts=jsonl prompts.path=gone.jsonl", "gone.jsonl: no such file"),
    ("run prompts=jsonl", "prompts.path=FILE is missing: which prompts?"),
    ("plan run prompts=jsonl prompts.path=gone.jsonl", "gone.jsonl: no such file"),
    ("sweep alpha data=jsonl data.path=gone.jsonl model=from_scratch", "gone.jsonl: no such file"),
    ("sweep alpha prompts=jsonl prompts.path=gone.jsonl", "gone.jsonl: no such file"),
    ("generate ./nowhere data=glassbox", "model=./nowhere: no such directory"),
    ("generate some-model data=jsonl data.path=gone.jsonl", "gone.jsonl: no such file"),
    ("score answers.jsonl scorer=reward_model scorer.model=./nowhere", "scorer.model=./nowhere: no such directory"),
    (
        "pairs --answers answers.jsonl scorer=logprob scorer.model=./nowhere",
        "scorer.model=./nowhere: no such directory",
    ),
    ("pairs ./nowhere data=glassbox scorer=length", "model=./nowhere: no such directory"),
    ("export ./nowhere --to there", "MODEL=./nowhere: no such directory"),
    ("eval o.json --reference o.json --judge vllm judge.model=./nowhere", "judge.model=./nowhere: no such directory"),
    ("eval o.json --protocol arena_hard --reference o.json --judge vllm judge.model=./nowhere", "no such directory"),
    ("sweep alpha judge=vllm judge.model=./nowhere", "judge.model=./nowhere: no such directory"),
)


def test_what_is_missing_is_found_out_before_torch_is_loaded(tmp_path, shared_cache):
    """torch takes seconds of processor time to import; each of these lines takes under one."""
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "a", "responses": ["x", "yy"]}) + "\n")
    (tmp_path / "o.json").write_text(json.dumps([{"instruction": "i", "output": "o", "generator": "g"}]))
    code = (
        "import sys\n"
        "from alphapo_cli.cli.main import main\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n"
        "        main(line.split())\n"
        "    except SystemExit as ended:\n"
        "        print(ended.code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *(line for line, _ in MISSING)],
        cwd=tmp_path, env=environment(shared_cache), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = ran.stderr.splitlines()
    assert len(said) == 2 * len(MISSING), ran.stderr
    for (line, words), message, ended in zip(MISSING, said[::2], said[1::2], strict=True):
        assert ended == "2 False", (line, message)
        assert message.startswith("alphapo: ")
        assert words in message, line
    assert ran.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_page_of_runs_is_no_run_among_them(alphapo, tmp_path):
    """`alphapo report runs/*` finds its own page the second time."""
    craft(tmp_path / "sweep", f"{ALPHA}=0,0.5")
    cells = sorted(str(path) for path in (tmp_path / "sweep" / "cells").iterdir())
    first = alphapo("report", *cells)
    among = sorted(map(str, (tmp_path / "sweep" / "cells").iterdir()))
    again = alphapo("report", *among)
    assert len(among) == len(cells) + 1
    assert (again.code, again.out) == (0, first.out)
    assert again.err.count("is a page that this command has written, and no run; it is left out") == 1
