"""
Each line of a container's log once and in order, out of readings that overlap. Pure: bytes in, lines and a cursor out.

Kubernetes puts a time of nanoseconds before each line, but takes only whole seconds to read from, so a reading repeats lines. A
reading from one second on holds the same lines in the same order each time, and more at its end: so the cursor is a second and
the number of lines from there on that are done. It stays a tenth of a second behind the newest line, because
standard output and standard error are written by two threads, and their lines may be out of order by that much.

A second that is larger than a reading may be cannot be asked for from its middle: it is read piece by piece (``stuck``), what is
done of it is passed over, and the connection is closed once there is enough that is new.

What can be lost is said in the log itself: lines of a file that the kubelet has rotated away (a reading has only the newest
file). A node's clock that is set back hides lines until it has caught up.

**Bound**: a reading is at most ``limit_bytes``: 256 KiB, doubled while readings bring little that is new, never more than 4 MiB.
Its new lines are held as text beside it, and nothing else; piece by piece it is these alone, 4 MiB of them at most.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

LIMIT_BYTES = 256 * 1024
CAP_BYTES = 4 * 1024 * 1024
TAIL_LINES = 200
"""Lines from the end when the rest had to be skipped; the runtime cuts lines at 16 KiB, so they fit below the cap."""
LOUD_BYTES = 64 * 1024
"""Bytes that are not read again and again only to see that there is nothing new."""
LINE_LETTERS = 16 * 1024
"""Letters of a line that are kept."""
STRANGE_LINES = 20
"""Lines without a time that are kept: a kubelet that cannot find a log says so in the answer itself."""
MARK_BYTES = 512
STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")


@dataclass(frozen=True)
class LogCursor:
    """
    How far a container's log has been read; plain values, so that it survives a handover.

    :param since: Whole second that the next reading begins at, UTC; empty for the log's start.
    :param taken: Number of lines from ``since`` on that are done.
    :param first: Mark of the first of them: another line there means that the file was rotated.
    :param last: Mark of the newest that is done.
    :param newest: Latest time of a line that is done.
    :param limit_bytes: Bytes that the next reading may have.
    :param behind: There is more to be read at once.
    :param stuck: The next reading comes piece by piece, without a limit: what is done of its first second fills a whole one.
    :param tail: The next reading is the log's end: what lies between could not be read.
    :param probe: The next reading is the log's end too, to see at little cost whether a log that was loud and is quiet now has
        gone on; not written down.
    """

    since: str = ""
    taken: int = 0
    first: str = ""
    last: str = ""
    newest: str = ""
    limit_bytes: int = LIMIT_BYTES
    behind: bool = False
    stuck: bool = False
    tail: bool = False
    probe: bool = False

    @classmethod
    def from_json(cls, stored: object) -> Self:
        """
        Read it again.

        :param stored: What :meth:`to_json` gave; of anything else, and of a field of another release, the defaults are taken.
        :return: The cursor.
        """
        known = stored if isinstance(stored, dict) else {}
        start = cls()
        same = {name: known[name] for name, value in asdict(start).items() if type(known.get(name)) is type(value)}
        return replace(start, **same)

    def to_json(self) -> dict[str, Any]:
        """
        Write it down.

        :return: Plain JSON; nothing for the log's start.
        """
        start = asdict(LogCursor())
        return {name: value for name, value in asdict(self).items() if value != start[name] and name != "probe"}

    @property
    def since_time(self) -> str | None:
        """``sinceTime`` of the next request; None to leave it out."""
        return f"{self.since}Z" if self.since and self.tail_lines is None else None

    @property
    def tail_lines(self) -> int | None:
        """``tailLines`` of the next request; None, as nearly always, to leave it out."""
        return TAIL_LINES if self.tail or self.probe else None

    def take(self, raw: bytes, *, complete: bool = False) -> tuple[list[str], LogCursor]:
        """
        Take the lines of a reading that are new.

        :param raw: The answer to a request with ``timestamps``, :attr:`since_time`, :attr:`tail_lines` and :attr:`limit_bytes`.
        :param complete: The container had ended before the request was sent, so that a last line without an end is a whole one.
        :return: The new lines, and the cursor for the next request; read on at once while it is ``behind``.
        """
        full = len(raw) >= self.limit_bytes
        reading = LogReading(self)
        lines = reading.feed(raw)
        if self.probe and (full or not reading.found):
            return [], replace(self, probe=False, behind=True)
        lines += reading.end(complete=complete and not full)
        if not full:
            smaller = max(LIMIT_BYTES, self.limit_bytes // 2) if len(raw) < self.limit_bytes // 4 else self.limit_bytes
            quiet = self.tail or (not lines and (self.probe or len(raw) > LOUD_BYTES))
            return lines, replace(reading.cursor(), limit_bytes=smaller, behind=False, probe=quiet)
        if not lines and self.limit_bytes >= CAP_BYTES:
            return (reading.cut(), replace(self, behind=False)) if self.tail else ([], replace(self, stuck=True, behind=True))
        more = min(CAP_BYTES, self.limit_bytes * 2) if reading.new_bytes < self.limit_bytes // 2 else self.limit_bytes
        return lines, replace(reading.cursor(), limit_bytes=more, behind=True)

    def take_pieces(self, pieces: Iterable[bytes], *, complete: bool = False) -> tuple[list[str], LogCursor]:
        """
        Take the lines of a reading that are new, as many as one reading may hold; no more pieces are taken than that.

        :param pieces: The answer to a request without :attr:`limit_bytes`, cut anywhere.
        :param complete: As for :meth:`take`.
        :return: As :meth:`take`.
        """
        reading, lines, fed = LogReading(self), [], 0
        for piece in pieces:
            lines += reading.feed(piece)
            fed += len(piece)
            if reading.new_bytes >= CAP_BYTES:
                cursor = reading.cursor()
                return lines, replace(cursor, behind=True, stuck=cursor.since == self.since)
            if reading.searching and fed > CAP_BYTES:  # of a log that was rotated, all that is held back
                return [], replace(self, tail=True, stuck=False, behind=True)
        lines += reading.end(complete=complete)
        return lines, replace(reading.cursor(), behind=False, stuck=False, probe=not lines)


@dataclass
class LogReading:
    """
    One answer of Kubernetes, whole or piece by piece as it is written (``follow``).

    :param start: Cursor that the request was made with.
    :param new_bytes: Bytes of the lines that were new.
    :param found: The newest line that was done has been seen again, in a reading that had to look for it.
    """

    start: LogCursor
    new_bytes: int = 0
    found: bool = False
    _rest: bytes = b""
    _dropping: bool = False
    _out: list[str] = field(default_factory=list)
    _held: list[tuple[str, bytes]] = field(default_factory=list)  # not known yet whether they are done
    _strange: list[str] = field(default_factory=list)
    _index: int = -1
    _searching: bool = False
    _seconds: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # lines, first line's index and mark, per second
    _last: str = ""
    _newest: str = ""
    _since: str = ""

    def __post_init__(self) -> None:
        self._searching = self.start.tail_lines is not None and bool(self.start.last)

    @property
    def searching(self) -> bool:
        """Whether it still looks for the newest line that was done, and holds back what it meets."""
        return self._searching

    def feed(self, raw: bytes) -> list[str]:
        """
        Take in a piece.

        :param raw: Bytes, cut anywhere.
        :return: The new lines that have ended.
        """
        *lines, self._rest = (self._rest + raw).split(b"\n")
        for each in lines:
            if self._dropping:
                self._dropping = False
            else:
                self._take(each)
        if len(self._rest) > CAP_BYTES and not self._dropping:
            self._take(self._rest)
            self._dropping = True
        if self._dropping:
            self._rest = b""
        return self._given()

    def end(self, *, complete: bool = False) -> list[str]:
        """
        Take in that the answer has ended.

        :param complete: The log has ended too, so what is left is a line.
        :return: The new lines that were held back; an unfinished one stays in the log, for the next reading.
        """
        if complete and self._rest:
            self._take(self._rest)
            self._rest = b""
        if self._held and (complete or self._newest > self.start.newest):
            self._settle(found=False)
        if complete and self._index < 0 and not self.start.since:
            self._out += self._strange
        return self._given()

    def cut(self) -> list[str]:
        """
        Give out the beginning of a line that is longer than a reading may be.

        :return: The line, cut; nothing where it is not known to be a new one.
        """
        new = not self._searching and self._index + 1 >= self.start.taken
        found = STAMP.match(self._rest) if new else None
        return [_shown(self._rest[found.end() :]) + " [and more: the line has no end yet]"] if found else []

    def cursor(self) -> LogCursor:
        """
        Say how far the log has been read.

        :return: The cursor for the next request, as good at any moment of the reading.
        """
        seconds = {second: each for second, each in self._seconds.items() if second >= self._since}
        done = sum(count for count, _, _ in seconds.values())
        if not seconds or self._held or (not self._searching and self._index + 1 < self.start.taken):
            return self.start
        first = min(seconds.values(), key=lambda each: each[1])[2]
        return replace(
            self.start, since=self._since, taken=done, first=first, last=self._last, newest=self._newest, tail=False, probe=False
        )

    def _given(self) -> list[str]:
        out, self._out = self._out, []
        return out

    def _take(self, line: bytes) -> None:
        found = STAMP.match(line)
        if found is None:
            self._take_strange(line)
            return
        stamp, body = _stamp(found), line[found.end() :]
        self._index += 1
        if self._index == 0 and self.start.taken and not self._searching:
            self._searching = _mark(stamp, body) != self.start.first
        self._count(stamp, body)
        if self._searching:
            self._search(stamp, body)
        elif self._index >= self.start.taken:
            self._give(body)

    def _take_strange(self, line: bytes) -> None:
        """Take a line without a time: at the start it is the rest of a long one whose beginning is older than the reading."""
        if self._index < 0:
            if line and len(self._strange) < STRANGE_LINES:
                self._strange.append(_shown(line))
        elif not self._searching and self._index >= self.start.taken:
            self._give(line)

    def _search(self, stamp: str, body: bytes) -> None:
        """Look for the newest line that is done: after it all is new; without it, what is later."""
        self._held.append((stamp, body))
        if _mark(stamp, body) == self.start.last:
            self._settle(found=True)
        elif stamp > self.start.newest:
            self._settle(found=False)

    def _settle(self, *, found: bool) -> None:
        self._searching, self.found = False, found
        self.start = replace(self.start, taken=0)
        if not found:
            between = f"between {self.start.newest}Z and {self._held[0][0]}Z"
            why = (
                f"Lines {between} were skipped: they are more than one reading may hold ({CAP_BYTES // 1024**2} MiB)."
                if self.start.tail
                else f"The log was rotated by Kubernetes: lines {between} may be missing."
            )
            self._out.append(f"[airflow-ml] {why}")
            for _, body in self._held:
                self._give(body)
        self._held = []

    def _give(self, body: bytes) -> None:
        self.new_bytes += len(body) + len("2020-01-01T00:00:00.000000000Z \n")
        self._out.append(_shown(body))

    def _count(self, stamp: str, body: bytes) -> None:
        second = stamp[:19]
        if stamp > self._newest:
            self._newest = stamp
            self._since = second if stamp[20] > "0" else _second_before(second)
            if len(self._seconds) > STRANGE_LINES:
                self._seconds = {each: value for each, value in self._seconds.items() if each >= self._since}
        count, index, mark = self._seconds.get(second, (0, self._index, ""))
        self._seconds[second] = (count + 1, index, mark or _mark(stamp, body))
        if second >= self._since:
            self._last = _mark(stamp, body)


def _stamp(found: re.Match[bytes]) -> str:
    """Write a line's time in UTC with nine digits, so that texts compare as times do."""
    second, fraction, zone = found[1].decode(), (found[2] or b"").decode().ljust(9, "0"), found[3].decode()
    if zone != "Z":
        try:
            second = datetime.fromisoformat(second + zone).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
        except (ValueError, OverflowError):
            return f"{second}.{fraction}"
    return f"{second}.{fraction}"


def _second_before(second: str) -> str:
    try:
        return (datetime.fromisoformat(second) - timedelta(seconds=1)).isoformat()
    except (ValueError, OverflowError):  # no moment of any calendar, so nobody can ask for an earlier one
        return second


def _mark(stamp: str, body: bytes) -> str:
    return f"{stamp} {hashlib.blake2b(body[:MARK_BYTES], digest_size=6).hexdigest()}"


def _shown(body: bytes) -> str:
    """Show a line as a terminal would: of a progress bar that is drawn over and over, the last state."""
    parts = [each for each in body.split(b"\r") if each]
    text = (parts[-1] if parts else b"").decode("utf-8", "replace")
    return text if len(text) <= LINE_LETTERS else f"{text[:LINE_LETTERS]} [and {len(text) - LINE_LETTERS} letters more]"
