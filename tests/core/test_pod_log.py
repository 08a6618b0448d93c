"""Each line of a log once and in order, whatever the readings are like; the log is read from a kubelet that is made of values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.pod_log import CAP_BYTES, LIMIT_BYTES, LINE_LETTERS, TAIL_LINES, LogCursor, LogReading

START = datetime(2026, 1, 1, tzinfo=UTC)


def stamp(ns: int) -> str:
    return f"{START + timedelta(seconds=ns // 10**9):%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"


@dataclass
class Kubelet:
    """
    What a kubelet does with a log file, as was seen on a real one: each line has its own time, ``sinceTime`` counts in whole
    seconds and leaves out what is older line by line, ``limitBytes`` cuts anywhere, only the newest file is read.
    """

    lines: list[tuple[int, bytes]] = field(default_factory=list)
    open_end: bool = False

    def write(self, ns: int, body: bytes) -> None:
        self.lines.append((ns, body))

    def rotate(self) -> None:
        self.lines = []

    def read(self, cursor: LogCursor) -> bytes:
        lines = self.lines
        if cursor.tail_lines is not None:
            lines = lines[-cursor.tail_lines :]
        if cursor.since_time is not None:
            since = int((datetime.fromisoformat(cursor.since_time) - START).total_seconds()) * 10**9
            lines = [each for each in lines if each[0] >= since]
        text = b"".join(stamp(ns).encode() + b" " + body + b"\n" for ns, body in lines)
        text = text[:-1] if self.open_end else text
        return text if cursor.stuck else text[: cursor.limit_bytes]

    def take(self, cursor: LogCursor, *, complete: bool = False) -> tuple[list[str], LogCursor]:
        """Read as the loops do: an answer at once, or piece by piece."""
        raw = self.read(cursor)
        if not cursor.stuck:
            return cursor.take(raw, complete=complete)
        return cursor.take_pieces((raw[at : at + 65_536] for at in range(0, len(raw), 65_536)), complete=complete)


def read_on(kubelet: Kubelet, cursor: LogCursor, *, complete: bool = False, handover: bool = True) -> tuple[list[str], LogCursor]:
    """Read until nothing more is there at once, as the loops do; through JSON each time, as a handover does."""
    found: list[str] = []
    for _ in range(200):
        lines, cursor = kubelet.take(cursor, complete=complete)
        if handover:
            cursor = LogCursor.from_json(json.loads(json.dumps(cursor.to_json())))
        found += lines
        if not cursor.behind:
            return found, cursor
    raise AssertionError("it never comes to an end")


MILLISECONDS = 10**6
STEPS = st.sampled_from([0, 0, 1, 1000, MILLISECONDS, 99 * MILLISECONDS, 500 * MILLISECONDS, 10**9, 3 * 10**9])
BODIES = st.sampled_from([b"", b"a", b"a", b"epoch 1", b"x" * 70])
WRITES = st.lists(st.tuples(STEPS, BODIES, st.booleans()), max_size=40)


class TestAnyLog:
    @given(WRITES, st.integers(60, 400), st.sets(st.integers(0, 40)), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_comes_once_and_in_order_however_it_is_read(
        self, writes: list[tuple[int, bytes, bool]], limit: int, probes: set[int], handover: bool
    ) -> None:
        kubelet, cursor, found, now = Kubelet(), LogCursor(limit_bytes=limit), [], 10**9
        for index, (step, body, read) in enumerate(writes):
            now += step
            kubelet.write(now, b"%d " % index + body)
            if read:
                cursor = replace(cursor, limit_bytes=limit, probe=index in probes)
                lines, cursor = read_on(kubelet, cursor, handover=handover)
                found += lines
        lines, cursor = read_on(kubelet, cursor, complete=True)
        assert found + lines == [body.decode() for _, body in kubelet.lines]
        assert read_on(kubelet, cursor, complete=True)[0] == []

    @given(WRITES)
    @settings(max_examples=200, deadline=None)
    def test_may_hold_the_same_line_many_times(self, writes: list[tuple[int, bytes, bool]]) -> None:
        kubelet, cursor, found, now = Kubelet(), LogCursor(), [], 10**9
        for step, body, read in writes:
            now += step
            kubelet.write(now, body)
            if read:
                lines, cursor = read_on(kubelet, cursor)
                found += lines
        assert found + read_on(kubelet, cursor)[0] == [body.decode() for _, body in kubelet.lines]

    @given(WRITES, st.lists(st.integers(-90 * MILLISECONDS, 0), min_size=40, max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_may_have_two_writers_out_of_step(self, writes: list[tuple[int, bytes, bool]], early: list[int]) -> None:
        kubelet, cursor, found, now = Kubelet(), LogCursor(), [], 10**9
        for index, (step, body, read) in enumerate(writes):
            now += step
            kubelet.write(now + early[index], b"%d " % index + body)
            if read:
                lines, cursor = read_on(kubelet, cursor)
                found += lines
        assert found + read_on(kubelet, cursor)[0] == [body.decode() for _, body in kubelet.lines]

    @given(WRITES, st.lists(st.integers(1, 200), max_size=30), st.integers(0, 40))
    @settings(max_examples=200, deadline=None)
    def test_may_be_followed_in_pieces_and_broken_off_anywhere(
        self, writes: list[tuple[int, bytes, bool]], cuts: list[int], broken_at: int
    ) -> None:
        kubelet, now = Kubelet(), 10**9
        for index, (step, body, _) in enumerate(writes):
            now += step
            kubelet.write(now, b"%d " % index + body)
        raw, found, cursor = kubelet.read(LogCursor(limit_bytes=10**9)), [], LogCursor()
        reading = LogReading(cursor)
        for start, end in pairwise([0, *(sum(cuts[: index + 1]) for index in range(min(len(cuts), broken_at)))]):
            found += reading.feed(raw[start:end])
        found += reading.end()
        assert found + read_on(kubelet, reading.cursor(), complete=True)[0] == [body.decode() for _, body in kubelet.lines]

    @given(WRITES, st.sets(st.integers(0, 40)))
    @settings(max_examples=200, deadline=None)
    def test_that_is_rotated_loses_only_what_was_not_read_and_says_so(
        self, writes: list[tuple[int, bytes, bool]], rotations: set[int]
    ) -> None:
        kubelet, cursor, found, lost, written, now = Kubelet(), LogCursor(), [], set(), [], 10**9
        for index, (step, body, read) in enumerate(writes):
            now += step + 1
            if index in rotations:
                lost |= {line.decode() for _, line in kubelet.lines} - set(found)
                kubelet.rotate()
            kubelet.write(now, b"%d " % index + body)
            written.append((b"%d " % index + body).decode())
            if read:
                lines, cursor = read_on(kubelet, cursor)
                found += lines
        found += read_on(kubelet, cursor)[0]
        assert [each for each in found if not each.startswith("[airflow-ml]")] == [each for each in written if each not in lost]

    @given(st.binary(max_size=3000), st.booleans(), st.integers(1, 3000))
    @settings(max_examples=200, deadline=None)
    def test_may_be_anything_at_all(self, raw: bytes, complete: bool, limit: int) -> None:
        lines, cursor = LogCursor(limit_bytes=limit).take(raw, complete=complete)
        assert all(isinstance(each, str) for each in lines)
        assert LogCursor.from_json(cursor.to_json()) == cursor


def log_of(*bodies: bytes, step: int = 10**9) -> Kubelet:
    kubelet = Kubelet()
    for index, body in enumerate(bodies):
        kubelet.write((index + 1) * step, body)
    return kubelet


class TestALine:
    def test_without_an_end_is_held_back_until_it_has_one(self) -> None:
        kubelet = log_of(b"one", b"tw")
        kubelet.open_end = True
        lines, cursor = read_on(kubelet, LogCursor())
        assert lines == ["one"]
        kubelet.lines[-1], kubelet.open_end = (kubelet.lines[-1][0], b"two"), False
        assert read_on(kubelet, cursor)[0] == ["two"]

    def test_without_an_end_is_whole_once_the_container_has_ended(self) -> None:
        kubelet = log_of(b"one", b"no newline")
        kubelet.open_end = True
        lines, cursor = read_on(kubelet, LogCursor(), complete=True)
        assert lines == ["one", "no newline"]
        assert read_on(kubelet, cursor, complete=True)[0] == []

    def test_that_a_limit_has_cut_is_not_whole_even_then(self) -> None:
        lines, cursor = LogCursor(limit_bytes=50).take(log_of(b"one", b"two" * 20).read(LogCursor(limit_bytes=50)), complete=True)
        assert (lines, cursor.behind) == (["one"], True)

    @pytest.mark.parametrize(
        ("body", "shown"),
        [
            (b"10%|#  |\r50%|## |\r100%|###|", "100%|###|"),
            (b"windows\r", "windows"),
            (b"\r", ""),
            (b"caf\xc3\xa9 \xff\xfe", "caf\u00e9 \ufffd\ufffd"),
            (b"2026-01-01T00:00:00Z a time of its own", "2026-01-01T00:00:00Z a time of its own"),
            (b"", ""),
            (b"x" * (LINE_LETTERS + 5), "x" * LINE_LETTERS + " [and 5 letters more]"),
        ],
    )
    def test_is_shown_as_a_terminal_would_show_it(self, body: bytes, shown: str) -> None:
        assert read_on(log_of(body), LogCursor())[0] == [shown]

    def test_that_began_before_the_reading_is_not_told_twice(self) -> None:
        lines, cursor = read_on(log_of(b"one", b"long"), LogCursor())
        assert lines == ["one", "long"]
        rest = b"the rest of a long line\n" + log_of(b"one", b"long", b"three").read(cursor)
        assert cursor.take(rest)[0] == ["three"]

    def test_has_a_time_of_any_zone_and_precision(self) -> None:
        raw = b"2026-01-01T02:00:01+02:00 a\n2026-01-01T00:00:01.5Z b\n2025-12-31T19:00:02.25-05:00 c\n"
        lines, cursor = LogCursor().take(raw)
        assert (lines, cursor.since_time, cursor.taken) == (["a", "b", "c"], "2026-01-01T00:00:02Z", 1)

    def test_whose_time_is_none_of_any_calendar_breaks_nothing(self) -> None:
        lines, cursor = LogCursor().take(b"0001-01-01T00:00:00.0Z a\n2026-99-99T99:99:99+09:99 b\n9999-99-99T00:00:00.0Z c\n")
        assert lines == ["a", "b", "c"]
        assert LogCursor.from_json(cursor.to_json()) == cursor


class TestTheCursor:
    def test_asks_for_whole_seconds_a_tenth_of_a_second_back(self) -> None:
        assert LogCursor().since_time is None
        for fraction, second in (("05", "00"), ("15", "01")):
            _, cursor = LogCursor().take(f"2026-01-01T00:00:01.{fraction}Z a\n".encode())
            assert cursor.since_time == f"2026-01-01T00:00:{second}Z"

    def test_is_small_and_plain_json(self) -> None:
        _, cursor = read_on(log_of(*[b"x" * 1000] * 100), LogCursor())
        assert LogCursor().to_json() == {}
        assert len(json.dumps(cursor.to_json())) < 300
        assert LogCursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor

    @pytest.mark.parametrize("stored", [None, 3, [], {"taken": "many", "limit_bytes": True, "invented": 1}])
    def test_of_another_release_begins_anew(self, stored: object) -> None:
        assert LogCursor.from_json(stored) == LogCursor()

    def test_stays_where_it_is_when_there_is_nothing(self) -> None:
        cursor = read_on(log_of(b"one"), LogCursor())[1]
        assert cursor.take(b"") == ([], cursor)


class TestTheBound:
    def test_of_a_reading_is_doubled_until_it_brings_something_new(self) -> None:
        kubelet = Kubelet()
        for index in range(3000):
            kubelet.write(10**9 + index, b"%04d " % index + b"x" * 1000)
        cursor, limits, found = LogCursor(), [], []
        while not limits or cursor.behind:
            limits.append(cursor.limit_bytes)
            lines, cursor = cursor.take(kubelet.read(cursor))
            found += lines
        assert [each[:4] for each in found] == [f"{index:04d}" for index in range(3000)]
        assert (limits[0], max(limits) <= CAP_BYTES, sorted(limits) == limits) == (LIMIT_BYTES, True, True)

    def test_becomes_small_again_when_the_log_is_quiet(self) -> None:
        kubelet, cursor = log_of(b"one"), LogCursor(limit_bytes=CAP_BYTES)
        for _ in range(10):
            _, cursor = cursor.take(kubelet.read(cursor))
        assert cursor.limit_bytes == LIMIT_BYTES

    @pytest.mark.parametrize("complete", [False, True])
    def test_is_kept_in_a_burst_of_which_no_line_is_lost(self, complete: bool) -> None:
        kubelet = log_of(b"before")
        for index in range(24_000):  # 8 MB a second
            kubelet.write(10**9 + 1 + index * 125_000, b"%05d " % index + b"x" * 1000)
        found, held, cursor = [], [], LogCursor()
        while not held or cursor.behind:
            lines, cursor = kubelet.take(LogCursor.from_json(cursor.to_json()), complete=complete)
            found += lines
            held.append(sum(map(len, lines)))
        assert [each[:5] for each in found] == ["befor", *(f"{index:05d}" for index in range(24_000))]
        assert max(held) <= CAP_BYTES + 65_536
        assert len(held) < 30
        kubelet.write(5 * 10**9, b"after")
        assert read_on(kubelet, cursor)[0] == ["after"]

    def test_is_kept_where_a_rotated_log_has_no_end_of_its_second(self) -> None:
        kubelet = log_of(b"before")
        cursor = replace(read_on(kubelet, LogCursor())[1], newest="2026-01-01T00:00:00.900000000", stuck=True)
        kubelet.rotate()
        for index in range(9000):
            kubelet.write(index * 110_000, b"%04d " % index + b"x" * 1000)
        found, _ = read_on(kubelet, cursor)
        (said,) = [each for each in found if each.startswith("[airflow-ml]")]
        assert "were skipped: they are more than one reading may hold (4 MiB)" in said
        assert [each[:4] for each in found[1:]] == [f"{index:04d}" for index in range(9000 - TAIL_LINES, 9000)]

    def test_is_not_used_up_again_and_again_by_a_log_that_was_loud_and_is_quiet(self) -> None:
        kubelet, cursor = Kubelet(), LogCursor()
        for index in range(2000):
            kubelet.write(10**9 + index, b"%04d " % index + b"x" * 1000)
        sizes = []
        for _ in range(6):
            sizes.append(0)
            behind = True
            while behind:
                raw = kubelet.read(cursor)
                sizes[-1] += len(raw)
                lines, cursor = cursor.take(raw)
                behind = cursor.behind
        assert (lines, cursor.probe) == ([], True)
        assert max(sizes[2:]) < TAIL_LINES * 1100
        for index in range(3):
            kubelet.write(2 * 10**9 + index, b"more")
        assert cursor.take(kubelet.read(cursor))[0] == ["more"] * 3
        for index in range(TAIL_LINES + 1):
            kubelet.write(3 * 10**9 + index, b"%d" % index)
        assert read_on(kubelet, cursor)[0] == ["more"] * 3 + [f"{index}" for index in range(TAIL_LINES + 1)]

    def test_holds_for_a_line_that_never_ends(self) -> None:
        kubelet = log_of(b"one", b"#" * (CAP_BYTES + 10))
        kubelet.open_end = True
        found, cursor = read_on(kubelet, LogCursor())
        assert (found[0], found[1].startswith("###"), len(found)) == ("one", True, 2)
        assert "letters more]" in found[1]
        kubelet.open_end = False
        kubelet.write(10**9, b"two")
        assert read_on(kubelet, cursor)[0] == ["two"]

    def test_of_a_followed_log_is_one_line_below_the_cap(self) -> None:
        reading, found = LogReading(LogCursor()), []
        for _ in range(6):
            found += reading.feed(b"2026-01-01T00:00:00.5Z " + b"#" * 1024**2)
        assert len(found) == 1
        assert reading.feed(b" rest\n2026-01-01T00:00:01.5Z next\n") == ["next"]
        assert reading.cursor().taken == 1


class TestAGap:
    def test_is_said_with_its_times(self) -> None:
        kubelet = log_of(b"one", b"two")
        cursor = read_on(kubelet, LogCursor())[1]
        kubelet.rotate()
        assert read_on(kubelet, cursor)[0] == []
        kubelet.write(9 * 10**9, b"nine")
        lines, cursor = read_on(kubelet, cursor)
        between = "between 2026-01-01T00:00:02.000000000Z and 2026-01-01T00:00:09.000000000Z"
        assert lines == [f"[airflow-ml] The log was rotated by Kubernetes: lines {between} may be missing.", "nine"]
        assert read_on(kubelet, cursor)[0] == []

    def test_is_none_where_the_last_line_is_still_there(self) -> None:
        kubelet = log_of(b"one", b"two", b"three", step=1000)
        cursor = read_on(kubelet, LogCursor())[1]
        del kubelet.lines[:2]
        kubelet.write(4000, b"four")
        assert read_on(kubelet, cursor)[0] == ["four"]

    def test_is_none_where_the_last_line_is_out_of_step(self) -> None:
        kubelet = Kubelet([(1000, b"one"), (2050, b"two"), (2000, b"three")])
        cursor = read_on(kubelet, LogCursor())[1]
        del kubelet.lines[0]
        kubelet.write(3000, b"four")
        assert read_on(kubelet, cursor)[0] == ["four"]


class TestAnAnswerThatIsNoLog:
    SORRY = b"unable to retrieve container logs for containerd://0123"

    def test_is_told_when_it_is_all_there_will_be(self) -> None:
        assert LogCursor().take(self.SORRY, complete=True)[0] == [self.SORRY.decode()]

    def test_is_left_alone_while_a_log_may_come(self) -> None:
        assert LogCursor().take(self.SORRY + b"\n") == ([], LogCursor())
