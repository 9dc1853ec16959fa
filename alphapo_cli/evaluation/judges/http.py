"""How an endpoint is reached: proxies and certificates of the environment, and what their errors mean.

httpx reads both from variables that users set long ago for something else. A proxy is not used for this machine, a
certificate file does not matter without TLS, and whatever fails is named with its variable.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from alphapo_cli.errors import UsageError

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def client_settings(url: str) -> dict[str, Any]:
    """Settings of an httpx client for `url`.

    Returns:
        Keyword arguments: `trust_env`, `verify`.

    Raises:
        UsageError: a variable of the environment names a proxy or certificates that cannot be used.
    """
    parts = urlsplit(url)
    proxied = not is_loopback(parts.hostname or "")
    if proxied:
        _check_proxy(url)
    if parts.scheme == "http":
        return {"trust_env": proxied, "verify": False}  # there is no TLS, so no certificates are loaded
    for name in _CERTIFICATES:
        value = os.environ.get(name)
        if value and not os.path.exists(value):
            raise UsageError(f"{name}={value}: no such file; certificates are read there (unset it, or correct it)")
    try:
        context = ssl.create_default_context()
    except (OSError, ssl.SSLError) as error:
        named = next((f"{name}={os.environ[name]}" for name in _CERTIFICATES if os.environ.get(name)), "certificates")
        raise UsageError(f"{named}: cannot be read ({error})") from error
    if not any(os.environ.get(name) for name in _CERTIFICATES):
        import certifi

        context.load_verify_locations(certifi.where())
    return {"trust_env": proxied, "verify": context}


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_of(url: str) -> tuple[str, str] | None:
    """(variable, proxy without its password) that the environment names for `url`; None where there is none."""
    parts = urlsplit(url)
    if is_loopback(parts.hostname or "") or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for spelt in (name, name.upper()):
            if os.environ.get(spelt):
                return spelt, _without_password(os.environ[spelt])
    return None


def _without_password(proxy: str) -> str:
    before, at, host = proxy.rpartition("@")
    return f"{before.partition('://')[0]}://...@{host}" if at and "://" in before else host if at else proxy


def _check_proxy(url: str) -> None:
    found = proxy_of(url)
    if found is not None and found[1].startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UsageError(
            f"{found[0]}={found[1]}: a SOCKS proxy needs the package socksio: type pip install 'httpx[socks]', or unset {found[0]}"
        )


def connection_hint(url: str, error: Exception) -> str:
    """What to do about an error of the connection to `url`, to be put behind its message; empty where nothing is known."""
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
        return "; the server seems to speak http: write http:// in judge.base_url"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "; if its certificate is your own, set SSL_CERT_FILE to the file that holds it"
    proxy = proxy_of(url)
    if proxy is not None:
        return f"; the way goes through the proxy {proxy[0]}={proxy[1]}"
    return ""
