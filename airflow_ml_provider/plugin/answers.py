"""
How an answer leaves: pages with a policy that lets nothing run but the one script of ours, pictures as bytes, redirections.

Whatever is written into a page goes through :func:`plain` and Jinja's escaping, so that no template can forget it.
"""

from __future__ import annotations

import math
import pathlib
import secrets
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from airflow_ml_provider.plugin.steps import COLOURS

PRIVATE = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NO_SCRIPT = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""Policy of bytes that somebody else has made."""
_LINES = frozenset("\n\t")
_SIZES = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))
_EXACT = 1e15
_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60


def plain(value: Any) -> Any:
    """
    Write letters that would not be seen, or would turn others around, as their number.

    :param value: Anything that a template writes.
    :return: The same for what is no text, and for what a template has made itself.
    """
    if isinstance(value, Markup) or not isinstance(value, str) or value.isprintable():
        return value
    return "".join(each if each in _LINES or not _unseen(each) else f"\\u{ord(each):04x}" for each in value)


def _unseen(letter: str) -> bool:
    return unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def cut(value: str, length: int) -> str:
    """
    Cut a text.

    :param value: Any text.
    :param length: Characters at most.
    :return: The text, with an ellipsis where something is missing.
    """
    return value if len(value) <= length else f"{value[: length - 1]}…"


def size(count: int | None) -> str:
    """
    Write a number of bytes.

    :param count: Bytes; None when unknown.
    :return: For people.
    """
    if count is None:
        return ""
    return next((f"{count / unit:.1f} {word}" for unit, word in _SIZES if count >= unit), f"{count} B")


def number(value: float) -> str:
    """
    Write a number.

    :param value: Any number, also none.
    :return: Whole ones whole, others with six digits; ``nan`` and ``inf`` for what is none.
    """
    if math.isfinite(value) and value == int(value) and abs(value) < _EXACT:
        return f"{value:,.0f}"
    return f"{value:.6g}"


def duration(start: datetime | None, end: datetime | None) -> str:
    """
    Write how long something took.

    :param start: When it began.
    :param end: When it ended.
    :return: For people; empty where one of them is not known.
    """
    if start is None or end is None:
        return ""
    seconds = max((end - start).total_seconds(), 0.0)
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min {seconds % _MINUTE:.0f} s"
    days, rest = divmod(seconds, _DAY)
    return (f"{days:.0f} d " if days else "") + f"{rest // _HOUR:.0f} h {rest % _HOUR // _MINUTE:.0f} min"


def at(when: datetime | None) -> str:
    """
    Write a time.

    :param when: In UTC.
    :return: To the second; empty for none.
    """
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when else ""


def page(name: str, values: Mapping[str, Any], status: int = 200) -> Response:
    """
    Make a page.

    :param name: Name of its template.
    :param values: What the template shows.
    :param status: HTTP status.
    :return: The answer.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    text = _templates.get_template(f"{name}.html.jinja2").render({"part": False} | dict(values), nonce=nonce)
    return HTMLResponse(text, status, headers=PRIVATE | {"Content-Security-Policy": policy})


def picture(found: bytes, kind: str) -> Response:
    """
    Hand out a picture, as a picture and nothing else.

    :param found: Its bytes.
    :param kind: Its media type, told by its bytes.
    :return: The answer.
    """
    named = {"Content-Security-Policy": NO_SCRIPT, "Content-Disposition": 'inline; filename="picture"'}
    return Response(found, media_type=kind, headers=PRIVATE | named)


def redirect(address: str) -> Response:
    """
    Lead elsewhere.

    :param address: Where to; never from the request.
    :return: The answer.
    """
    return RedirectResponse(address, headers=PRIVATE)


_templates = Environment(
    loader=FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    auto_reload=False,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=plain,
)
_templates.filters |= {"cut": cut, "size": size, "number": number, "at": at}
_templates.globals |= {"duration": duration, "colour": lambda word: COLOURS.get(word.lower(), "plain")}
