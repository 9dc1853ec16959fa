"""The commands that train nothing, and what every command promises: quick help, clean streams, no secrets."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys

import pytest
import yaml

from alphapo_cli import __version__
from alphapo_cli.cli import information
from alphapo_cli.cli.generate import is_model
from alphapo_cli.cli.main import _run
from alphapo_cli.errors import UsageError
from alphapo_cli.storage.paths import cache_dir
from alphapo_cli.tracking import metrics


class TestImports:
    def test_nothing_heavy_is_imported(self):
        """Help, listings and refusals answer at once: what takes seconds to import stays out."""
        lines = [
            "--help", "train --help", "sweep --help", "loss --help", "--version", "metrics", "train --print-config",
            "sweep alpha --print-config", "train objective.beta=-1", "sweep alpah", "loss gone.jsonl",
            "plan train --help", "plan train objective.beta=-1", "plan sweep alpah", "plan train --memory 80apples",
        ]  # fmt: skip
        program = (
            "import sys\nfrom alphapo_cli.cli.main import main\n"
            "heavy = {'torch', 'transformers', 'wandb', 'vllm', 'datasets', 'matplotlib', 'numpy', 'peft'}\n"
            f"for line in {lines!r}:\n"
            "    try:\n        main(line.split())\n    except SystemExit:\n        pass\n"
            "    found = sorted(heavy & set(sys.modules))\n"
            "    if found:\n        sys.exit(f'HEAVY: alphapo {line} imported {found}')\n"
            "print('LIGHT', file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.stderr.splitlines()[-1] == "LIGHT", done.stderr

    @pytest.mark.slow
    def test_help_answers_in_half_a_second(self, cli):
        """Of CPU time: the machine may have other things to do."""
        times = []
        for _ in range(6):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert cli("--help").code == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert statistics.median(times[1:]) < 0.5


def test_processes_counted_by_somebody_else_are_no_error(cli):
    """Launchers leave WORLD_SIZE behind, in any form."""
    for value in ("", "1", "2", "many"):
        ran = cli("--version", env={"WORLD_SIZE": value})
        assert (ran.code, ran.out.startswith("alphapo "), ran.err) == (0, True, "")


@pytest.mark.parametrize("line", ["sweep alpha", "generate runs/mine", "eval runs/mine"])
def test_a_command_for_one_process_is_refused_under_torchrun(line, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    # Not `main`, which leaves a process of torchrun without taking the interpreter down.
    assert _run(line.split(), debug=False) == 2
    said = capsys.readouterr().err
    assert "runs in one process" in said
    assert "without torchrun" in said
    assert ("launcher.nproc_per_node=N" in said) == line.startswith("sweep")


class TestHelp:
    def test_it_names_every_command(self, alphapo):
        ran = alphapo("--help")
        assert ran.code == 0
        for command in ("train", "sweep", "loss", "env", "metrics"):
            assert re.search(rf"\b{command}\b", ran.out), command

    @pytest.mark.parametrize("line", [("--help",), ("plan", "--help")])
    def test_what_a_command_does_is_said_in_whole_words(self, line, alphapo):
        listed = alphapo(*line).out.partition("Commands:")[2]
        assert len(listed.splitlines()) > 3
        assert "..." not in listed
        assert max(map(len, listed.splitlines())) <= 80

    @pytest.mark.parametrize(
        "command",
        ["train", "run", "sweep", "generate", "score", "pairs", "eval", "compare", "report", "loss", "objectives"],
    )
    def test_commands_have_examples(self, command, alphapo):
        """Under a plain heading and each on a line of its own; markup that nobody renders is no heading."""
        ran = alphapo(command, "-h")
        assert ran.code == 0
        heading = ran.out.splitlines().index("  Examples:")
        assert ran.out.splitlines()[heading + 1].startswith(f"    alphapo {command}")

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["train", "sweep", "loss"])
    def test_the_examples_are_true(self, command, alphapo, tmp_path):
        """Every example of the help composes, from a directory that holds nothing."""
        shown = alphapo(command, "--help").out
        examples = [line.split()[1:] for line in shown.splitlines() if line.strip().startswith(f"alphapo {command}")]
        assert len(examples) >= 2
        for example in examples:
            ran = alphapo(*example, "--print-config")
            assert ran.code == 0, ran.err

    def test_without_arguments(self, cli):
        ran = cli()
        assert ran.code == 2
        assert "train" in ran.out + ran.err
        assert "Traceback" not in ran.err

    def test_an_unknown_command(self, alphapo):
        ran = alphapo("trian")
        assert ran.code == 2
        assert "trian" in ran.fault
        assert "train" in ran.fault.replace("trian", "")


def test_version(alphapo):
    assert alphapo("--version").out == f"alphapo {__version__}\n"


class TestPrintConfig:
    def test_it_is_yaml_and_only_that(self, alphapo, tmp_path):
        ran = alphapo("train", "objective=dpo", "objective.beta=0.05", "run.name=x", "--print-config")
        assert (ran.code, ran.err) == (0, "")
        config = yaml.safe_load(ran.out)
        assert (config["objective"]["beta"], config["run"]["name"]) == (0.05, "x")
        assert list(tmp_path.iterdir()) == []

    def test_it_is_what_a_run_writes(self, alphapo, trained):
        line = json.loads((trained.path / "manifest.json").read_text())["command"][1:-2]
        assert alphapo(*line, "--print-config").out == (trained.path / "config.yaml").read_text()

    def test_of_a_users_own_folder_from_another_directory(self, alphapo, tmp_path):
        own = tmp_path / "own" / "objective"
        own.mkdir(parents=True)
        (own / "mine.yaml").write_text("defaults: [dpo, _self_]\nname: mine\nbeta: 0.7\n")
        (tmp_path / "elsewhere").mkdir()
        ran = alphapo("train", "objective=mine", "--config-dir", "../own", "--print-config", cwd=tmp_path / "elsewhere")
        assert yaml.safe_load(ran.out)["objective"]["beta"] == 0.7

    def test_of_loss(self, alphapo, tmp_path):
        ran = alphapo("loss", "gone.jsonl", "objective=ipo", "--print-config")
        assert yaml.safe_load(ran.out)["link"] == {"name": "squared"}


class TestEnv:
    def test_it_is_json_with_what_a_bug_report_needs(self, alphapo, shared_cache):
        facts = json.loads(alphapo("env").out)
        assert {"torch", "transformers", "alphapo", "python"} <= set(facts["versions"])
        assert facts["hardware"]["cores"] >= 1
        assert facts["cache"]["path"] == str(shared_cache)
        assert facts["cache"]["bytes"]["base"] > 100_000

    def test_while_another_process_takes_files_away(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "tokens" / "key").mkdir(parents=True)
        for name in ("a", "b"):
            (tmp_path / "tokens" / "key" / name).write_text("12345")
        look = os.lstat

        def late(path, **settings):
            if str(path).endswith("/a") and settings == {}:
                os.unlink(path)
            return look(path, **settings)

        monkeypatch.setenv("ALPHAPO_CACHE", str(tmp_path))
        monkeypatch.setattr(os, "lstat", late)
        information.env()
        assert json.loads(capsys.readouterr().out)["cache"]["bytes"] == {"tokens": 5}

    def test_without_a_home_directory(self, monkeypatch):
        monkeypatch.delenv("ALPHAPO_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        with pytest.raises(UsageError, match="set ALPHAPO_CACHE"):
            cache_dir()

    def test_it_shows_no_secret_of_the_environment(self, alphapo):
        secrets = {
            "WANDB_API_KEY": "a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6a7b8c9d0",
            "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
            "OPENAI_API_KEY": "sk-abcdefghijklmnopqrstuvwxyz012345",
            "HTTPS_PROXY": "http://somebody:hunter2@127.0.0.1:9",
        }
        ran = alphapo("env", env=secrets)
        assert ran.code == 0
        for secret in (*secrets.values(), "hunter2"):
            assert secret not in ran.out + ran.err


def test_no_secret_gets_into_a_run(alphapo, tiny):
    secrets = {"WANDB_API_KEY": "a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6a7b8c9d0", "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz"}
    ran = alphapo("train", *tiny, "tracking.mode=offline", "trainer.max_steps=1", "probe.samples=0", env=secrets)
    assert ran.code == 0
    for file in ran.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(secret.encode() in content for secret in secrets.values()), file


class TestMetrics:
    def test_one_sentence_for_each(self, alphapo):
        lines = alphapo("metrics").out.splitlines()
        assert set(lines[::2]) == {*metrics.CATALOG, *metrics.PER_PAIR}
        assert all(line.startswith("    ") and line.rstrip().endswith(".") for line in lines[1::2])

    def test_of_one(self, alphapo):
        said = alphapo("metrics", "displacement/chosen").out
        assert "nats per token. More is better. Bad: below 0 and falling" in said

    def test_of_none(self, alphapo):
        ran = alphapo("metrics", "displacement/chosn")
        assert ran.code == 2
        assert "did you mean 'displacement/chosen'?" in ran.fault


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, cli):
    # Without the detection of the shell that started this process, which would win over the name.
    ran = cli("--show-completion", shell, env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert ran.code == 0, ran.err
    assert "_ALPHAPO_COMPLETE" in ran.out
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=ran.out, text=True, timeout=20).returncode == 0


def test_a_first_setting_too_long_for_a_file_is_a_setting():
    assert not is_model(f"data.system={'be brief ' * 40}")


def test_a_sweep_file_whose_path_holds_an_equals_sign(alphapo, tmp_path):
    file = tmp_path / "lr=1" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("grid:\n  seed: 0,1\n")
    ran = alphapo("sweep", str(file), "--print-config")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("# 2 cells over seed: seed=0; seed=1")


def test_completion_of_commands(cli):
    """What the script asks the command for when a user types `alphapo sw<TAB>`."""
    asked = {"_ALPHAPO_COMPLETE": "complete_bash", "COMP_WORDS": "alphapo sw", "COMP_CWORD": "1"}
    assert cli(env=asked).out.split() == ["sweep"]


ROW = {"chosen_logp": -10.0, "rejected_logp": -30.0, "chosen_tokens": 5, "rejected_tokens": 10}


class TestLoss:
    def test_stdout_is_one_object_a_row_in_order(self, alphapo, tmp_path):
        rows = [ROW, ROW | {"chosen_logp": -20.0}]
        (tmp_path / "rows.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
        ran = alphapo("loss", "rows.jsonl", "objective=simpo", "objective.beta=2", "objective.gamma=0.5")
        assert (ran.code, ran.err) == (0, "")
        first, second = map(json.loads, ran.out.splitlines())
        # SimPO: r = beta L/n; margins of the rewards are 2 (-2 + 3) = 2 and 2 (-4 + 3) = -2.
        assert (first["chosen_reward"], first["rejected_reward"], first["margin"]) == (-4.0, -6.0, 2.0)
        assert second["margin"] == -2.0

    def test_a_reference_is_asked_for_by_name(self, alphapo, tmp_path):
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
        ran = alphapo("loss", "rows.jsonl", "objective=dpo")
        assert ran.code == 2
        assert "line 1: no 'ref_chosen_logp', which objective 'dpo' needs" in ran.fault


@pytest.mark.slow
def test_train_in_a_process_of_its_own(cli, shared_cache, trained, tmp_path):
    """Exit code, streams and numbers of the installed command are those that the quick tests see."""
    line = json.loads((trained.path / "manifest.json").read_text())["command"][1:-2]
    ran = cli(*line, "--json", "-", cache=shared_cache)
    assert ran.code == 0, ran.err
    first, last = ran.out.splitlines()
    assert first == str(tmp_path / "runs" / trained.path.name)
    assert json.loads(last)["state"] == "complete"
    assert (ran.path / "metrics.jsonl").read_bytes() == (trained.path / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_the_base_is_trained_on_first_use_and_said(forked, tmp_path, tiny):
    first = forked("train", *tiny, "run.dir=a", cache=tmp_path / "cache")
    assert (first.code, first.err.splitlines()[0][:35]) == (0, "training the embedded world's base ")
    second = forked("train", *tiny, "run.dir=b", cache=tmp_path / "cache")
    assert "training the embedded world" not in second.err
    assert (first.path / "metrics.jsonl").read_bytes() == (second.path / "metrics.jsonl").read_bytes()
