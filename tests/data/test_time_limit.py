"""A chat template that does not end is refused in seconds, in the main thread, in others and in worker processes."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import Any

import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data import template as templates
from alphapo_cli.data import template_errors
from alphapo_cli.data.template_errors import TemplateTimeout
from alphapo_cli.data.time_limit import OutOfTime, time_limit
from tests import tiny as small

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
CHAT = ({"role": "user", "content": "Hello"},)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "LONGEST", 0.2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small.encoded(small.dialogues(8))[0]


def spin() -> None:
    while True:
        pass


def test_the_block_ends_and_the_timer_with_it() -> None:
    handler = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(OutOfTime), time_limit(0.1):
        spin()
    with time_limit(0.05):
        pass
    end = time.process_time() + 0.2
    while time.process_time() < end:  # no timer is left that would fire here
        pass
    assert signal.getsignal(signal.SIGVTALRM) == handler


@pytest.mark.slow
def test_one_that_catches_everything_does_not_escape() -> None:
    def stubborn() -> None:
        for _ in range(2):
            with contextlib.suppress(Exception):
                spin()
        spin()

    with pytest.raises(OutOfTime), time_limit(0.05):
        stubborn()


def test_in_another_thread() -> None:
    found: list[Any] = []

    def work() -> None:
        try:
            with time_limit(0.1):
                spin()
        except OutOfTime as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert len(found) == 1


def test_a_template_that_loops(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", LOOP + PLAIN, raising=False)
    with pytest.raises(TemplateTimeout, match="has not rendered one conversation in 10 s; does it loop"):
        templates.template_of(tokenizer, DataConfig()).render(CHAT)


def test_one_that_loops_for_some_rows_only(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "{% if messages[0]['content'] == 'loop' %}" + LOOP + "{% endif %}" + PLAIN
    monkeypatch.setattr(tokenizer, "chat_template", odd, raising=False)
    template = templates.template_of(tokenizer, DataConfig())
    assert "Hello" in template.render(CHAT)
    with pytest.raises(TemplateTimeout):
        template.render(({"role": "user", "content": "loop"},))


def test_it_crosses_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(TemplateTimeout("a-model")))
    assert str(error).startswith("a-model: its chat template has not rendered")
    assert template_errors.LONGEST == 10
