"""One session of requests to an endpoint: concurrency, retries, waiting, and stopping without losing anything.

What happened decides what follows:
    Retry      network, 408, 409, 425, 429, 5xx; fewer times after a timeout or an answer without log-probs, which may
               have cost money
    Permanent  the request itself is refused (too long, filtered): this one fails, the others go on
    Fatal      no request can succeed (key, model, quota): nothing more is sent
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import math
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
from tqdm import tqdm

from alphapo_cli.evaluation.judges.judge import JudgingResult, Record, Reply, Unusable
from alphapo_cli.evaluation.judges.protocol import Ask, Message
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.runtime.signals import SIGNALS

GRACE = 20.0  # seconds that requests under way get after Ctrl-C: they are paid for
PAID_ATTEMPTS = 3  # how often an answer that may cost money can be useless or late before its judgement fails
RETRIED = {408, 409, 425, 429}
FATAL = {401, 404, 405}  # not 403: endpoints that moderate answer so to a single flagged prompt


class Retry(Exception):
    """May succeed later.

    after: seconds that the server asked for; paid: what a useless answer cost; costly: the server may charge for what
    it worked on in vain.
    """

    def __init__(
        self, reason: str, after: float | None = None, paid: Unusable | None = None, costly: bool = False
    ) -> None:
        super().__init__(reason)
        self.after, self.paid, self.costly = after, paid, costly or paid is not None


class Permanent(Exception):
    """This request cannot succeed."""


class Fatal(Exception):
    """No request can succeed."""


class Session:
    """Asks every question once, more often where that may help, and returns how it ended."""

    def __init__(
        self,
        cfg: JudgeConfig,
        base_url: str,
        headers: dict[str, str],
        clean: Callable[[str], str],
        estimate: Callable[[Ask], float | None],
        price: Callable[[int, int], float | None],
        spent: float,
        record: Record,
    ) -> None:
        self.cfg, self.url, self.headers, self.clean = cfg, f"{base_url}/chat/completions", headers, clean
        self.estimate, self.price, self.spent, self.record = estimate, price, spent, record
        self.under_way = 0.0  # USD, estimated
        self.outcome = JudgingResult()
        self.not_before = 0.0  # the server's Retry-After, for all workers
        self.in_a_row = 0
        self.patience = max(8, cfg.concurrency)  # failures in a row after which the server counts as gone

    async def run(self, asks: Sequence[Ask]) -> JudgingResult:
        self.queue, self.stop = deque(asks), asyncio.Event()
        self.hurry, self.again = asyncio.Event(), asyncio.Event()  # the first interruption, the second
        with tqdm(total=len(asks), unit=" judgements", disable=None, file=sys.stderr) as self.bar, self._signals():
            limits = httpx.Limits(max_connections=self.cfg.concurrency)
            async with httpx.AsyncClient(headers=self.headers, limits=limits, timeout=None) as client:
                workers = [asyncio.create_task(self._work(client)) for _ in range(min(self.cfg.concurrency, len(asks)))]
                try:
                    await self._until_done(workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        return self.outcome

    async def _until_done(self, workers: Sequence[asyncio.Task[None]]) -> None:
        work: asyncio.Future[Any] = asyncio.gather(*workers)
        stopped: asyncio.Future[Any] = asyncio.create_task(self.stop.wait())
        hurry: asyncio.Future[Any] = asyncio.create_task(self.hurry.wait())
        again: asyncio.Future[Any] = asyncio.create_task(self.again.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            # Stopped by what an answer said, nobody is waiting: what is under way ends by its own time-out.
            await asyncio.wait({work, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work, again}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # raises what a worker raised, such as a full disk
        finally:
            for waiting in (stopped, hurry, again):
                waiting.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C, SIGTERM or SIGHUP lets what is under way finish, the second does not."""
        loop, before = asyncio.get_running_loop(), {}
        with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: its owner handles signals
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler == signal.SIG_IGN:  # a sweep's worker leaves Ctrl-C to its parent, nohup a closed terminal
                    continue
                loop.add_signal_handler(number, self._interrupt)
                before[number] = handler
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _interrupt(self) -> None:
        if self.stop.is_set() and self.outcome.interrupted:
            self.again.set()
            return
        self.outcome.interrupted = True
        self.hurry.set()
        self._halt("interrupted")
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.bar.write("interrupted: waiting for the requests under way (again: stop now)", file=sys.stderr)

    def _halt(self, reason: str) -> None:
        if self.outcome.stopped is None:
            self.outcome.stopped = reason
        self.stop.set()

    async def _work(self, client: httpx.AsyncClient) -> None:
        while self.queue and not self.stop.is_set():
            await self._judge(client, self.queue.popleft())

    async def _judge(self, client: httpx.AsyncClient, ask: Ask) -> None:
        paid = 0
        for attempt in range(1, self.cfg.attempts + 1):
            await self._wait(self.not_before - time.monotonic())
            cost = self.estimate(ask) or 0.0
            limit = self.cfg.max_cost
            if limit is not None and not self.stop.is_set() and self.spent + self.under_way + cost > limit:
                self._halt(f"--max-cost {limit:g} is reached (requests cost more than estimated)")
            if self.stop.is_set():
                return
            self.under_way += cost
            try:
                reply = await self._attempt(client, ask)
            except Retry as error:
                paid += error.costly
                if error.paid is not None:
                    self._keep(ask, error.paid)
                if error.after is not None and error.after > self.cfg.max_wait:
                    self._fail(ask, f"{error} (asks to wait {error.after:.0f} s, judge.max_wait={self.cfg.max_wait:g})")
                    return
                if attempt == self.cfg.attempts or paid == PAID_ATTEMPTS:
                    self._fail(ask, str(error))
                    return
                self.under_way, cost = self.under_way - cost, 0.0
                await self._wait(self._delay(attempt, error.after))
            except Permanent as error:
                self._fail(ask, str(error))
                return
            except Fatal as error:
                self._fail(ask, str(error))
                self._halt("no request can succeed")
                return
            else:
                self._keep(ask, reply)
                self.in_a_row = 0
                self.bar.update()
                return
            finally:
                self.under_way -= cost

    def _keep(self, ask: Ask, answer: Reply | Unusable) -> None:
        if answer.price is None:  # a server that does not count tokens
            answer = dataclasses.replace(answer, price=self.estimate(ask))
        self.spent += answer.price or 0.0
        self.record(ask, answer)

    def _fail(self, ask: Ask, reason: str) -> None:
        self.outcome.failed[ask.key] = reason
        self.bar.update()
        self.in_a_row += 1
        # As many as may fail are no reason to stop: when the same line comes again, they are all that is left to ask.
        if self.in_a_row >= self.patience and len(self.outcome.failed) > self.cfg.max_failed and not self.stop.is_set():
            self._halt(f"{self.in_a_row} judgements in a row had failed")

    def _delay(self, attempt: int, after: float | None) -> float:
        """Seconds before the next attempt: doubling with jitter, and no less than the server wishes of all workers."""
        longest = min(self.cfg.max_wait, self.cfg.wait * 2.0 ** (attempt - 1))
        own = longest * (0.5 + 0.5 * random.random())
        if after is None:
            return own
        self.not_before = max(self.not_before, time.monotonic() + after)
        # A short wish comes again as long as the limit holds: a "0" each time would use up all attempts at once.
        return max(own, after * (1.0 + 0.1 * random.random()))

    async def _wait(self, seconds: float) -> None:
        """Sleep, unless stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), seconds)

    async def _attempt(self, client: httpx.AsyncClient, ask: Ask) -> Reply:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.cfg.timeout):
                answer = await client.post(self.url, json=_payload(self.cfg, ask.messages))
        except TimeoutError as error:
            raise Retry(f"no answer within {self.cfg.timeout:g} s", costly=True) from error
        except httpx.HTTPError as error:
            raise Retry(self.clean(f"{type(error).__name__}: {error}".rstrip(": "))) from error
        if answer.status_code != 200:
            raise self._refusal(answer)
        return self._read(answer, time.monotonic() - began)

    def _refusal(self, answer: httpx.Response) -> Exception:
        status, said = answer.status_code, _message(answer)
        reason = self.clean(f"HTTP {status}" + (f": {said}" if said else ""))
        if status in FATAL or 300 <= status < 400 or (status == 429 and "insufficient_quota" in answer.text):
            return Fatal(reason)
        if status in RETRIED or status >= 500 or status < 300:
            return Retry(reason, retry_after(answer.headers.get("retry-after"), time.time()))
        return Permanent(reason)

    def _read(self, answer: httpx.Response, seconds: float) -> Reply:
        try:
            body = answer.json()
        except (ValueError, RecursionError) as error:
            raise Retry("an answer that is not JSON") from error
        usage = body.get("usage") if isinstance(body, dict) else None
        counts = [usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")]
        tokens_in, tokens_out = (n if isinstance(n, int) and n >= 0 else None for n in counts)
        tokens = None if tokens_in is None else tokens_in + (tokens_out or 0)
        price = None if tokens_in is None else self.price(tokens_in, tokens_out or 0)
        try:
            top = first_token(body)
        except ValueError as error:
            raise Retry(str(error), paid=Unusable(str(error), tokens, price)) from error
        return Reply(top, tokens, price, seconds)


def _payload(cfg: JudgeConfig, messages: Sequence[Message]) -> dict[str, Any]:
    return {
        "model": cfg.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": 1,
        "temperature": cfg.temperature,
        "top_p": 1,
        "logprobs": True,
        "top_logprobs": cfg.top_logprobs,
    }


def first_token(body: Any) -> tuple[tuple[str, float], ...]:
    """(token, log-prob) of the first answer token's alternatives in a chat completion.

    Raises:
        ValueError: they are not there; the message says what is missing.
    """
    try:
        choice = body["choices"][0]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("an answer without choices") from error
    try:
        rows = choice["logprobs"]["content"][0]["top_logprobs"]
        top = tuple((row["token"], row["logprob"]) for row in rows)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("an answer without log-probs (the endpoint must return top_logprobs)") from error
    numbers = all(isinstance(lp, int | float) and not isinstance(lp, bool) and math.isfinite(lp) for _, lp in top)
    if not top or not numbers or not all(isinstance(token, str) for token, _ in top):
        raise ValueError("an answer with broken log-probs")
    return tuple((token, float(lp)) for token, lp in top)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date; None where it holds neither. now: Unix time."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None


def _message(answer: httpx.Response) -> str:
    """What the server says went wrong: its error message, or its text. Not cut: half a key would not be recognised."""
    try:
        body = json.loads(answer.text)
    except (ValueError, RecursionError):
        return answer.text
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else json.dumps(error)
