"""
Text of strangers, made fit for a message: cleaned, kept from turning the line round, and cut where a reader would cut it.

Nothing here knows Slack's markup or HTML: whoever renders escapes, and says what a character costs once it is escaped.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

MORE = "…"
"""Stands where something was cut off."""
MARKS = 8
"""Combining marks that a character may carry; what stacks more of them writes over its neighbours."""
CLUSTER = 100
"""Characters that one grapheme is believed to have at most; a longer one is noise and may be split."""
LINE = 400
"""Characters of one line of a log that are shown."""
LONGEST = 10_000
"""Characters of what is one line that are looked at; far more than any message shows."""
URL = 3000
"""Characters that Slack takes of an address."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

FSI, PDI = "\u2068", "\u2069"
"""First strong isolate, and the end of it."""
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_BREAKS = re.compile("\r\n|[\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_DROPPED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_SENTENCE = re.compile(r"(?<=[^.\s][.!?])\s+(?=[^\sa-z])|\n")
_ZWJ = "\u200d"
_SPACING = "\u200c\u200d\u0e33\u0eb3"
"""Joiners, and the vowel signs of Thai and Lao that count as letters and yet belong to the one before."""
_BEFORE = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2"
"""Signs of Arabic and Syriac that belong to what comes after them."""

Cost = Callable[[str], int]
"""What a text costs of a limit; the cost of a text is the sum of the costs of its characters."""


def clean(text: str) -> str:
    """
    Take out what a message must not carry: colours of a terminal, control characters, bidirectional overrides.

    Halves of surrogate pairs are joined, or become U+FFFD, so that the result can always be written as UTF-8.

    :param text: Any text, of any number of lines.
    :return: The same with a line feed as the only line break, without blank space at its end.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _DROPPED.sub("", _BREAKS.sub("\n", _ANSI.sub("", text)))
    return (text if text.isascii() else _fewer_marks(text)).rstrip()


def one_line(text: str) -> str:
    """
    Clean a text and bring it into one line.

    :param text: Any text.
    :return: Its words, one space between them; of more than 10,000 characters, the first.
    """
    return " ".join(clean(text[:LONGEST]).split())


def isolate(text: str) -> str:
    """
    Keep a text that runs from right to left from turning round what stands beside it.

    :param text: One line, cleaned.
    :return: The text between U+2068 and U+2069 if it has a letter of a right-to-left script, else as it is, so that what
        is copied from a message is what it was.
    """
    turns = any(unicodedata.bidirectional(each) in ("R", "AL", "AN") for each in text)
    return f"{FSI}{text}{PDI}" if turns else text


def utf16(text: str) -> int:
    """
    Count as JavaScript counts, the strictest of those who may do the counting: an emoji is two.

    :param text: Any text without lone surrogates.
    :return: How many UTF-16 code units.
    """
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def cut(text: str, limit: int, cost: Cost = utf16) -> str:
    """
    Cut the end off a text that is too long; no grapheme is split.

    :param text: A cleaned text.
    :param limit: Cost that it may have.
    :param cost: What a text costs.
    :return: The text if it fits, else its beginning and an ellipsis.
    """
    if len(text) <= limit and cost(text) <= limit:
        return text
    end = boundary(text, _fitting(text, limit - cost(MORE), cost))
    return text[:end].rstrip() + MORE if limit >= cost(MORE) else ""


def boundary(text: str, index: int) -> int:
    """
    Find the last place at or before an index where a text may be cut.

    The rules are those of Unicode's extended grapheme clusters as far as they matter here: combining marks, joined emoji,
    flags, skin tones, Hangul syllables and Indic conjuncts stay whole.

    :param text: A text.
    :param index: From 0 to the length of the text.
    :return: An index between two graphemes; the given one inside of a grapheme of more than 100 characters.
    """
    for place in range(index, max(index - CLUSTER, 0), -1):
        if not _joined(text, place):
            return place
    return 0 if index <= CLUSTER else index


def excerpt(text: str, limit: int, cost: Cost = utf16) -> str:
    """
    Shorten a traceback or a log to its first line and its end, which says why.

    :param text: As long as it is.
    :param limit: Cost that the excerpt may have, at least 200.
    :param cost: What a text costs.
    :return: The whole text if it fits; else with a line in the middle that says how many lines are left out.
    """
    lines = [_short_line(each) for each in clean(_ends(text)).strip("\n").split("\n")]
    if cost("\n".join(lines)) <= limit:
        return "\n".join(lines)
    first = cut(lines[0], limit // 4, cost)
    left = limit - cost(first) - cost(_left_out(len(text))) - 2 * cost("\n")
    kept: list[str] = []
    for line in reversed(lines[1:]):
        left -= cost(line) + cost("\n")
        if left < 0:
            break
        kept.insert(0, line)
    if not kept:
        left = limit - cost(first) - cost(_left_out(len(text))) - 2 * cost("\n")
        kept = [cut(lines[-1], left, cost)] if len(lines) > 1 else []
    # Counted in the text as it was: the middle of a very long one was never looked at.
    missing = max(text.count("\n") + 1 - len(kept) - 1, 1)
    return "\n".join([first, _left_out(missing), *kept])


def first_sentence(text: str) -> tuple[str, str]:
    """
    Split a reason into what fits a title and what comes after it.

    :param text: One paragraph, cleaned.
    :return: The first sentence without its full stop, and the rest; both may be empty.
    """
    first, *rest = _SENTENCE.split(text.strip(), maxsplit=1)
    return first.strip().removesuffix("."), "".join(rest).strip()


def moment(at: datetime) -> str:
    """
    Write a time as people do, in UTC.

    :param at: A time; one without a zone is taken as UTC.
    :return: ``21 Nov 2026 02:41 UTC``.
    """
    at = in_utc(at)
    return f"{at.day} {MONTHS[at.month - 1]} {at.year} {at:%H:%M} UTC"


def in_utc(at: datetime) -> datetime:
    """
    Bring a time to UTC.

    :param at: A time; one without a zone is taken as UTC.
    :return: The same moment; at the two ends of the calendar, where there is none, the time as it stands.
    """
    try:
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except OverflowError:
        return at.replace(tzinfo=UTC)


def span(seconds: float) -> str:
    """
    Write how long something took, in its two largest units.

    :param seconds: How many; less than nothing, and what is no number, is not known.
    :return: ``2 h 5 min``, ``41 min 12 s``, ``0.4 s``; empty when it is not known.
    """
    if not math.isfinite(seconds) or seconds < 0:
        return ""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    units = (("day", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    left, parts = round(seconds), []
    for name, size in units:
        count, left = divmod(left, size)
        parts.append(f"{count} {name}{'s' if name == 'day' and count != 1 else ''}" if count else "")
    start = next(index for index, part in enumerate(parts) if part)
    return " ".join(part for part in parts[start : start + 2] if part)


def number(value: float) -> str:
    """
    Write a metric's value.

    :param value: Any number.
    :return: Four digits of it: ``0.7512``, ``15,234``, ``1.2e-9``.
    """
    if 10_000 <= abs(value) < 10_000_000:  # noqa: PLR2004
        return f"{value:,.0f}"
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.4g}")


def counted(count: int, noun: str) -> str:
    """
    Write how many there are of something.

    :param count: How many.
    :param noun: What, in the singular.
    :return: ``1 task``, ``1,200 tasks``.
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def web_address(url: str) -> str:
    """
    Give an address that may stand in a link.

    One that is too long cannot be cut, and one of another scheme (``javascript:``) is not wanted: both are left out.

    :param url: Anything.
    :return: The address, ASCII, at most 3,000 characters; empty when it is none.
    """
    if len(url) > LONGEST:
        return ""
    try:
        cleaned = clean(url).strip()
        parts = urlsplit(cleaned)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return ""
    address = quote(cleaned, safe="%/:?#[]@!$&'()*+,;=~-._")
    return address if known and len(address) <= URL else ""


def _fewer_marks(text: str) -> str:
    kept, run = [], 0
    for each in text:
        run = run + 1 if unicodedata.category(each)[0] == "M" else 0
        if run <= MARKS:
            kept.append(each)
    return "".join(kept)


def _fitting(text: str, limit: int, cost: Cost) -> int:
    """How many characters at the beginning of a text cost no more than a limit."""
    used = 0
    for index, character in enumerate(text):
        used += cost(character)
        if used > limit:
            return index
    return len(text)


def _joined(text: str, place: int) -> bool:
    """Whether the characters before and after a place belong to one grapheme."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(after)[0] == "M" or after in _SPACING or "\U0001f3fb" <= after <= "\U0001f3ff":
        return True
    if "\U000e0020" <= after <= "\U000e007f" or before == _ZWJ or before in _BEFORE:
        return True
    if _is_flag(before) and _is_flag(after):
        start = place
        while start and _is_flag(text[start - 1]):
            start -= 1
        return (place - start) % 2 == 1
    conjunct = unicodedata.combining(before) == 9 and unicodedata.category(after) == "Lo"  # noqa: PLR2004  (a virama)
    return conjunct or (_is_jamo(before) and _is_jamo_tail(after))


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_jamo(character: str) -> bool:
    return "\u1100" <= character <= "\u11ff" or "\uac00" <= character <= "\ud7fb"


def _is_jamo_tail(character: str) -> bool:
    return "\u1160" <= character <= "\u11ff" or "\ud7b0" <= character <= "\ud7fb"


def _ends(text: str) -> str:
    """Drop the middle of what is far longer than anything that is shown, before the slow work begins."""
    head, tail = 10_000, 40_000
    return text if len(text) <= head + tail else f"{text[:head]}\n{text[-tail:]}"


def _short_line(line: str) -> str:
    """Cut the middle out of a very long line: an error's text starts with what matters, and may end with it."""
    if len(line) <= LINE:
        return line
    start = len(line) - LINE // 4
    while start < len(line) and _joined(line, start):
        start += 1
    return line[: boundary(line, LINE * 3 // 4)] + f" {MORE} " + line[start:]


def _left_out(lines: int) -> str:
    return f"{MORE} {counted(lines, 'line')} left out {MORE}"
