"""The page that the HTTP server shows in a browser: one file, which asks nobody but that server.

Its headers allow only the script and the style that are in it. `web_page.html` is whole but for its settings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files

from cabochon.languages import LANGUAGE_NAMES

_SETTINGS = '<script type="application/json" id="settings">{}</script>'


@dataclass(frozen=True, slots=True)
class WebPage:
    """What GET / answers."""

    content: str
    headers: dict[str, str]


def make_web_page(name: str, max_bytes: int) -> WebPage:
    """The page of a server.

    Args:
        name: of the model.
        max_bytes: of a request.
    """
    template = files("cabochon").joinpath("web_page.html").read_text(encoding="utf-8")
    languages = {language: code for code, language in LANGUAGE_NAMES.items()}
    settings = {
        "name": name,
        "maxBytes": max_bytes,
        "languages": [[languages[language], language] for language in sorted(languages)],
    }
    # A name may not end the script.
    told = json.dumps(settings, ensure_ascii=False).replace("<", "\\u003c")
    content = template.replace(_SETTINGS, _SETTINGS.replace("{}", told))
    return WebPage(content, _headers(_hash(template, "script"), _hash(template, "style")))


def _hash(template: str, element: str) -> str:
    """See https://www.w3.org/TR/CSP3/#grammardef-hash-source."""
    found = re.search(f"<{element}>(.*?)</{element}>", template, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


def _headers(script: str, style: str) -> dict[str, str]:
    policy = (
        "default-src 'none'",
        # An AudioWorklet has to come from an address: the page makes one of a text that it holds.
        f"script-src {script} blob:",
        f"style-src {style}",
        "img-src data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
