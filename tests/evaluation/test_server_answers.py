"""What servers send in place of a verdict, in the forms of those that people use: what is said, asked again and paid for."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from alphapo_cli.evaluation.judges.judge import Reply, Unusable
from alphapo_cli.evaluation.judges.openai import OpenAIEngine
from alphapo_cli.evaluation.judges.openai_errors import ServerError
from alphapo_cli.evaluation.judges.openai_failures import failure_of
from alphapo_cli.evaluation.judges.prompt import Message
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.evaluation.schema import JudgeConfig
from tests.evaluation.judge_server import Answer, Server, error, judged, serve

KEY = "sk-secret-1234567890abcdef"
PRICE = (100 * 10 + 30) / 1e6  # USD of one answer of 100 tokens and one


@dataclass(frozen=True)
class Said:
    """What is said of an answer: `cause` and `remedy`, parts of the reason why the judgement failed.

    ends: "again" (asked once more, and then it fails), "alone" (fails, the others go on), "all" (nothing more is asked) or
    "read" (a verdict); paid: whether the answer counts as paid.
    """

    cause: str = ""
    remedy: str = ""
    ends: str = "again"
    paid: bool = False


def ok(body: Any, **headers: str) -> Answer:
    return Answer(body=body, headers=headers)


def page(title: str, status: int = 200) -> Answer:
    text = f'<!DOCTYPE html>\n<html lang="en"><head><title>{title}</title></head><body>{"x" * 400}</body></html>'
    return Answer(status, text=text, headers={"Content-Type": "text/html"})


def choice(**changes: Any) -> Answer:
    """A good answer whose first choice is changed."""
    answer = judged()
    answer.body["choices"][0] |= changes
    return answer


def tops(top: Any) -> Answer:
    return choice(logprobs={"content": [{"token": "m", "logprob": -0.1, "top_logprobs": top}]})


def spelt(logprob: str) -> Answer:
    """A good answer in which the log-prob of M is spelt so."""
    return Answer(text=json.dumps(judged(capital=-1.23456).body).replace("-1.23456", logprob))


GOOD = json.dumps(judged().body)
TOP = [{"token": "m", "logprob": -0.2}, {"token": "M", "logprob": -1.8}]
RATE, MONEY, VARIABLE, MODEL = "judge.concurrency", "has to be paid", "$A_KEY", "judge.base_url ends in /v1"
LONG, FILTER = "longer context", "filtered, or the key"

ANSWERS: dict[str, tuple[Answer, Said]] = {
    # OpenAI's names of errors, with their status and behind a gateway that turns it into 200.
    "OpenAI, rate": (error(429, "Rate limit reached for gpt-4", code="rate_limit_exceeded"), Said("429: Rate limit", RATE)),
    "OpenAI, rate in 200": (ok({"error": {"message": "Slow down", "type": "rate_limit_error"}}), Said("Slow down", RATE)),
    "OpenAI, quota": (error(429, "You exceeded your current quota, please check your plan and billing details.",
                            type="insufficient_quota", code="insufficient_quota"), Said("current quota", MONEY, "all")),
    "OpenAI, quota in 200": (ok({"error": {"message": "Out of money", "code": "insufficient_quota"}}),
                             Said("Out of money", MONEY, "all")),
    "quota in words": (error(429, "Your credit balance is too low"), Said("credit balance", MONEY, "all")),
    "quota that refills": (error(429, "You exceeded your current quota. Please retry in 0.01s."), Said("current quota")),
    "OpenAI, key": (error(401, "Incorrect API key provided"), Said("401: Incorrect", VARIABLE, "all")),
    "OpenAI, key in 200": (ok({"error": {"message": "Bad key", "code": "invalid_api_key"}}), Said("Bad key", VARIABLE, "all")),
    "OpenAI, model": (error(404, "The model does not exist", code="model_not_found"), Said("does not exist", MODEL, "all")),
    "OpenAI, country": (error(403, "Country not supported"), Said("403: Country", FILTER, "alone")),
    "OpenAI, context": (error(400, "This model's maximum context length is 8 tokens", code="context_length_exceeded"),
                        Said("maximum context length", LONG, "alone")),
    "OpenAI, context in 200": (ok({"error": {"message": "Too many tokens", "code": "context_length_exceeded"}}),
                               Said("Too many tokens", LONG, "alone")),
    "OpenAI, server": (ok({"error": {"message": "The server had an error", "type": "server_error"}}), Said("had an error")),
    "OpenAI, no log-probs": (error(400, "logprobs are not supported with this model"),
                             Said("not supported", "--protocol arena_hard", "alone")),
    "OpenAI, other parameter": (error(400, "Use 'max_completion_tokens' instead"),
                                Said("instead", "judge.token_limit_key=max_completion_tokens", "alone")),
    # Azure.
    "Azure, rate": (error(429, "Requests have exceeded call rate limit. Please retry after 86 seconds.", code="429"),
                    Said("asks to wait 86 s", "judge.max_wait", "alone")),
    "Azure, gateway in 200": (ok({"statusCode": 429, "message": "Rate limit is exceeded."}), Said("HTTP 429: Rate", RATE)),
    "Azure, filter": (error(400, "The response was filtered", code="content_filter", innererror={"code": "ResponsibleAI"}),
                      Said("was filtered", ends="alone")),
    "Azure, deployment": (error(404, "The API deployment for this resource does not exist", code="DeploymentNotFound"),
                          Said("deployment", MODEL, "all")),
    "Azure, milliseconds": (error(429, "slow", {"retry-after-ms": "90000", "Retry-After": "soon"}),
                            Said("asks to wait 90 s", ends="alone")),
    # OpenRouter.
    "OpenRouter, provider": (ok({"error": {"message": "Provider returned error", "code": 502,
                                           "metadata": {"raw": "upstream is down", "provider_name": "x"}}}),
                             Said("Provider returned error: upstream is down")),
    "OpenRouter, in a choice": (choice(error={"code": 502, "message": "lost it"}, finish_reason="error", logprobs=None,
                                       message={"content": ""}), Said("HTTP 502: lost it")),
    "OpenRouter, credits": (error(402, "This request requires more credits"), Said("more credits", MONEY, "all")),
    "OpenRouter, moderation": (error(403, "Your input was flagged"), Said("flagged", FILTER, "alone")),
    # vLLM, TGI, llama.cpp, Ollama, Together.
    "vLLM, model in 200": (ok({"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError",
                               "param": None, "code": 404}), Said("HTTP 404: The model", MODEL, "all")),
    "vLLM, context": (error(400, "'max_tokens' is too large: 1. This model's maximum context length is 8 tokens",
                            type="BadRequestError", code=400), Said("maximum context", LONG, "alone")),
    "TGI, overloaded in 200": (ok({"error": "Model is overloaded", "error_type": "overloaded"}), Said("Model is overloaded")),
    "TGI, validation in 200": (ok({"error": "Input validation error: `inputs` must have less than 9 tokens",
                                   "error_type": "validation"}), Said("Input validation error", ends="alone")),
    "llama.cpp, loading": (Answer(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
                           Said("503: Loading model")),
    "llama.cpp, context": (Answer(400, {"error": {"code": 400, "message": "the request exceeds the available context size",
                                                  "type": "exceed_context_size_error", "n_ctx": 8}}),
                           Said("available context size", LONG, "alone")),
    "Ollama, model in 200": (ok({"error": 'model "x" not found, try pulling it first'}),
                             Said("try pulling it first", MODEL, "all")),
    "Ollama's own protocol": (ok({"model": "x", "message": {"role": "assistant", "content": "m"}, "done": True}),
                              Said("Ollama's own format", MODEL, "all")),
    "Together, model": (ok({"id": "x", "error": {"message": "Unable to access it", "type": "invalid_request_error",
                                                 "code": "model_not_available"}}), Said("Unable to access", MODEL, "all")),
    # Anthropic and gateways to it, Google, Amazon, Cloudflare.
    "Anthropic, overloaded": (Answer(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
                              Said("HTTP 529: Overloaded")),
    "Anthropic, overloaded in 200": (ok({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
                                     Said("Overloaded")),
    "Anthropic's protocol": (ok({"type": "message", "role": "assistant", "content": [{"type": "text", "text": "m"}]}),
                             Said("Anthropic's format", MODEL, "all")),
    "OpenAI's other protocol": (ok({"object": "response", "output": []}), Said("Responses API's format", MODEL, "all")),
    "Google, a list": (Answer(400, [{"error": {"code": 400, "message": "Bad value", "status": "INVALID_ARGUMENT"}}]),
                       Said("HTTP 400: Bad value", ends="alone")),
    "Google, exhausted in 200": (ok([{"error": {"message": "Resource exhausted", "status": "RESOURCE_EXHAUSTED"}}]),
                                 Said("Resource exhausted", RATE)),
    "Amazon, throttled in 200": (ok({"__type": "ThrottlingException", "message": "Rate exceeded", "error": True}),
                                 Said("Rate exceeded", RATE)),
    "Cloudflare, in 200": (ok({"success": False, "errors": [{"code": 10000, "message": "Authentication error"}], "result": None}),
                           Said("Authentication error", VARIABLE, "all")),
    "Cloudflare, page": (page("example.org | 502: Bad gateway", 502), Said("502: a web page (example.org | 502: Bad gateway)")),
    "Cloudflare, a question": (page("Just a moment...", 403), Said("403: a web page (Just a moment...)", "a gateway before the API", "alone")),
    "nginx, 413": (page("413 Request Entity Too Large", 413), Said("413 Request Entity", LONG, "alone")),
    "a login page in 200": (page("Log in &amp; go on"), Said("not JSON but a web page (Log in & go on)", MODEL)),
    "FastAPI, a list": (Answer(422, {"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "x"}]}),
                        Said("body.messages: field required", ends="alone")),
    "problem+json": (Answer(429, {"type": "about:blank", "title": "Too Many Requests", "status": 429}),
                     Said("Too Many Requests", RATE)),
    "an error in an error": (ok({"error": {"error": {"message": "deep down"}}}), Said("deep down")),
    "an error without words": (ok({"error": True}), Said("an error without a word")),
    # Statuses.
    "408": (error(408, "timed out"), Said("HTTP 408: timed out")),
    "409": (error(409, "conflict"), Said("HTTP 409: conflict")),
    "405": (Answer(405, text="Method Not Allowed"), Said("405: Method", MODEL, "all")),
    "410": (error(410, "retired"), Said("410: retired", "judge.model", "all")),
    "413": (error(413, "Request too large"), Said("413: Request", LONG, "alone")),
    "501": (Answer(501, text="no"), Said("HTTP 501: no", MODEL, "all")),
    "500 without a word": (Answer(500, text=""), Said("HTTP 500")),
    "429 without a word": (Answer(429, text=""), Said("HTTP 429", RATE)),
    "a redirect": (Answer(301, text="", headers={"Location": "https://example.org/v1"}),
                   Said("HTTP 301 to https://example.org/v1", "the new address", "all")),
    "a redirect to nowhere": (Answer(302, text=""), Said("HTTP 302", "the new address", "all")),
    # Bodies that are none.
    "nothing at all": (Answer(text=""), Said("an empty answer")),
    "white space": (Answer(text=" \n\n"), Said("an empty answer")),
    "half of it": (Answer(text=GOOD[: len(GOOD) // 2]), Said("not JSON")),
    "a stream": (Answer(text=f"data: {GOOD}\n\ndata: [DONE]\n\n"), Said("an event stream, not JSON", "extra_body={stream:false}")),
    "a stream of an error": (Answer(text='data: {"error": {"message": "out of memory", "code": 500}}\n\ndata: [DONE]\n\n'),
                             Said("HTTP 500: out of memory")),
    "a stream of an error's event": (Answer(text='event: error\ndata: {"error": {"message": "no", "code": "invalid_api_key"}}\n'),
                                     Said("no", VARIABLE, "all")),
    "comments before an error": (Answer(text=': PROCESSING\n\n: PROCESSING\n\n{"error": {"message": "slow", "code": 429}}'),
                                 Said("HTTP 429: slow", RATE)),
    "an error's message by another name": (ok({"error_code": 18, "error_msg": "qps limit"}), Said("qps limit")),
    "Amazon, a function": (ok({"errorMessage": "Task timed out", "errorType": "x"}), Said("Task timed out")),
    "MiniMax": (ok({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}), Said("rate limit", RATE)),
    "a body of no known form": (ok({"outcome": {"why": "no GPU left"}}), Said('without choices ({"outcome": {"why": "no GPU left"}})')),
    "a text": (ok("upstream is down"), Said("upstream is down")),
    "broken off": (choice(finish_reason="error", message={"content": ""}, logprobs=None), Said("broke the answer off")),
    "broken off, without a word": (choice(finish_reason="error"), Said("broke the answer off")),
    "wait in words": (error(429, "Too fast: please wait 2 minutes"), Said("asks to wait 120 s", ends="alone")),
    "plain text": (Answer(text="upstream connect error"), Said("not JSON (upstream connect error)")),
    "a broken gzip": (Answer(raw=gzip.compress(GOOD.encode())[:10] + b"\xff" * 40, headers={"Content-Encoding": "gzip"}),
                      Said("cannot be unpacked", "a proxy between")),
    "no gzip at all": (Answer(text=GOOD, headers={"Content-Encoding": "gzip"}), Said("cannot be unpacked")),
    "an unknown packing": (Answer(raw=b"\x28\xb5\x2f\xfd\x00", headers={"Content-Encoding": "snappy"}), Said("packed as snappy")),
    "a number of 5000 digits": (spelt("9" * 5000), Said("not JSON")),
    "100000 brackets": (Answer(text="[" * 100_000), Said("not JSON")),
    "choices are null": (ok({"choices": None}), Said("without choices")),
    "choices are texts": (ok({"choices": ["m"]}), Said("without choices")),
    "choices are an object": (ok({"choices": {"0": {}}}), Said("without choices")),
    # Log-probs that are none: the server did its work, which it may charge.
    "log-probs null": (choice(logprobs=None), Said("without log-probs", "top_logprobs", paid=True)),
    "log-probs empty": (choice(logprobs={}), Said("without log-probs", "top_logprobs", paid=True)),
    "log-probs a list": (choice(logprobs=[]), Said("without log-probs", "top_logprobs", paid=True)),
    "log-probs a text": (choice(logprobs="content"), Said("without log-probs", "top_logprobs", paid=True)),
    "no alternatives": (choice(logprobs={"content": [{"token": "m", "logprob": -0.1}]}),
                        Said("but of its own token", "top_logprobs", paid=True)),
    "alternatives null": (tops(None), Said("but of its own token", "top_logprobs", paid=True)),
    "alternatives are texts": (tops(["m", "M"]), Said("without log-probs", "top_logprobs", paid=True)),
    "NaN": (spelt("NaN"), Said("broken log-probs (that of 'M' is nan)", paid=True)),
    "Infinity": (spelt("Infinity"), Said("broken log-probs (that of 'M' is inf)", paid=True)),
    "a text for a number": (spelt('"-0.5"'), Said("broken log-probs (that of 'M' is '-0.5')", paid=True)),
    "nothing is possible": (tops([{"token": "m", "logprob": None}]), Said("none is above minus infinity", paid=True)),
    "an integer of 400 digits": (spelt("-1" + "0" * 400), Said("broken log-probs", paid=True)),
    "a token that is a number": (tops([{"token": 7, "logprob": -0.1}, *TOP]), Said("broken log-probs (a token is 7, not text)", paid=True)),
    "probabilities": (tops([{"token": "m", "logprob": 0.9}]), Said("log-probs are above 0", "probabilities", "alone", True)),
    # The judge itself.
    "a refusal": (choice(message={"refusal": "I can't help"}, logprobs=None), Said("refused (I can't help)", ends="alone", paid=True)),
    "a refusal with half a character": (choice(message={"refusal": "No \ud83d"}, logprobs=None),
                                        Said("refused (No )", ends="alone", paid=True)),
    "Google's filter": (choice(finish_reason="SAFETY", logprobs=None), Said("content filter", ends="alone", paid=True)),
    "Anthropic's refusal": (choice(finish_reason="refusal", logprobs=None), Said("content filter", ends="alone", paid=True)),
    "a thought in its field": (choice(message={"reasoning_content": "Okay"}, logprobs=None),
                               Said("began to think", "judge.chat_template_kwargs", "alone", True)),
    "a thought in details": (choice(message={"content": "", "reasoning_details": [{"text": "Okay"}]}, logprobs=None),
                             Said("began to think", "judge.chat_template_kwargs", "alone", True)),
    "a thought in parts": (choice(message={"content": [{"type": "thinking", "thinking": []}]}, logprobs=None),
                           Said("began to think", "judge.chat_template_kwargs", "alone", True)),
    "a thought in the text": (choice(message={"content": "<think>"}, logprobs=None),
                              Said("began to think", "judge.chat_template_kwargs", "alone", True)),
    # Odd, and a verdict all the same.
    "bytes behind the end": (Answer(text=GOOD + "\n\0\0"), Said(ends="read")),
    "comments before the end": (Answer(text=f": PROCESSING\n\n: PROCESSING\n\n{GOOD}"), Said(ends="read")),
    "a second object": (Answer(text=GOOD + '\n{"usage": 1}'), Said(ends="read")),
    "a mark of byte order": (Answer(raw=b"\xef\xbb\xbf" + GOOD.encode()), Said(ends="read")),
    "UTF-16": (Answer(raw=GOOD.encode("utf-16")), Said(ends="read")),
    "Latin-1 called UTF-8": (Answer(raw=GOOD.replace('"m"', '"m"', 1).replace("assistant", "\u00e4").encode("latin-1")),
                             Said(ends="read")),
    "a key in the words": (error(500, f"your header was Bearer {KEY}"), Said("Bearer [key]")),
    "a wrong charset": (Answer(text=GOOD, headers={"Content-Type": "application/json; charset=klingon"}), Said(ends="read")),
    "called a page": (Answer(text=GOOD, headers={"Content-Type": "text/html"}), Said(ends="read")),
    "201": (Answer(201, text=GOOD), Said(ends="read")),
    "an error that is null": (ok({**judged().body, "error": None}), Said(ends="read")),
    "no message": (choice(message=None), Said(ends="read")),
    "half a character": (tops([*TOP, {"token": "\ud83d", "logprob": -5.0}]), Said(ends="read")),
    "minus infinity": (spelt("-Infinity"), Said(ends="read")),
    "beyond a float": (spelt("-1e999"), Said(ends="read")),
    "the older form": (choice(logprobs={"tokens": ["m"], "token_logprobs": [-0.2], "top_logprobs": [{"m": -0.2, "M": -1.8}]}),
                       Said(ends="read")),
    "no count of tokens": (ok({**judged().body, "usage": None}), Said(ends="read")),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Server, dict[str, Answer]]]:
    """Gives the first question the answer in the table, as often as it is asked, and the second a good one."""
    table: dict[str, Answer] = {}

    def behaviour(number: int, body: dict[str, Any]) -> Answer:
        return table["odd"] if body["messages"][-1]["content"] == "first" else judged()

    with serve(behaviour) as running:
        yield running, table


@pytest.mark.parametrize(
    ("message", "settings", "remedy"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", {},
         "judge.token_limit_key=max_completion_tokens"),
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         {"token_limit_key": "max_completion_tokens"}, ""),
        ("Unrecognized request argument supplied: max_completion_tokens", {"token_limit_key": "max_completion_tokens"},
         "judge.token_limit_key=max_tokens"),
        ("body.max_completion_tokens: Extra inputs are not permitted", {"token_limit_key": "max_completion_tokens"},
         "judge.token_limit_key=max_tokens"),
        ("max_completion_tokens must be at least 16", {"token_limit_key": "max_completion_tokens"}, ""),
        ("'temperature' does not support 0", {}, "judge.temperature=null"),
        ("'temperature' does not support 0", {"temperature": None}, ""),
    ],
)  # fmt: skip
def test_what_is_set_already_is_no_remedy(message: str, settings: dict[str, Any], remedy: str) -> None:
    cfg = JudgeConfig(name="openai", model="a-judge", **settings)
    said = str(failure_of(ServerError(400, 400, message), {}, 0.0, lambda text: text, cfg))
    assert said.removeprefix(f"HTTP 400: {message}") == (f" (add {remedy})" if remedy else "")


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_is_said_asked_again_and_paid(kind: str, server: tuple[Server, dict[str, Answer]]) -> None:
    answer, said = ANSWERS[kind]
    running, table = server
    table["odd"] = answer
    running.seen.clear()
    cfg = JudgeConfig(
        name="openai", base_url=running.url, model="a-judge", api_key_env="A_KEY", wait=0, attempts=2, concurrency=1,
        price_input=10, price_output=30,
    )  # fmt: skip
    rows: list[Reply | Unusable] = []
    asks = [Ask(row, False, (Message("user", text),), text) for row, text in enumerate(("first", "second"))]
    outcome = OpenAIEngine(cfg, KEY).ask(asks, 0.0, lambda ask, reply: rows.append(reply))
    asked = len(running.seen)
    assert asked == {"again": 3, "alone": 2, "all": 1, "read": 2}[said.ends]
    assert (outcome.stopped is not None) == (said.ends == "all")
    usable = [row for row in rows if isinstance(row, Reply)]
    if said.ends == "read":
        assert not outcome.failed
        assert [row.top_logprobs[0] for row in usable] == [("m", -0.2)] * 2
        return
    (reason,) = outcome.failed.values()
    assert said.cause in reason
    assert said.remedy in reason
    assert KEY not in reason
    assert "\n" not in reason
    assert len(reason) < 320
    good = 0 if said.ends == "all" else 1
    times = asked - good if said.paid else 0
    assert (len(usable), len(rows)) == (good, good + times)
    assert math.fsum(row.price for row in rows) == pytest.approx((good + times) * PRICE)


def test_the_table_is_as_long_as_servers_are_many() -> None:
    assert len(ANSWERS) >= 60
