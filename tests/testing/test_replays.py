"""Every recording of a real server, replayed against the fake."""

from __future__ import annotations

import json

import pytest

from tests.testing.differences import UNCOMPARED
from tests.testing.replay import HERE, Replay
from tests.testing.scripts import SCRIPTS

RECORDINGS = {each.stem: json.loads(each.read_text()) for each in sorted((HERE / "recordings").glob("*.json"))}
EVENTS_ALONE = {"34-runs-finished-since": "test_limits.py asks what its events tell"}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_fake_answers_as_the_recorded_server_did(name: str) -> None:
    replay = Replay(name, SCRIPTS[name]).run()
    assert replay.differences == []
    assert replay.compared > 0


def test_every_recording_is_replayed_or_has_a_reason() -> None:
    told = {name for name, number in UNCOMPARED if number is None}
    assert set(RECORDINGS) == set(SCRIPTS) | told | set(EVENTS_ALONE)


def test_every_reason_names_an_exchange_that_is_there() -> None:
    for (name, number), reason in UNCOMPARED.items():
        assert len(reason) > 20
        assert number is None or "request" in RECORDINGS[name]["exchanges"][number]


def test_nearly_every_exchange_is_compared() -> None:
    requests = [(name, at) for name, data in RECORDINGS.items() for at, each in enumerate(data["exchanges"]) if "request" in each]
    left_out = [each for each in requests if each in UNCOMPARED or (each[0], None) in UNCOMPARED]
    assert (len(requests), len(left_out)) == (654, 32)
