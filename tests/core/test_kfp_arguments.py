"""Arguments of a pipeline: what the server takes goes through unchanged, everything else is named before it is sent."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import re
import types
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.kfp_package import check_arguments, check_run_size, read_package
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_package import ParameterType, PipelineArtifactInput, PipelinePackage, PipelineParameter

PACKAGES = Path(__file__).parent / "packages"
TYPES = ["STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN", "LIST", "STRUCT"]
VALUES: dict[str, Any] = {
    "STRING": "a",
    "NUMBER_INTEGER": 3,
    "NUMBER_DOUBLE": 0.5,
    "BOOLEAN": True,
    "LIST": [1],
    "STRUCT": {"a": 1},
}


def pipeline(*parameters: PipelineParameter, **more: Any) -> PipelinePackage:
    return PipelinePackage(
        name="churn", source="churn.yaml", parameters={each.name: each for each in parameters}, spec={}, **more
    )


def parameter(kind: str, name: str = "x", **more: Any) -> PipelineParameter:
    return PipelineParameter(name=name, type=ParameterType(kind), **more)


def sent(kind: str, value: Any, **more: Any) -> Any:
    return check_arguments(pipeline(parameter(kind, **more)), {"x": value})["x"]


def refused(package: PipelinePackage, arguments: dict[Any, Any]) -> list[str]:
    """The lines of the refusal, without its head."""
    with pytest.raises(ConfigError) as caught:
        check_arguments(package, arguments)
    head, *lines = str(caught.value).split("\n- ")
    assert head == f"the arguments of pipeline {package.name!r} ({package.source}) are refused; nothing was sent."
    return lines


def refused_value(kind: str, value: Any, **more: Any) -> str:
    (line,) = refused(pipeline(parameter(kind, **more)), {"x": value})
    return line


class TestAsTheServerDoes:
    """Each value, and whether the server took it: what was recorded with a pipeline of one parameter of every type."""

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("NUMBER_INTEGER", 7.5), ("NUMBER_DOUBLE", 1), ("STRING", ""), ("STRING", "a" * 10_000),
            ("STRING", 'line1\nline2 "q" \\ \u00f1 \u2615 {{workflow.name}} {{$.inputs}}'),
        ],
    )  # fmt: skip
    def test_what_it_takes_is_sent_as_it_is(self, kind: str, value: Any) -> None:
        assert sent(kind, value) == value

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("NUMBER_INTEGER", True), ("BOOLEAN", 1), ("STRING", 5), ("STRING", None), ("STRUCT", [1]), ("NUMBER_INTEGER", None),
        ],
    )  # fmt: skip
    def test_what_it_refuses_is_refused(self, kind: str, value: Any) -> None:
        assert refused_value(kind, value).startswith(f"'x' wants {kind}, but ")

    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            ("NUMBER_INTEGER", "7", 7), ("NUMBER_DOUBLE", "0.5", 0.5), ("BOOLEAN", "true", True), ("LIST", "[1,2]", [1, 2]),
            ("STRUCT", '{"a":1}', {"a": 1}),
        ],
    )  # fmt: skip
    def test_a_text_that_it_refuses_is_sent_as_the_value_that_it_means(self, kind: str, text: str, value: Any) -> None:
        assert sent(kind, text) == value

    @pytest.mark.parametrize(
        "number", [2**53 + 1, -(2**53) - 1, 2**60, 10**400], ids=lambda each: f"{each:.0e}" if each < 10**300 else "huge"
    )
    @pytest.mark.parametrize("shape", [lambda n: n, lambda n: [n], lambda n: {"a": [n]}])
    def test_an_integer_that_it_would_round_is_refused(self, number: int, shape: Any) -> None:
        value = shape(number)
        kind = {int: "NUMBER_INTEGER", list: "LIST", dict: "STRUCT"}[type(value)]
        line = refused_value(kind, value)
        assert "rounds integers above 2^53 (9007199254740992)" in line
        assert "Make it a STRING parameter and pass it as a text" in line

    @pytest.mark.parametrize("text", ["\U0001f680", "a\U00010000", "\ud83d", "x" * 1000 + "\U0010ffff"])
    def test_a_character_that_would_leave_an_orphan_is_refused_wherever_it_stands(self, text: str) -> None:
        for kind, value in [("STRING", text), ("LIST", [[text]]), ("STRUCT", {"a": {"b": text}}), ("STRUCT", {text: 1})]:
            line = refused_value(kind, value)
            assert "takes 4 bytes in UTF-8; the server's database takes 3" in line
            assert line.isprintable()


class TestTexts:
    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            ("NUMBER_INTEGER", "20240131", 20240131), ("NUMBER_INTEGER", "-3", -3), ("NUMBER_INTEGER", "0", 0),
            ("NUMBER_DOUBLE", "3", 3), ("NUMBER_DOUBLE", "1e-5", 1e-5), ("NUMBER_DOUBLE", "-0.25E+2", -25.0),
            ("BOOLEAN", "True", True), ("BOOLEAN", "False", False), ("BOOLEAN", "false", False),
            ("LIST", "[]", []), ("LIST", '["a", [null, true, 1.5]]', ["a", [None, True, 1.5]]), ("STRUCT", "{}", {}),
            ("STRING", "3", "3"), ("STRING", "true", "true"), ("STRING", "[1]", "[1]"), ("STRING", " 08 ", " 08 "),
        ],
    )  # fmt: skip
    def test_what_a_template_gives_is_read_as_json_where_no_text_is_wanted(self, kind: str, text: str, value: Any) -> None:
        found = sent(kind, text)
        assert found == value
        assert type(found) is type(value)

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            *(("NUMBER_INTEGER", each) for each in ["", " 3", "3\n", "3.0", "1e3", "03", "+3", "3_000", "0x3", "\u0663", "three", "NaN", "{{ ds }}", "None"]),
            *(("NUMBER_DOUBLE", each) for each in ["", ".5", "5.", "+0.5", "NaN", "inf", "-Infinity", "0,5", "1_0.0", "one", "None"]),
            *(("BOOLEAN", each) for each in ["", "TRUE", "yes", "on", "1", "0", "None", " true"]),
            *(("LIST", each) for each in ["", "['a']", "[1,]", "[NaN]", "{}", "a,b", "1", "[", "[" * 100_000, '[{"a": 1, "a": 2}]', "None"]),
            *(("STRUCT", each) for each in ["", "{'a': 1}", '{"a": 1, "a": 2}', "[]", "{1: 2}", '{"a": Infinity}', "a=b", "{"]),
        ],
    )  # fmt: skip
    def test_any_other_text_is_refused(self, kind: str, text: str) -> None:
        line = refused_value(kind, text)
        assert line.startswith(f"'x' wants {kind}, but ")
        assert "is a text (str), and not the JSON of one." in line

    def test_how_a_template_writes_a_list_is_said(self) -> None:
        assert refused_value("LIST", "['a']").endswith("In a template, write {{ ... | tojson }}.")

    def test_a_number_for_a_text_names_the_setting_that_may_have_made_it_one(self) -> None:
        line = refused_value("STRING", 20240131)
        assert line.startswith(
            "'x' wants STRING, but 20240131 is an integer (int). Pass str(...) of it; with render_template_as_native_obj"
        )

    @pytest.mark.parametrize("text", ["9007199254740993", "1e999", "-1e999"])
    def test_a_number_out_of_range_is_refused_as_a_text_too(self, text: str) -> None:
        assert "'x' holds " in refused_value("NUMBER_DOUBLE", text)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Secret:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class TestPythonValues:
    @pytest.mark.parametrize(
        ("kind", "value", "found"),
        [
            ("LIST", (1, (2, 3)), [1, [2, 3]]), ("STRUCT", types.MappingProxyType({"a": (1,)}), {"a": [1]}),
            ("STRING", Colour.RED, "red"), ("NUMBER_INTEGER", Level.HIGH, 3), ("NUMBER_DOUBLE", np.float64(0.1), 0.1),
            ("STRING", np.str_("a"), "a"), ("STRUCT", {Colour.RED: 1}, {"red": 1}), ("LIST", [None, True], [None, True]),
        ],
    )  # fmt: skip
    def test_what_is_plainly_the_same_in_json_is_sent_so(self, kind: str, value: Any, found: Any) -> None:
        checked = sent(kind, value)
        assert checked == found
        assert type(checked) is type(found)
        assert json.loads(json.dumps(checked)) == found

    @pytest.mark.parametrize(
        ("value", "remedy"),
        [
            (np.int64(3), "its .tolist()"), (np.array([1, 2]), "its .tolist()"), (np.bool_(True), "its .tolist()"),
            (dt.date(2024, 1, 31), "its .isoformat()"), (dt.datetime(2024, 1, 31, tzinfo=dt.UTC), "its .isoformat()"),
            (Path("/data"), "str(...) of it"), ({1, 2}, "sorted(...) of it"), (frozenset("a"), "sorted(...) of it"),
            (b"bytes", "its .decode()"), (decimal.Decimal("0.1"), "a text, a number"), (1j, "a text, a number"),
            (object(), "a text, a number"), (uuid.uuid4(), "a text, a number"), (iter([1]), "a text, a number"), (len, "a text, a number"),
            (Secret(), "a text, a number"),
        ],
        ids=lambda value: type(value).__name__,
    )  # fmt: skip
    def test_what_json_does_not_have_is_refused_with_what_to_pass(self, value: Any, remedy: str) -> None:
        for kind, given_value in [(each, value) for each in TYPES] + [("LIST", [value]), ("STRUCT", {"a": value})]:
            line = refused_value(kind, given_value)
            assert line.startswith("'x' holds ")
            assert f"Pass {remedy}" in line

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan"), [math.nan], {"a": [math.inf]}])
    def test_numbers_without_json_are_refused(self, value: Any) -> None:
        kind = {list: "LIST", dict: "STRUCT"}.get(type(value), "NUMBER_DOUBLE")
        assert "which JSON does not have. Leave it out, or pass it as a text" in refused_value(kind, value)

    @pytest.mark.parametrize("key", [1, None, 1.5, True, (1, 2)])
    def test_keys_that_are_no_texts_are_refused(self, key: Any) -> None:
        assert "keys of JSON are texts" in refused_value("STRUCT", {"a": {key: 1}})

    def test_a_list_that_contains_itself_is_refused(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        assert "more than 100 levels of lists and mappings, or contains itself" in refused_value("LIST", loop)

    def test_a_value_is_shown_shortened_and_once(self) -> None:
        secret = "hunter2-" * 100
        line = refused_value("NUMBER_INTEGER", secret)
        assert secret not in line
        assert len(line) < 150

    def test_what_was_given_is_not_changed(self) -> None:
        value = {"a": [(1, 2)]}
        checked = sent("STRUCT", value)
        checked["a"].append(3)
        assert value == {"a": [(1, 2)]}


class TestNames:
    def test_an_unknown_name_gets_the_nearest(self) -> None:
        lines = refused(pipeline(parameter("NUMBER_INTEGER", "n_estimators", optional=True)), {"n_estimator": 3})
        assert lines == ["'n_estimator' is no parameter of it. Did you mean 'n_estimators'?"]

    def test_a_pipeline_without_parameters_says_so(self) -> None:
        assert refused(pipeline(), {"x": 1}) == ["'x' is no parameter of it. There are none."]

    @pytest.mark.parametrize("name", [1, None, ("a",), b"x"])
    def test_a_name_that_is_no_text_is_refused(self, name: Any) -> None:
        assert "names are texts" in refused(pipeline(), {name: 1})[0]

    def test_all_problems_come_at_once_in_the_order_of_the_arguments(self) -> None:
        package = pipeline(parameter("STRING", "a"), parameter("BOOLEAN", "b"), parameter("LIST", "c"), parameter("STRUCT", "d"))
        lines = refused(package, {"b": 1, "e": 1, "c": None, "a": 5})
        assert [each.split(" ")[0] for each in lines] == ["'b'", "'e'", "'c'", "'a'", "'d'"]
        assert lines[-1] == "'d' (STRUCT) is missing, and has no default."

    @pytest.mark.parametrize(("more", "ok"), [({}, False), ({"optional": True}, True), ({"has_default": True}, True)])
    def test_only_what_is_neither_optional_nor_has_a_default_must_be_given(self, more: dict[str, Any], ok: bool) -> None:
        package = pipeline(parameter("STRING", **more))
        assert check_arguments(package, {}) == {} if ok else refused(package, {})

    def test_none_says_that_leaving_it_out_takes_the_default(self) -> None:
        assert refused_value("NUMBER_INTEGER", None, has_default=True, default=3).endswith("Leave it out to take its default, 3.")
        assert refused_value("NUMBER_INTEGER", None, optional=True).endswith("Leave it out.")
        assert refused_value("NUMBER_INTEGER", None).endswith("Give a value.")

    @pytest.mark.parametrize("kind", ["TASK_FINAL_STATUS", "TASK_CONFIG", "PARAMETER_TYPE_ENUM_UNSPECIFIED"])
    def test_a_type_that_no_client_can_give_is_refused(self, kind: str) -> None:
        assert refused_value(kind, {"state": "FAILED"}) == f"'x' is of type {kind}, which no client can give. Leave it out."

    def test_an_artifact_cannot_be_given_and_a_pipeline_that_needs_one_cannot_run(self) -> None:
        needed = pipeline(artifacts={"table": PipelineArtifactInput(name="table", type="system.Dataset")})
        optional = pipeline(artifacts={"table": PipelineArtifactInput(name="table", optional=True)})
        for package, arguments in [(needed, {}), (needed, {"table": "s3://a"}), (optional, {"table": "s3://a"})]:
            (line,) = refused(package, arguments)
            assert line.startswith("'table' is an artifact input")
            assert "import it inside with dsl.importer" in line
        assert check_arguments(optional, {}) == {}

    def test_names_of_300_characters_are_named_whole(self) -> None:
        name = "\u65e5\u672c\u8a9e\u00e9" * 75
        package = pipeline(parameter("STRING", name))
        assert check_arguments(package, {name: "a"}) == {name: "a"}
        assert refused(package, {name: 1})[0].startswith(f"'{name}' wants STRING")
        assert refused(package, {})[0].startswith(f"'{name}' (STRING) is missing")
        assert f"Did you mean {name!r}?" in refused(package, {name + "x": "a", name: "a"})[0]

    def test_a_thousand_unknown_names_are_all_named_and_soon(self) -> None:
        package = pipeline(*(parameter("STRING", f"parameter_{index}", optional=True) for index in range(500)))
        lines = refused(package, {f"parameter-{index}": 1 for index in range(1000)})
        assert len(lines) == 1000
        assert "Did you mean" in lines[0]
        assert sum(map(len, lines)) < 100_000


class TestLiterals:
    @pytest.mark.parametrize(
        ("kind", "literals", "good", "bad"),
        [
            ("STRING", ("dev", "prod"), ["dev", "prod"], ["", "Dev", "test"]),
            ("NUMBER_INTEGER", (1, 2), [1, 2.0, "2"], [3, 1.5, "3"]),
            ("NUMBER_DOUBLE", (0.5, 1.0), [0.5, 1, "1.0"], [0.6, 0]),
            ("BOOLEAN", (True,), [True, "true"], [False, "False"]),
            ("LIST", ([1, {"a": True}],), [[1, {"a": True}], (1.0, {"a": True})], [[1, {"a": 1}], [True, {"a": True}], [1], []]),
            ("STRUCT", ({"a": 1, "b": None},), [{"b": None, "a": 1.0}], [{"a": 1}, {"a": 1, "b": 0}]),
        ],
    )
    def test_only_the_allowed_values_pass(self, kind: str, literals: tuple[Any, ...], good: list[Any], bad: list[Any]) -> None:
        for value in good:
            sent(kind, value, literals=literals)
        for value in bad:
            assert f"; allowed are {', '.join(map(repr, literals))}." in refused_value(kind, value, literals=literals)

    def test_they_are_read_from_the_package(self) -> None:
        text = (PACKAGES / "every_type.yaml").read_text()
        head, root = text.split("\nroot:\n")
        root = root.replace(
            "      kind:\n        parameterType",
            "      kind:\n        literals:\n        - a\n        - b\n        parameterType",
        )
        package = read_package(f"{head}\nroot:\n{root}", source="churn.yaml")
        assert package.parameters["kind"].literals == ("a", "b")
        given_values = {"text": "t", "number": 1, "rate": 1.5, "flag": True, "items": [1], "settings": {}}
        assert check_arguments(package, given_values | {"kind": "b"})["kind"] == "b"
        (line,) = refused(package, given_values | {"kind": "c"})
        assert line == "'kind' is 'c'; allowed are 'a', 'b'."


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class TestAnyValue:
    @given(st.sampled_from(TYPES), JSON)
    @settings(max_examples=500, deadline=None)
    def test_it_goes_through_unchanged_or_is_refused_by_the_name_of_its_parameter(self, kind: str, value: Any) -> None:
        try:
            found = sent(kind, value)
        except ConfigError as error:
            assert re.search(r"\n- 'x' (wants|holds|has) ", str(error))  # noqa: PT017
            return
        assert json.loads(json.dumps(found, allow_nan=False).encode("utf-8")) == found
        if not isinstance(value, str) or kind == "STRING":
            assert found == value
            assert type(found) is type(value)
        assert json.loads(json.dumps(found), parse_int=float) == json.loads(json.dumps(found)), (
            "what a server of doubles gives back"
        )


def malformed() -> list[tuple[str, Any]]:
    """Arguments that must be refused: every type, in every wrong shape, by itself and inside."""
    wrong: dict[str, list[Any]] = {
        "STRING": [0, 1, -1, 20240131, 1e300, 1.5, True, False, [], ["a"], {}, {"a": 1}, (), ("a",)],
        "NUMBER_INTEGER": [
            "",
            "a",
            "-",
            "--1",
            "1-",
            "1a",
            "\u0661",
            "\u00b2",
            "[1]",
            "1;2",
            "true",
            "1.5",
            "1e3",
            " 1",
            "1 ",
            "01",
            "0x1",
            "1,0",
            "None",
            "nan",
            True,
            False,
            [],
            [1],
            {},
            (1,),
        ],
        "NUMBER_DOUBLE": ["", "a", ".5", "5.", " 1", "0,5", "None", "nan", "inf", "1e400", True, False, [], [0.5], {}, (0.5,)],
        "BOOLEAN": [
            "",
            "yes",
            "y",
            "tRue",
            "[true]",
            "null",
            "T",
            "F",
            "no",
            "TRUE",
            "1",
            "0",
            "on",
            "None",
            0,
            1,
            -1,
            0.0,
            1.0,
            [],
            [True],
            {},
        ],
        "LIST": ["", "a", "1", "{}", "[1", "['a']", "[nan]", "None", 0, 1.5, True, {}, {"a": 1}],
        "STRUCT": ["", "a", "1", "[]", "{1}", "{'a': 1}", "None", 0, 1.5, True, [], [{}], ()],
    }
    never = [
        None, math.nan, math.inf, -math.inf, 2**53 + 1, -(2**60), 10**5000, b"", b"a", set(), {1}, 1j, object(), len, Path(),
        dt.date(2024, 1, 1), dt.timedelta(1), decimal.Decimal(1), uuid.UUID(int=0), "\U0001f680", "\ud800", range(3), Secret(),
        np.int64(1), np.array([1]),
    ]  # fmt: skip
    cases = [(kind, value) for kind, values in wrong.items() for value in values]
    cases += [(kind, value) for kind in TYPES for value in never]
    inside = [each for each in never if each is not None]
    cases += [("LIST", [value]) for value in inside] + [("LIST", (1, [2, value])) for value in inside]
    cases += [("LIST", [{"a": {"b": value}}]) for value in inside] + [("STRUCT", {"a": value}) for value in inside]
    cases += [("STRUCT", {"a": {"b": [1, value]}}) for value in inside] + [("STRUCT", {"a": (value,)}) for value in inside]
    cases += [("STRUCT", {key: 1}) for key in (1, 1.5, None, True, (1,), b"a", "\U0001f680", "\udfff", frozenset())]
    cases += [("STRUCT", {"a": [{key: 1}]}) for key in (1, 1.5, None, True, (1,), b"a", "\U0001f680", "\udfff", frozenset())]
    cases += [("LIST", json.loads("[" * depth + "]" * depth)) for depth in range(102, 190)]
    return cases


class TestMalformedArguments:
    def test_there_are_500_of_them(self) -> None:
        assert len(malformed()) >= 500

    def test_each_is_refused_by_name_in_one_short_line(self) -> None:
        for kind, value in malformed():
            line = refused_value(kind, value)
            assert line.startswith("'x' ")
            assert len(line) < 450
            assert "\n" not in line
            assert "Traceback" not in line

    def test_all_at_once_they_are_all_named(self) -> None:
        cases = malformed()
        package = pipeline(*(parameter(kind, f"p{index}") for index, (kind, _) in enumerate(cases)))
        lines = refused(package, {f"p{index}": value for index, (_, value) in enumerate(cases)})
        assert [each.split(" ")[0] for each in lines] == [f"'p{index}'" for index in range(len(cases))]

    def test_beside_good_ones_only_they_are_named(self) -> None:
        package = pipeline(*(parameter(kind, f"good_{kind}") for kind in TYPES), parameter("STRING", "bad"))
        lines = refused(package, {f"good_{kind}": VALUES[kind] for kind in TYPES} | {"bad": 1})
        assert [each.split(" ")[0] for each in lines] == ["'bad'"]


class TestTheSizeOfARun:
    def test_what_fits_into_no_kubernetes_is_refused_before_it_is_sent(self) -> None:
        with pytest.raises(ConfigError, match=r"cannot run: .* takes 3145729 bytes, and Kubernetes takes at most 3145728"):
            check_run_size(pipeline(size=(3 << 20) - 13), {"x": "a" * 3 + "\u00e9"})
        check_run_size(pipeline(size=(3 << 20) - 14), {"x": "a" * 3 + "\u00e9"})
