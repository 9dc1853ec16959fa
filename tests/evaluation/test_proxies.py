"""Proxies and certificates of the environment: which is used, and what is said of one that cannot be."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.http import client_settings, connection_hint
from alphapo_cli.evaluation.judges.proxies import proxy_of

FAR = "http://far.example.org:8000/v1"
NEAR = ("http://127.0.0.1:1/v1", "http://[::1]:1/v1", "http://LOCALHOST:1/v1", "http://localhost.:1/v1", "http://0.0.0.0:1/v1",
        "http://127.1:1/v1", "http://[::ffff:127.0.0.1]:1/v1", "http://judge.localhost:1/v1")  # fmt: skip


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("SSL_CERT")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("url", NEAR)
def test_this_machine_in_any_spelling_needs_no_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "garbage::")
    assert client_settings(url)["proxy"] is None


@pytest.mark.parametrize(
    "value", ["garbage::", "ftp://x:1", "http://[::1", "http://x:99999", "http://", "http://a b:1"]
)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_what_is_no_proxy_is_named_with_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as found:
        client_settings(FAR)
    assert str(found.value).startswith(f"{name}={value}: not a proxy's address; write {name}=http://HOST:PORT")


@pytest.mark.parametrize(
    "value", ["SOCKS5://u:secret@p:1", "socks5h://u:secret@p:1", "socks4://u:secret@p:1", "ftp://u:secret@p:1"]
)
def test_no_password_is_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(UsageError, match=r"^ALL_PROXY=\w+://\.\.\.@p:1: ") as found:
        client_settings(FAR)
    assert "secret" not in str(found.value)


def test_a_variable_that_is_not_needed_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "garbage::")
    monkeypatch.setenv("ALL_PROXY", "socks4://p:1")
    monkeypatch.setenv("HTTP_PROXY", "p:3128")
    assert str(client_settings(FAR)["proxy"].url) == "http://p:3128"
    monkeypatch.setenv("http_proxy", "")  # the small spelling counts
    monkeypatch.delenv("ALL_PROXY")
    assert client_settings(FAR)["proxy"] is None


@pytest.mark.parametrize(
    ("url", "listed", "excepted"),
    [
        (FAR, "*", True), (FAR, "example.org", True), (FAR, " a , .example.org", True), (FAR, "*.example.org", True),
        (FAR, "EXAMPLE.org:8000", True), (FAR, "example.org:80", False), (FAR, "http://far.example.org", True),
        (FAR, "ample.org", False), (FAR, "http://[bad,[::1]:80,example.org/8,::", False), (FAR, "", False),
        ("http://10.1.2.3/v1", "10.0.0.0/8", True), ("http://11.1.2.3/v1", "10.0.0.0/8,x/y", False),
        ("http://10.1.2.3/v1", "10.1.2.3:80", True), ("http://110.1.2.3/v1", "10.1.2.3", False),
        ("http://[fd00::5]:9/v1", "[fd00:0::5]:9", True), ("http://[fd00::5]/v1", "fd00::/16", True),
    ],
)  # fmt: skip
def test_exceptions(url: str, listed: str, excepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://p:3128")
    monkeypatch.setenv("NO_PROXY", listed)
    assert (proxy_of(url) is None) == excepted


class TestCertificates:
    def test_a_file_without_any_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("nothing of the kind")
        for value in (file, tmp_path):
            monkeypatch.setenv("SSL_CERT_FILE", str(value))
            with pytest.raises(UsageError, match=rf"^SSL_CERT_FILE={value}: holds no certificates that can be read"):
                client_settings("https://far.example.org/v1")

    def test_the_hint_does_not_ask_for_what_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", "/my/ca.pem")
        said = connection_hint("https://far.example.org/v1", OSError("[SSL: CERTIFICATE_VERIFY_FAILED] unable"))
        assert "read from SSL_CERT_FILE=/my/ca.pem" in said


def test_a_proxy_that_speaks_http_is_told_from_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "https://p:3128")
    said = connection_hint("https://far.example.org/v1", OSError("[SSL: WRONG_VERSION_NUMBER] wrong version number"))
    assert "HTTPS_PROXY=https://p:3128 seems to speak http: write http:// in HTTPS_PROXY" in said


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that answers every connection by closing it, as one of TLS does to plain HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_one() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=close_one, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        thread.join()


def test_http_to_a_server_that_speaks_https(mute: str) -> None:
    with pytest.raises(httpx.HTTPError) as found:
        httpx.get(mute, **client_settings(mute))
    assert "write https:// in judge.base_url" in connection_hint(mute, found.value)
