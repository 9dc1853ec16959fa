"""A real HTTP server on loopback that behaves as badly as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What to send. text, raw: instead of a body; wait: seconds before anything is sent; drop: close without an answer."""

    status: int = 200
    body: Any = None
    text: str | None = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drop: bool = False


def judged(m: float = -0.2, capital: float = -1.8, **more: Any) -> Answer:
    """A good chat completion: log-probs of m and M, 100 tokens in and one out."""
    top = [{"token": "m", "logprob": m, "bytes": None}, {"token": "M", "logprob": capital, "bytes": None}]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "m"},
        "logprobs": {"content": [{"token": "m", "logprob": m, "top_logprobs": top}]},
        "finish_reason": "length",
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    return Answer(body={"choices": [choice], "usage": usage, **more})


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    return Answer(status, {"error": {"message": message, **more}}, headers=headers or {})


@dataclass
class Server:
    """Where it listens, and every judging request it has seen: (time, authorization header, body)."""

    url: str
    httpd: ThreadingHTTPServer
    seen: list[tuple[float, str | None, dict[str, Any]]] = field(default_factory=list)

    def questions(self) -> list[str]:
        """The user's message of each request."""
        return [body["messages"][-1]["content"] for _, _, body in self.seen]

    def die(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


@contextmanager
def serve(behaviour: Callable[[int, dict[str, Any]], Answer], port: int = 0) -> Iterator[Server]:
    """`behaviour` gets the number of the judging request (from 0) and its body."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = (
            True  # headers and body are two writes: the second waited 40 ms for an acknowledgement
        )

        def do_GET(self) -> None:
            self._send(Answer(body={"data": [{"id": "a-judge"}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.seen)
                server.seen.append((time.monotonic(), self.headers.get("Authorization"), body))
            self._send(behaviour(number, body))

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.wait)
            if answer.drop:
                self.close_connection = True
                return
            text = json.dumps(answer.body) if answer.text is None else answer.text
            content = text.encode() if answer.raw is None else answer.raw
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client has given up waiting
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args: Any) -> None:
            pass

    httpd = Quiet(("127.0.0.1", port), Handler)
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/v1", httpd)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.die()
        thread.join()
