"""A session of concurrent requests to an endpoint: retries, rate limits, and interruption without loss.

`openai_failures` has the kinds of failed requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from alphapo_cli.evaluation.judges.http import client_settings, connection_hint
from alphapo_cli.evaluation.judges.judge import JudgingResult, Record, Reply, Unusable
from alphapo_cli.evaluation.judges.openai_errors import ServerError, read
from alphapo_cli.evaluation.judges.openai_failures import Fatal, Permanent, Retry, failure_of
from alphapo_cli.evaluation.judges.openai_request import payload
from alphapo_cli.evaluation.judges.openai_response import NoVerdictError, first_token, smaller_limit
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.runtime.progress import Progress
from alphapo_cli.runtime.signals import SIGNALS

GRACE = 20.0  # seconds that requests in flight get after Ctrl-C: they are paid for
PAID_ATTEMPTS = 3  # useless or late answers, each possibly charged, after which a judgement fails
MOST_TOKENS = 10**9  # a larger count of one answer is a server's mistake


class Session:
    """Queries every question, with retries, and returns how that ended."""

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
        query = f"?api-version={quote(cfg.api_version)}" if cfg.api_version else ""
        self.cfg, self.url, self.headers, self.clean = cfg, f"{base_url}/chat/completions{query}", headers, clean
        self.top_logprobs = cfg.top_logprobs  # lowered once if the server names a limit
        self.estimate, self.price, self.spent, self.record = estimate, price, spent, record
        self.in_flight = 0.0  # estimated USD of the requests in flight
        self.outcome = JudgingResult()
        self.not_before = 0.0  # the server's Retry-After, for all workers
        self.failures = 0  # consecutive failed judgements
        self.patience = max(8, cfg.concurrency)  # consecutive failures after which the server counts as down

    async def run(self, asks: Sequence[Ask]) -> JudgingResult:
        """Query all questions with `cfg.concurrency` workers."""
        self.queue, self.stop = deque(asks), asyncio.Event()
        self.first_interrupt, self.second_interrupt = asyncio.Event(), asyncio.Event()
        with Progress(len(asks), "judgements") as self.bar, self._signals():
            limits, settings = httpx.Limits(max_connections=self.cfg.concurrency), client_settings(self.url)
            async with httpx.AsyncClient(headers=self.headers, limits=limits, timeout=None, **settings) as client:
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
        first: asyncio.Future[Any] = asyncio.create_task(self.first_interrupt.wait())
        second: asyncio.Future[Any] = asyncio.create_task(self.second_interrupt.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            # Stopped by a server's answer, no user waits: requests in flight end by their own timeout.
            await asyncio.wait({work, first}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work, second}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # raises what a worker raised, such as a full disk
        finally:
            for task in (stopped, first, second):
                task.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C, SIGTERM or SIGHUP lets requests in flight finish, the second cancels them."""
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
            self.second_interrupt.set()
            return
        self.outcome.interrupted = True
        self.first_interrupt.set()
        self._halt("interrupted")
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.bar.write("interrupted: waiting for the requests under way (again: stop now)")

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
            if not self.stop.is_set() and (over := await self._over_limit(cost)):
                self._halt(over)
            if self.stop.is_set():
                return
            self.in_flight += cost
            try:
                reply = await self._attempt(client, ask)
            except Retry as error:
                paid += error.costly
                if error.paid is not None:
                    self._record(ask, error.paid)
                if error.after is not None and error.after > self.cfg.max_wait:
                    self._fail(ask, f"{error} (asks to wait {error.after:.0f} s, judge.max_wait={self.cfg.max_wait:g})")
                    return
                if attempt == self.cfg.attempts or paid == PAID_ATTEMPTS:
                    self._fail(ask, str(error))
                    return
                self.in_flight, cost = self.in_flight - cost, 0.0
                await self._wait(self._delay(attempt, error.after))
            except Permanent as error:
                if error.paid is not None:
                    self._record(ask, error.paid)
                self._fail(ask, str(error))
                return
            except Fatal as error:
                self._fail(ask, str(error))
                self._halt("no request can succeed")
                return
            except Exception as error:
                # Nobody knows what a server may send: one answer of no known form fails alone, and may have cost money.
                reason = self.clean(f"an answer of no known form ({type(error).__name__}: {str(error)[:200]})")
                self._record(ask, Unusable(reason, None, None))
                self._fail(ask, reason)
                return
            else:
                self._record(ask, reply)
                self.failures = 0
                self.bar.update()
                return
            finally:
                self.in_flight -= cost

    async def _over_limit(self, cost: float) -> str | None:
        """Why a request of estimated `cost` USD is not sent; None where --max-cost allows it."""
        limit = self.cfg.max_cost
        over = limit is not None and self.spent + self.in_flight + cost > limit
        if limit is None or not over:
            return None
        return f"--max-cost {limit:g} is reached: {budget(limit, self.spent)} (requests cost more than estimated)"

    def _body(self, ask: Ask, top_logprobs: int) -> dict[str, Any]:
        """The body of one request."""
        return payload(self.cfg, ask.messages, top_logprobs)

    def _reply(self, ask: Ask, body: Any, tokens: int | None, price: float | None, seconds: float) -> Reply:
        """What an answer says; raises NoVerdictError, or ValueError where another request may help."""
        return Reply(first_token(body), tokens, price, seconds)

    def _record(self, ask: Ask, answer: Reply | Unusable) -> None:
        if answer.price is None:  # a server that does not count tokens
            answer = dataclasses.replace(answer, price=self.estimate(ask))
        self.spent += answer.price or 0.0
        self.record(ask, answer)

    def _fail(self, ask: Ask, reason: str) -> None:
        self.outcome.failed[ask.key] = reason
        self.bar.update()
        self.failures += 1
        # Up to max_failed failures do not stop the session: a rerun may have no other questions left.
        if self.failures >= self.patience and len(self.outcome.failed) > self.cfg.max_failed and not self.stop.is_set():
            self._halt(f"{self.failures} judgements in a row had failed")

    def _delay(self, attempt: int, after: float | None) -> float:
        """Seconds before the next attempt: exponential backoff with jitter, at least the server's Retry-After."""
        longest = min(self.cfg.max_wait, self.cfg.wait * 2.0 ** (attempt - 1))
        backoff = longest * (0.5 + 0.5 * random.random())
        if after is None:
            return backoff
        self.not_before = max(self.not_before, time.monotonic() + after)
        # A rate-limited server may repeat a short Retry-After: "0" each time would use up all attempts at once.
        return max(backoff, after * (1.0 + 0.1 * random.random()))

    async def _wait(self, seconds: float) -> None:
        """Sleep, unless stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), seconds)

    async def _attempt(self, client: httpx.AsyncClient, ask: Ask) -> Reply:
        began, top_logprobs = time.monotonic(), self.top_logprobs
        try:
            async with asyncio.timeout(self.cfg.timeout):
                answer = await client.post(self.url, json=self._body(ask, top_logprobs))
        except TimeoutError as error:
            raise Retry(f"no answer within {self.cfg.timeout:g} s", costly=True) from error
        except httpx.DecodingError as error:
            raise Retry(
                self.clean(f"an answer that cannot be unpacked ({error}); a proxy between may have changed it"),
                costly=True,
            ) from error
        except httpx.HTTPError as error:
            hint = connection_hint(self.url, error)
            raise Retry(self.clean(f"{type(error).__name__}: {error}".rstrip(": ")) + hint) from error
        return self._read(ask, answer, top_logprobs, time.monotonic() - began)

    def _refusal(self, error: ServerError, headers: Mapping[str, str], top_logprobs: int) -> Exception:
        if error.acts_as in (400, 422):
            limit = smaller_limit(error.message, top_logprobs)
            self.top_logprobs = min(self.top_logprobs, limit or self.top_logprobs)
            if self.top_logprobs < top_logprobs:  # by this answer, or by one that came meanwhile
                return Retry(f"the server allows {self.top_logprobs} top log-probs", after=0.0)
        return failure_of(error, headers, time.time(), self.clean, self.cfg)

    def _read(self, ask: Ask, answer: httpx.Response, top_logprobs: int, seconds: float) -> Reply:
        body = read(answer)
        if isinstance(body, ServerError):  # no verdict because of the server, and so nothing that it may charge
            raise self._refusal(body, answer.headers, top_logprobs)
        usage = body.get("usage")
        counts = [usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")]
        tokens_in, tokens_out = (n if isinstance(n, int) and 0 <= n < MOST_TOKENS else None for n in counts)
        tokens = None if tokens_in is None else tokens_in + (tokens_out or 0)
        price = None if tokens_in is None else self.price(tokens_in, tokens_out or 0)
        try:
            return self._reply(ask, body, tokens, price, seconds)
        except NoVerdictError as error:
            raise Permanent(reason := self.clean(str(error)), Unusable(reason, tokens, price)) from error
        except ValueError as error:
            raise Retry(str(error), paid=Unusable(str(error), tokens, price)) from error


def budget(limit: float, spent: float) -> str:
    """What was spent of --max-cost already, and what is left of it."""
    return f"{usd(spent)} spent already, {usd(max(0.0, limit - spent))} left"


def usd(amount: float) -> str:
    """An amount, of which small ones keep their digits."""
    return f"{amount:.2f} USD" if amount >= 1 or amount == 0 else f"{amount:.3g} USD"
