"""Every recording of a real server, replayed against the fake."""

from __future__ import annotations

import functools
import json

import pytest

from tests.testing import differences
from tests.testing.replay import HERE, Replay
from tests.testing.scripts import SCRIPTS

RECORDINGS = {each.stem: json.loads(each.read_text()) for each in sorted((HERE / "recordings").glob("*.json"))}


@functools.cache
def replayed(name: str) -> Replay:
    return Replay(name, SCRIPTS[name]).run()


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_fake_answers_as_the_recorded_server_did(name: str) -> None:
    replay = replayed(name)
    assert replay.differences == []
    assert replay.compared > 0


def whole_recordings() -> set[str]:
    """Recordings of which nothing is sent."""
    return {each.recording for each in differences.EXCHANGES if each.number is None}


def test_every_recording_is_replayed_or_has_a_reason() -> None:
    assert set(RECORDINGS) == set(SCRIPTS) | whole_recordings()
    assert not set(SCRIPTS) & whole_recordings()


def test_everything_that_is_not_compared_has_a_reason_and_is_needed() -> None:
    """A rule that no recording needs any more hides what nobody has looked at: it goes."""
    names = [each.name for each in differences.RULES]
    assert len(names) == len(set(names))
    assert [each.name for each in differences.RULES if len(each.reason) < len("likewise")] == []
    used = set().union(*(replayed(each).used for each in SCRIPTS))
    assert set(names) - used - whole_recordings() == set()
    assert used <= set(names)


def test_nearly_every_exchange_is_compared() -> None:
    requests = [(name, at) for name, data in RECORDINGS.items() for at, each in enumerate(data["exchanges"]) if "request" in each]
    rules = [differences.of(*each) for each in requests]
    left_out = [each for each in rules if each is not None and not each.field]
    assert (len(requests), len(left_out), len(requests) - len(left_out)) == (
        654,
        32,
        sum(replayed(each).compared for each in SCRIPTS),
    )
