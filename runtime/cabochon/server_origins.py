"""Keeps the pages of other sites, which a browser shows on the same machine, from using the server.

Any page may send a form to 127.0.0.1 without asking, and under a name that its owner points there it could read the
answer as well (DNS rebinding). A browser tells on both, in the headers Origin and Host, which no page can choose.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from cabochon.addresses import is_loopback
from cabochon.server_limits import refusal

_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(?P<name>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")


class OwnOrigins:
    """Refuses with status 403 what is addressed to another name, or comes from the page of another site."""

    def __init__(self, app: ASGIApp, host: str, names: Iterable[str] = ()) -> None:
        """Args: host: listened at; names: further ones under which the server may be addressed."""
        self._app = app
        self._names = {_plain(name) for name in (host, "localhost", *names)}
        # Nobody can point an address elsewhere, so that a server for other machines answers to each of its own.
        self._any_address = not is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See https://asgi.readthedocs.io/en/latest/specs/www.html."""
        if scope["type"] == "http" and (sentence := self._objection(scope["headers"])):
            await refusal(403, sentence)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _objection(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """What is wrong with them, or nothing."""
        headers = list(headers)
        hosts, origins = (
            [value.decode("latin-1") for name, value in headers if name == wanted] for wanted in (b"host", b"origin")
        )
        host = _AUTHORITY.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return "the request does not say which server it is for: expected one header Host, a name and a port."
        name = _plain(host["name"])
        if not self._answers_to(name):
            return (
                f"the request is addressed to {name!r}, to which this server does not answer: "
                f"if that is its name, start it with --allow-host {name}."
            )
        own = {(scheme, name, int(host["port"] or port)) for scheme, port in _PORTS.items()}
        for origin in origins:
            if _parts(origin) not in own:
                return f"the request comes from a page of {origin[:100]!r}, expected one of this server."
        return ""

    def _answers_to(self, name: str) -> bool:
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return address.is_loopback or self._any_address or name in self._names


def _plain(name: str) -> str:
    return name.strip("[]").rstrip(".").lower()


def _parts(origin: str) -> tuple[str, str, int] | None:
    """Scheme, name and port of an origin as browsers write it; None of `null` and what else is none."""
    scheme, _, authority = origin.partition("://")
    given = _AUTHORITY.fullmatch(authority)
    if given is None or scheme not in _PORTS:
        return None
    return scheme, _plain(given["name"]), int(given["port"] or _PORTS[scheme])
