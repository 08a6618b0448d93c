"""Text that is cleaned, cut and written out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from airflow_ml_provider.core.alert_text import (
    boundary,
    clean,
    counted,
    cut,
    excerpt,
    first_sentence,
    isolate,
    moment,
    number,
    one_line,
    span,
    utf16,
)

GERMANY, FRANCE = "\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


class TestCutting:
    @pytest.mark.parametrize(
        "whole",
        [
            "e\u0301\u0323",
            GERMANY,
            FAMILY,
            "\U0001f44d\U0001f3fd",
            "\u2764\ufe0f",
            "1\ufe0f\u20e3",
            "\U0001f3f4\U000e0067\U000e0062\U000e007f",
            "क्षि",
            "\u1112\u1161\u11ab",
            "한",
            "กำ",
        ],
    )
    def test_a_grapheme_stays_whole(self, whole: str) -> None:
        text = f"ab{whole}cd"
        cuts = {boundary(text, index) for index in range(len(text) + 1)}
        assert cuts == {0, 1, 2, 2 + len(whole), 3 + len(whole), 4 + len(whole)}

    def test_a_row_of_flags_is_cut_between_two_flags(self) -> None:
        assert cut(f"{GERMANY}{FRANCE}{GERMANY}", 10) == f"{GERMANY}{FRANCE}…"
        assert cut(f"{GERMANY}{FRANCE}{GERMANY}", 8) == f"{GERMANY}…"

    def test_an_emoji_counts_as_slack_may_count_it(self) -> None:
        assert utf16("\U0001f44d") == 2
        assert cut("\U0001f44d" * 5, 8) == "\U0001f44d" * 3 + "…"

    def test_what_fits_is_left_alone(self) -> None:
        assert cut("word", 4) == "word"
        assert cut("words", 4) == "wor…"
        assert cut("word", 0) == ""

    def test_a_pile_of_joined_characters_is_cut_somewhere(self) -> None:
        text = "\U0001f468\u200d" * 500
        assert 300 < utf16(cut(text, 400)) <= 400


class TestCleaning:
    @pytest.mark.parametrize(
        ("text", "clear"),
        [
            ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x", "red x"),
            ("a\x00b\x07c\x7f\x9b", "abc"),
            ("10%\r20%\r\nend\u2028x\x85y", "10%\n20%\nend\nx\ny"),
            ("\u202eevil\u202c \u2066a\u2069", "evil a"),
            ("\ud83d\ude00 \ud83d", "\U0001f600 \ufffd"),
            ("z" + "\u0301" * 40, "z" + "\u0301" * 8),
            ("kept\ttab ", "kept\ttab"),
        ],
    )
    def test_what_no_message_may_carry_is_taken_out(self, text: str, clear: str) -> None:
        assert clean(text) == clear
        assert clear.encode()

    def test_one_line_is_one_line(self) -> None:
        assert one_line(" a\r\n\tb\u2029c  d ") == "a b c d"

    def test_only_what_runs_from_right_to_left_is_isolated(self) -> None:
        assert isolate("train") == "train"
        assert isolate("אב 3") == "\u2068אב 3\u2069"


class TestExcerpt:
    def test_a_short_text_is_whole(self) -> None:
        assert excerpt("a\nb\n", 200) == "a\nb"

    def test_the_first_line_and_the_end_are_kept_and_the_rest_is_counted(self) -> None:
        shown = excerpt("\n".join(["first", *(f"line {n}" for n in range(1000)), "last"]), 300).split("\n")
        assert shown[0] == "first"
        assert shown[-1] == "last"
        assert shown[1] == f"… {1002 - (len(shown) - 1)} lines left out …"

    def test_the_middle_of_a_very_long_text_is_counted_too(self) -> None:
        shown = excerpt("\n".join(["first", *["x" * 99] * 5000, "last"]), 1000).split("\n")
        assert shown[1] == f"… {5002 - (len(shown) - 1):,} lines left out …"

    def test_one_endless_line_keeps_its_two_ends(self) -> None:
        shown = excerpt("KeyError: " + "k" * 9_000_000 + " end", 1000)
        assert shown.startswith("KeyError: kk")
        assert shown.endswith("kk end")
        assert utf16(shown) <= 1000

    def test_lines_that_cost_too_much_are_cut(self) -> None:
        shown = excerpt("a" * 300 + "\n" + "字" * 390, 200, lambda text: len(text.encode()))
        assert len(shown.encode()) <= 200
        assert "字" in shown


class TestWriting:
    @pytest.mark.parametrize(
        ("why", "first", "rest"),
        [
            ("out of memory at 64 GiB. Give it more.", "out of memory at 64 GiB", "Give it more."),
            ("AUC 0.71 < 0.74. The champion stays.", "AUC 0.71 < 0.74", "The champion stays."),
            ("no module a.b.c, e.g. numpy", "no module a.b.c, e.g. numpy", ""),
            ("Really? Yes.", "Really?", "Yes."),
            ("", "", ""),
        ],
    )
    def test_the_first_sentence_is_found(self, why: str, first: str, rest: str) -> None:
        assert first_sentence(why) == (first, rest)

    @pytest.mark.parametrize(
        ("seconds", "says"),
        [
            (0, "0 s"), (0.44, "0.4 s"), (9.98, "10 s"), (59.6, "1 min"), (61, "1 min 1 s"), (7500, "2 h 5 min"),
            (90_000, "1 day 1 h"), (86_400 * 30, "30 days"), (-1, ""), (float("nan"), ""), (float("inf"), ""),
        ],
    )  # fmt: skip
    def test_a_span_is_written_in_its_two_largest_units(self, seconds: float, says: str) -> None:
        assert span(seconds) == says

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (0.7512345, "0.7512"),
            (1, "1"),
            (15_234.4, "15,234"),
            (-12_000, "-12,000"),
            (1.2e-9, "1.2e-9"),
            (1e308, "1e308"),
            (0.0, "0"),
        ],
    )
    def test_a_number_has_four_digits(self, value: float, says: str) -> None:
        assert number(value) == says

    def test_a_moment_is_written_in_utc(self) -> None:
        assert moment(datetime(2026, 11, 21, 3, 41, tzinfo=timezone(timedelta(hours=1)))) == "21 Nov 2026 02:41 UTC"
        assert moment(datetime(2026, 1, 2, 3, 4)) == "2 Jan 2026 03:04 UTC"  # noqa: DTZ001
        assert moment(datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))) == "31 Dec 9999 23:59 UTC"
        assert moment(datetime.min.replace(tzinfo=UTC)) == "1 Jan 1 00:00 UTC"

    def test_one_is_not_many(self) -> None:
        assert [counted(each, "task") for each in (0, 1, 1200)] == ["0 tasks", "1 task", "1,200 tasks"]
