"""What can be wrong with a chat template: it refuses a conversation, or does not end."""

from __future__ import annotations

from typing import Any

from alphapo_cli.errors import UsageError

LONGEST = 10.0  # seconds of the processor that rendering one conversation may take


class TemplateTimeout(UsageError):
    """The chat template does not end."""

    def __init__(self, name: str = "") -> None:
        super().__init__(
            f"{name or 'this tokenizer'}: its chat template has not rendered one conversation in {LONGEST:g} s; does it loop? "
            "Correct it, or set data.template=plain"
        )
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class TemplateRefusal(UsageError):
    """The chat template raised for a conversation (roles that do not alternate, no system message, ...)."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(f"{name or 'this tokenizer'}: its chat template {reason}")
        self.reason, self.name = reason, name

    def __reduce__(self) -> tuple[Any, ...]:  # of an exception that crosses processes, its arguments alone are kept
        return type(self), (self.reason, self.name)
