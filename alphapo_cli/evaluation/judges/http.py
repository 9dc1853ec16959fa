"""How an endpoint is reached: proxies and certificates of the environment, and what their errors mean.

Both are read from variables that users set long ago for something else. A proxy is not used for this machine, a
certificate file does not matter without TLS, and whatever fails is named with its variable.
"""

from __future__ import annotations

import os
import ssl
from typing import Any
from urllib.parse import urlsplit

import httpx

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.proxies import proxy_of, usable

_FILE, _FOLDER = "SSL_CERT_FILE", "SSL_CERT_DIR"


def client_settings(url: str) -> dict[str, Any]:
    """Settings of an httpx client for `url`.

    Returns:
        Keyword arguments: `trust_env` (always false: proxies and certificates are those found here), `proxy`, `verify`.

    Raises:
        UsageError: a variable of the environment names a proxy or certificates that cannot be used.
    """
    proxy = proxy_of(url)
    used = {"trust_env": False, "proxy": None if proxy is None else usable(proxy)}
    # Without TLS no certificates are loaded.
    return {**used, "verify": False if urlsplit(url).scheme == "http" else _certificates()}


def _certificates() -> ssl.SSLContext:
    given = {name: value for name in (_FILE, _FOLDER) if (value := os.environ.get(name))}
    for name, value in given.items():
        if not os.path.exists(value):
            raise UsageError(f"{name}={value}: no such file; certificates are read there (unset it, or correct it)")
    try:
        context = ssl.create_default_context()
        if _FILE in given:  # the line above passes over a file that it cannot read
            context.load_verify_locations(given[_FILE])
    except (OSError, ssl.SSLError) as error:
        name = next(iter(given), "certificates")
        what = f"{name}={given[name]}" if name in given else name
        raise UsageError(
            f"{what}: holds no certificates that can be read ({error}); unset it, or correct it"
        ) from error
    if not given:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def connection_hint(url: str, error: Exception) -> str:
    """What to do about an error of the connection to `url`, to be put behind its message; empty where nothing is known."""
    text, proxy = str(error), proxy_of(url)
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
        if proxy is not None and proxy.url.lower().startswith("https://"):  # the first that TLS is spoken to
            return f"; the proxy {proxy.shown} seems to speak http: write http:// in {proxy.variable}"
        return "; the server seems to speak http: write http:// in judge.base_url"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        given = next((f"{name}={os.environ[name]}" for name in (_FILE, _FOLDER) if os.environ.get(name)), None)
        if given is not None:
            return f"; certificates are read from {given}: the server's, or its issuer's, is not among them"
        return "; if its certificate is your own, set SSL_CERT_FILE to the file that holds it"
    if proxy is not None:
        return f"; the way goes through the proxy {proxy.shown}"
    if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) and urlsplit(url).scheme == "http":
        return "; the server did not answer in HTTP: if it speaks https, write https:// in judge.base_url"
    return ""
