"""The command line. Heavy packages are imported only when a command runs; an error is one line on stderr."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from typing import Annotated, Any

import typer
import typer.main

from alphapo_cli import __version__
from alphapo_cli.cli import (
    chat,
    clean,
    compare,
    diff,
    evaluate,
    export,
    generate,
    information,
    inspect,
    loss,
    ls,
    measure,
    pairs,
    plan,
    report,
    rm,
    run,
    score,
    sweep,
    train,
    validate,
    verify,
)
from alphapo_cli.errors import AlphapoError, UsageError, in_words, refusal, say
from alphapo_cli.runtime.heartbeat import Heartbeat
from alphapo_cli.runtime.signals import raise_interrupt

# typer vendors click; its public BadParameter is a UsageError, which is a ClickException.
ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="alphapo",
    help="What does the shape of the reward do to preference training? Train, sweep alpha, and see which way the log-probs go.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"alphapo {__version__}")
        raise typer.Exit


# Commands that would do the same work in every process of torchrun.
_ALONE = ("sweep", "generate", "measure", "score", "pairs", "eval")
# Commands that may work for minutes.
_LONG = ("train", "run", *_ALONE, "inspect", "plan", "export")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. Works behind any command, too.")] = False,
) -> None:
    """Options of every command.

    Raises:
        UsageError: the current directory does not exist any more.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current directory does not exist any more; cd to one that does") from error


train.register(app)
run.register(app)
sweep.register(app)
generate.register(app)
measure.register(app)
score.register(app)
pairs.register(app)
evaluate.register(app)
compare.register(app)
report.register(app)
verify.register(app)
loss.register(app)
inspect.register(app)
plan.register(app)
export.register(app)
chat.register(app)
validate.register(app)
ls.register(app)
diff.register(app)
rm.register(app)
clean.register(app)
information.register(app)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 a failed run, 2 wrong usage or configuration, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    code = _run([a for a in arguments if a != "--debug"], debug)
    if os.environ.get("WORLD_SIZE", "").strip() not in ("", "0", "1"):  # whatever else somebody has set it to
        from alphapo_cli.runtime.exit import exit_with_threads

        exit_with_threads(code)
    sys.exit(code)


def _run(arguments: list[str], debug: bool) -> int:
    """Run a command; its exit code."""
    # A script's `&` starts a process with SIGINT ignored; one that is sent to it by hand must interrupt it still.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A scheduler's SIGTERM and a closed terminal are interruptions like Ctrl-C: exit code 130.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, raise_interrupt)
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name in _ALONE and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1":
        more = " (its cells take several: launcher.nproc_per_node=N)" if name == "sweep" else ""
        return _print_error(f"alphapo {name} runs in one process{more}; type the line without torchrun", 2)
    try:
        with Heartbeat() if name in _LONG else contextlib.nullcontext():
            code = _command()(arguments, standalone_mode=False)
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return 2
        return _print_error(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _print_error("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AlphapoError as error:
        if debug:
            raise
        return _print_error(str(error), error.exit_code)
    except Exception as error:
        if debug:
            raise
        hint = "" if refusal(error) else " (--debug shows where; `alphapo env` is what a bug report needs)"
        return _print_error(f"{in_words(error)}{hint}", 1)
    if code == 130:  # typer's exit code for Ctrl-C where no stage has handled it
        return _print_error("interrupted", 130)
    return code if isinstance(code, int) else 0


@functools.cache
def _command() -> Any:
    """The parser of all commands, which a process that runs many of them makes once."""
    return typer.main.get_command(app)


def _print_error(message: str, code: int) -> int:
    """Print the message as one line to stderr; the exit code."""
    say(f"alphapo: {' '.join(message.split())}", file=sys.stderr)
    return code
