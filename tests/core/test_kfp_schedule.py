from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from airflow_ml_provider.core.kfp_schedule import full_cron, plain_trigger, trigger_of
from airflow_ml_provider.exceptions import ConfigError


class TestACron:
    @pytest.mark.parametrize(
        ("given", "sent"),
        [
            ("0 3 * * *", "0 0 3 * * *"),  # at three every day: the server would take the first field for the second
            ("*/15 8-18/2 * * mon-fri", "0 */15 8-18/2 * * mon-fri"),
            ("30 0 3 1,15 JAN ?", "30 0 3 1,15 JAN ?"),
            ("5/20 * * * *", "0 5/20 * * * *"),
            ("  0  3 * *\t* ", "0 0 3 * * *"),
            ("0 0 31 2 1", "0 0 0 31 2 1"),  # with a day of the week, either of the two days will do
            ("0 0 29 2 *", "0 0 0 29 2 *"),
            ("@daily", "0 0 0 * * *"),
            ("@quarterly", "0 0 0 1 */3 *"),
        ],
    )
    def test_is_sent_with_its_seconds(self, given: str, sent: str) -> None:
        assert full_cron(given) == sent

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("", "has 0 fields"),
            ("* * * *", "has 4 fields"),
            ("0 0 0 * * * 2027", "has 7 fields"),
            ("@once", "has 1 fields"),
            ("60 * * * *", "'60' is no minute. It goes from 0 to 59"),
            ("0 24 * * *", "'24' is no hour"),
            ("0 0 0 * *", "'0' is no day of the month"),
            ("0 0 * 13 *", "'13' is no month. .* or jan to dec"),
            ("0 0 * * 7", "'7' is no day of the week. It goes from 0 to 6"),
            ("0 0 L * *", "'L' is no day of the month"),
            ("0 0 * * mon#2", "'mon#2' is no day of the week"),
            ("*/0 * * * *", "is no minute"),
            ("*/x * * * *", "is no minute"),
            ("1-2-3 * * * *", "is no minute"),
            ("9-1 * * * *", "is no minute"),
            ("1, * * * *", "'' is no minute"),
            ("-1 * * * *", "is no minute"),
            ("*-3 * * * *", "is no minute"),
            ("٣ * * * *", "is no minute"),
            ("0 0 31 2,4 *", "a day that never comes"),
            ("TZ=UTC 0 3 * * *", "'TZ=UTC' is no second"),
        ],
    )
    def test_that_the_server_would_refuse_or_never_reach_is_refused(self, given: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            full_cron(given)


class TestATrigger:
    def test_of_an_interval_counts_in_seconds(self) -> None:
        assert trigger_of(timedelta(hours=2), None, None) == {"periodic_schedule": {"interval_second": "7200"}}

    @pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-5), timedelta(seconds=1.5), timedelta(milliseconds=1)])
    def test_of_a_part_of_a_second_is_refused(self, interval: timedelta) -> None:
        with pytest.raises(ConfigError, match="whole seconds, at least 1"):
            trigger_of(interval, None, None)

    def test_has_its_limits_in_utc(self) -> None:
        start = datetime(2026, 1, 1, 1, 30, 0, 999, tzinfo=timezone(timedelta(hours=1)))
        assert trigger_of("0 3 * * *", start, "2027-01-01T00:00:00Z") == {
            "cron_schedule": {"cron": "0 0 3 * * *", "start_time": "2026-01-01T00:30:00Z", "end_time": "2027-01-01T00:00:00Z"}
        }

    @pytest.mark.parametrize(
        ("start", "end", "said"),
        [
            ("tomorrow", None, "start='tomorrow' is no time"),
            (None, "2026-01-01T00:00:00", "end=.* has no time zone"),
            (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), "is not after start"),
            (5, None, "start=5 is no time"),
        ],
    )
    def test_with_limits_that_make_no_sense_is_refused(self, start, end, said) -> None:
        with pytest.raises(ConfigError, match=said):
            trigger_of("@daily", start, end)

    def test_that_is_neither_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="neither a cron nor a timedelta"):
            trigger_of(3600, None, None)

    def test_reads_back_as_it_was_written(self) -> None:
        for each in (trigger_of("@daily", "2026-01-01T00:00:00+01:00", None), trigger_of(timedelta(days=1), None, None)):
            assert plain_trigger(each) == plain_trigger(dict(each))
        assert plain_trigger(trigger_of("@daily", None, None)) != plain_trigger(trigger_of("@hourly", None, None))
        assert plain_trigger({}) == plain_trigger(None)
