"""Which proxy the environment names for an address, decided here and not by the HTTP library.

httpx sets up every proxy that any variable names, and fails at one that the address does not even need. Here only the
variable that counts is read: the scheme's own, or else ALL_PROXY, unless NO_PROXY has the host.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from alphapo_cli.errors import UsageError

_SCHEMES = ("http", "https", "socks5", "socks5h")
_ENTRY = re.compile(
    r"(?:\w+://)?(?:\*?\.)?(?P<host>\[[^\]]*\]|[^\[\]:]*|[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*)(?::(?P<port>\d+))?"
)


@dataclass(frozen=True)
class EnvironmentProxy:
    """A proxy of the environment. `variable`: its name; `url`: with its password; `shown`: without."""

    variable: str
    url: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The variable and its value, without a password."""
        before, at, host = self.url.rpartition("@")
        scheme = f"{before.partition('://')[0]}://...@" if "://" in before else ""
        return f"{self.variable}={scheme}{host}" if at else f"{self.variable}={self.url}"


def proxy_of(url: str) -> EnvironmentProxy | None:
    """Find the proxy for an address.

    Args:
        url: of the endpoint.

    Returns:
        What the environment names; None where that is nothing, or the host is this machine or in NO_PROXY.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or _excepted(host, parts.port or {"http": 80, "https": 443}.get(parts.scheme)):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        # Of two spellings the small one counts, even where it is empty, as for curl and Python.
        spelt = name if name in os.environ else name.upper()
        value = os.environ.get(spelt, "").strip()
        if value:
            return EnvironmentProxy(spelt, value)
    return None


def usable(proxy: EnvironmentProxy) -> httpx.Proxy:
    """The proxy as httpx takes it.

    Args:
        proxy: of the environment; without a scheme, http.

    Returns:
        The proxy.

    Raises:
        UsageError: it is no proxy's address, or one of a kind that is not supported here.
    """
    name, value = proxy.variable, proxy.url if "://" in proxy.url else f"http://{proxy.url}"
    scheme, _, rest = value.partition("://")
    scheme = scheme.lower()
    what = f"{name}={proxy.shown.partition('=')[2]}"
    if scheme in ("socks4", "socks4a", "socks"):
        raise UsageError(
            f"{what}: only socks5:// and socks5h:// are supported of SOCKS proxies; correct or unset {name}"
        )
    try:
        address = urlsplit(f"{scheme}://{rest}")
        made = httpx.Proxy(f"{scheme}://{rest}") if scheme in _SCHEMES else None
        good = bool(address.hostname) and (address.port or 1) > 0 and not re.search(r"\s", rest)
    except (ValueError, httpx.InvalidURL):
        made, good = None, False
    if made is None or not good:
        raise UsageError(f"{what}: not a proxy's address; write {name}=http://HOST:PORT, or unset it")
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UsageError(
            f"{what}: a SOCKS proxy needs the package socksio: type pip install 'httpx[socks]', or unset {name}"
        )
    return made


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, in any spelling that a connection takes."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and (
        address.is_loopback or address.is_unspecified
    )  # 0.0.0.0 is connected to as this one


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:  # 127.1 and 0x7f000001
        return ipaddress.IPv4Address(socket.inet_aton(host)) if re.fullmatch(r"[0-9a-fx.]+", host) else None
    except OSError:
        return None


def _excepted(host: str, port: int | None) -> bool:
    """Whether NO_PROXY has the host: by name, the end of a name, an address, a network (10.0.0.0/8), with a port or not."""
    listed = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    return any(_fits(entry, host.lower(), port) for entry in re.split(r"[,\s]+", listed.lower()) if entry)


def _fits(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry and "://" not in entry:
        try:
            return address is not None and address in ipaddress.ip_network(
                entry.replace("[", "").replace("]", ""), strict=False
            )
        except ValueError:
            return False
    found = _ENTRY.fullmatch(entry)
    if found is None or not found["host"] or (found["port"] and int(found["port"]) != port):
        return False
    name = found["host"].strip("[]")
    if address is not None or _address(name) is not None:
        return address is not None and address == _address(name)
    return host == name or host.endswith(f".{name}")
