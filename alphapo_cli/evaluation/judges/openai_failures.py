"""How a request to an endpoint can fail.

Retry      network, 408, 409, 425, 429, 5xx; fewer attempts after a timeout or an answer without log-probs, which may have
           cost money
Permanent  the request itself is refused (too long, filtered): it fails, the others continue
Fatal      no request can succeed (key, model, quota): nothing more is sent
"""

from __future__ import annotations

from alphapo_cli.evaluation.judges.judge import Unusable


class Retry(Exception):
    """The request may succeed later.

    `after`: seconds of the server's Retry-After; `paid`: the useless answer, if one was charged; `costly`: the server
    may charge for the failed attempt.
    """

    def __init__(
        self, reason: str, after: float | None = None, paid: Unusable | None = None, costly: bool = False
    ) -> None:
        super().__init__(reason)
        self.after, self.paid, self.costly = after, paid, costly or paid is not None


class Permanent(Exception):
    """This request cannot succeed. `paid`: the useless answer, if one was charged."""

    def __init__(self, reason: str, paid: Unusable | None = None) -> None:
        super().__init__(reason)
        self.paid = paid


class Fatal(Exception):
    """No request can succeed."""
