"""`alphapo chat`."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from alphapo_cli.cli.common import ConfigDir, next_step, sources
from alphapo_cli.cli.generate import is_model
from alphapo_cli.cli.next_lines import generate_line
from alphapo_cli.errors import UsageError, say
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.storage.strict_json import half_character


def register(app: typer.Typer) -> None:
    """Add `alphapo chat` to the application."""
    app.command(short_help="Talk to a model in the terminal.")(chat)


def chat(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|MODEL] [OVERRIDES]...",
            help="A run, a saved model or adapter, or a hub name (without: the embedded world's base model); then Hydra overrides.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Talk to a model in the terminal, by the chat template and the token ids that it was trained with.

    A line is a message; /new begins another conversation, /ids shows the ids that the model was given, /quit or Ctrl-D
    ends. Lines from a pipe are answered one after another.

    \b
    Examples:
      alphapo chat runs/alphapo-1a2b3c4d
      alphapo chat ./my-model generation.temperature=0.7 generation.max_new_tokens=200
    """
    from alphapo_cli.config.compose import compose
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.generation.run_settings import run_layer
    from alphapo_cli.generation.schema import GenerateConfig, check_line
    from alphapo_cli.stages.paths import check_model

    given = list(arguments or [])
    model = given.pop(0) if given and is_model(given[0]) else None
    where = sources(config_dir)
    line = read_line(given, where)
    check_line(line)
    cfg = compose("generate", GenerateConfig, [run_layer(model), line], where)
    if model is not None:
        check_model(model, cfg.model.revision, key="model")
    quiet_libraries(importing=True)
    print("loading the model ...", file=sys.stderr, flush=True)
    from alphapo_cli.stages.chat import Conversation

    talk = Conversation(cfg, model)
    say(f"{talk.subject.name}: type a message; /new, /ids, /help, /quit", file=sys.stderr, flush=True)
    if not talk.keeps:
        say("note: the model has no chat template; every message is a prompt of its own", file=sys.stderr)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 must not end the conversation
    asks = sys.stdin.isatty()
    while True:
        print("you: " if asks else "", end="", file=sys.stderr, flush=True)
        text = sys.stdin.readline()
        message = text.strip()
        if not text or message == "/quit":
            break
        if message == "/new":
            talk.forget()
        elif message == "/help":
            print("/new: another conversation; /ids: the ids that the model was given; /quit: the end", file=sys.stderr)
        elif message == "/ids":
            print(" ".join(map(str, talk.ids)))
        elif half_character(message) is not None:  # bytes that are no UTF-8 arrive so
            print("alphapo: that was no UTF-8 text; type it again", file=sys.stderr, flush=True)
        elif message:
            try:
                for said in talk.reply(message).split("\n"):
                    say(said, flush=True)
            except UsageError as error:
                say(f"alphapo: {error}", file=sys.stderr, flush=True)
                continue
            if talk.cut:
                print("(cut by the token limit: generation.max_new_tokens)", file=sys.stderr, flush=True)
    if asks:
        print(file=sys.stderr)
    next_step(generate_line(model), "answers many prompts at once")
