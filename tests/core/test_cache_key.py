"""Keys: equal for equal facts in any process and on any platform, and for no others."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import os
import subprocess
import sys
import threading
import uuid
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.cache_key import InputFact, KeyFacts, check_policy, installed, make_key, named, value_part
from airflow_ml_provider.core.canonical import canonical
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.cache import Cache, CachePart, changes
from airflow_ml_provider.models.reference import ArtifactRef


class Size(enum.Enum):
    SMALL = 1
    LARGE = "large"


class Bit(enum.IntFlag):
    ONE = 1
    TWO = 2


@dataclasses.dataclass
class Window:
    days: object
    name: str = ""


class Options(pydantic.BaseModel):
    depth: int = 3
    rate: float = 0.1


def moments(**more):
    zones = st.none() | st.just(dt.UTC) | st.just(dt.timezone(dt.timedelta(hours=2)))
    return st.datetimes(timezones=zones, **more)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.dates(),
    moments(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.sampled_from([*Size, *Bit, Bit.ONE | Bit.TWO, Path("a/b"), PurePosixPath("/x")]),
    st.builds(Options, depth=st.integers(), rate=st.floats(allow_nan=False)),
)
hashable = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.sampled_from([*Size]))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.builds(Window, inner, st.text(max_size=2)),
    ),
    max_leaves=6,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def same(one, two):
    """What a step could tell apart is not the same; an oracle that shares nothing with the code."""
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if type(one) is not type(two):
        return False
    if isinstance(one, dict | frozenset):
        ones, twos = (list(each.items()) if isinstance(each, dict) else list(each) for each in (one, two))
        return len(ones) == len(twos) and all(any(same(each, other) for other in twos) for each in ones)
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(two)) or (one == two and math.copysign(1, one) == math.copysign(1, two))
    if isinstance(one, Window | Options):
        return same(vars(one), vars(two))
    return one == two if not isinstance(one, decimal.Decimal | dt.datetime) else repr(one) == repr(two)


def again(value):
    """An equal value that shares nothing with the first, its dictionaries filled the other way round."""
    if isinstance(value, list | tuple):
        return tuple(map(again, value)) if isinstance(value, list) else list(map(again, value))
    if type(value) is dict:
        return {key: again(each) for key, each in reversed(value.items())}
    if isinstance(value, frozenset):
        return frozenset(reversed(list(value)))
    if isinstance(value, Window):
        return Window(again(value.days), value.name)
    return value


class TestValues:
    @settings(max_examples=60, deadline=None)
    @given(values)
    def test_equal_values_are_one_text_whatever_the_order(self, value):
        text = canonical(value)
        assert text == canonical(again(value))
        assert text.isascii()
        json.loads(text)

    @settings(max_examples=60, deadline=None)
    @given(values, values)
    def test_other_values_are_another_text(self, one, two):
        assert (canonical(one) == canonical(two)) == same(one, two)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_single_change_deep_inside_is_another_text(self, data):
        value = data.draw(values)
        old, new = data.draw(scalars), data.draw(scalars)
        if same(old, new):
            return
        inside = data.draw(st.sampled_from(["list", "dict", "set", "object", "key"]))

        def wrap(each):
            if inside == "list":
                return [value, [1, each]]
            if inside == "dict":
                return {"a": value, "b": {"c": each}}
            if inside == "object":
                return {"a": [Window(each, "x"), value]}
            return {(each,): value} if inside == "key" else [value, {(each, 1)}]

        if inside in ("key", "set") and isinstance(old, Options) | isinstance(new, Options):
            return
        assert canonical(wrap(old)) != canonical(wrap(new))

    @pytest.mark.parametrize(
        "apart",
        [
            (1, 2**32 + 1, 1.0, True, "1", b"1", decimal.Decimal(1), "0x1", "True", Bit.ONE, 1 + 0j),
            (0, 0.0, -0.0, False, None, "", b"", [], {}, set(), "None"),
            (["ab"], ["a", "b"], ["a,b"], [["a", "b"]], ['a","b'], ["a", ["b"]]),
            ({"a": "b"}, {"a": {"b": None}}, [["a", "b"]], {("a", "b")}, OrderedDict(a="b")),
            ({1: 2}, {"1": 2}, {1.0: 2}, {True: 2}),
            (float("inf"), float("-inf"), float("nan"), "nan"),
            (Path("a"), "a", PurePosixPath("b")),
            (dt.date(2024, 1, 1), dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "2024-01-01"),  # noqa: DTZ001
            (dt.timedelta(days=1), dt.timedelta(hours=23), 86400),
            (Size.SMALL, Size.LARGE, 1, "SMALL"),
            (uuid.UUID(int=1), str(uuid.UUID(int=1))),
            (Options(), Options(depth=4), {"depth": 3, "rate": 0.1}, Window(3), Window(3, "x")),
            (range(3), range(4), [0, 1, 2]),
            ("é", "e\u0301", "\ud800"),
        ],
    )
    def test_what_a_step_can_tell_apart_is_told_apart(self, apart):
        assert len({canonical(each) for each in apart}) == len(apart)

    def test_lists_and_tuples_are_one_because_json_makes_them_one(self):
        assert canonical([1, (2, [3])]) == canonical((1, [2, (3,)]))

    def test_a_path_is_the_same_on_every_platform(self):
        assert canonical(PureWindowsPath("a\\b")) == canonical(PurePosixPath("a/b"))

    def test_an_ordered_dictionary_keeps_its_order(self):
        assert canonical(OrderedDict(a=1, b=2)) != canonical(OrderedDict(b=2, a=1))

    def test_a_class_of_a_dag_file_is_the_same_on_every_worker(self):
        made = [type("Kind", (Window,), {"__module__": f"unusual_prefix_{letter * 40}_dag"}) for letter in "ab"]
        one, two = (canonical(dataclasses.dataclass(each)(3)) for each in made)
        assert one == two

    def test_what_was_set_beside_the_fields_counts(self):
        window = Window(1)
        window.more = 2
        assert canonical(window) != canonical(Window(1))

    @pytest.mark.parametrize("value", [object(), threading.Lock(), lambda: 1, iter([]), int, sys, type("S", (str,), {})("x")])
    def test_anything_else_is_refused_with_the_place_and_the_remedy(self, value):
        with pytest.raises(ConfigError) as told:
            canonical({"a": [1, {"b": value}]}, "parameter 'grid'")
        assert f"parameter 'grid'['a'][1]['b'] is a {type(value).__qualname__}" in str(told.value)
        for remedy in ("Cache(ignore=[...])", "plain values", "Cache(extras={...})", "parameters=False"):
            assert remedy in str(told.value)

    def test_what_contains_itself_is_refused_with_the_place(self):
        circle = {"a": [1]}
        circle["a"].append(circle)
        with pytest.raises(ConfigError, match=r"value\['a'\]\[1\] contains itself"):
            canonical(circle)
        window = Window(1)
        window.days = window
        with pytest.raises(ConfigError, match=r"value\.days contains itself"):
            canonical(window)

    def test_what_is_there_twice_does_not_contain_itself(self):
        one = [1]
        assert canonical([one, one]) == canonical([[1], [1]])

    def test_what_has_no_end_in_sight_is_refused(self):
        deep = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(ConfigError, match="nested too deeply"):
            canonical(deep)


def ref(digest="a", **more) -> ArtifactRef:
    return ArtifactRef(**{"type": "Dataset", "name": "x", "uri": "runs:/1/x.csv", "sha256": digest * 64} | more)


POLICY = Cache(packages=["pytest"], extras={"grid": [1, 2]}, salt="v1")
FACTS = KeyFacts(
    inputs={
        "raw": InputFact(ref(), ".csv", metadata={"rows": 3}),
        "many": [InputFact(ref("b")), InputFact(ref("c"))],
        "old": None,
    },
    parameters={"rounds": 300, "grid": {"a": [1]}, "token": "secret"},
    code={"code": CachePart(digest="d" * 64, shown="dddddddd"), "code of f": CachePart(digest="e" * 64, shown="eeeeeeee")},
    outputs={"model": ["Model", ""]},
    image="repo/image@sha256:1",
    command=["python", "-m", "train"],
    environment={"MODE": "fast"},
    pipeline={"tasks": [1]},
)


def facts(**more) -> KeyFacts:
    return dataclasses.replace(FACTS, **more)


KEY = make_key(POLICY, FACTS)
CHANGED = {
    "the digest of an input": (facts(inputs=FACTS.inputs | {"raw": InputFact(ref("f"), ".csv", metadata={"rows": 3})}), "input raw: "),
    "its type": (facts(inputs=FACTS.inputs | {"raw": InputFact(ref(type="Model"), ".csv", metadata={"rows": 3})}), "input raw: "),
    "the ending of its name": (facts(inputs=FACTS.inputs | {"raw": InputFact(ref(), ".tsv", metadata={"rows": 3})}), "input raw: "),
    "file or directory": (facts(inputs=FACTS.inputs | {"raw": InputFact(ref(), ".csv", directory=True, metadata={"rows": 3})}), "input raw: "),
    "its metadata": (facts(inputs=FACTS.inputs | {"raw": InputFact(ref(), ".csv", metadata={"rows": 4})}), "input raw metadata: {'rows': 3} -> {'rows': 4}"),
    "its metadata are gone": (facts(inputs=FACTS.inputs | {"raw": InputFact(ref(), ".csv")}), "input raw metadata: gone"),
    "the order of many": (facts(inputs=FACTS.inputs | {"many": FACTS.inputs["many"][::-1]}), "input many: bbbbbbbb, cccccccc -> cccccccc, bbbbbbbb"),
    "one of many": (facts(inputs=FACTS.inputs | {"many": FACTS.inputs["many"][:1]}), "input many: "),
    "a list of one and one": (facts(inputs=FACTS.inputs | {"old": [InputFact(ref())]}), "input old: None -> aaaaaaaa"),
    "none of many and nothing": (facts(inputs=FACTS.inputs | {"old": []}), "input old: "),
    "an input that was not given": (facts(inputs=FACTS.inputs | {"old": InputFact(ref("b"))}), "input old: None -> bbbbbbbb"),
    "an input with another name": (facts(inputs=FACTS.inputs | {"older": None}), "input older: new"),
    "a parameter": (facts(parameters=FACTS.parameters | {"rounds": 400}), "parameter rounds: 300 -> 400"),
    "the type of a parameter": (facts(parameters=FACTS.parameters | {"rounds": 300.0}), "parameter rounds: 300 -> 300.0"),
    "a value deep in a parameter": (facts(parameters=FACTS.parameters | {"grid": {"a": [2]}}), "parameter grid: "),
    "another parameter": (facts(parameters=FACTS.parameters | {"more": None}), "parameter more: new"),
    "the code": (facts(code=FACTS.code | {"code": CachePart(digest="0" * 64, shown="0")}), "code: dddddddd -> 0"),
    "code that it uses": (facts(code={"code": FACTS.code["code"]}), "code of f: gone"),
    "an output": (facts(outputs={"model": ["Dataset", ""]}), "outputs: "),
    "the image": (facts(image="repo/image@sha256:2"), "image: repo/image@sha256:1 -> repo/image@sha256:2"),
    "the command": (facts(command=["python", "-m train"]), "command: "),
    "an empty command": (facts(command=[]), "command: "),
    "a variable": (facts(environment={"MODE": "slow"}), "environment MODE: "),
    "the pipeline": (facts(pipeline={"tasks": [2]}), "pipeline: "),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_any_single_fact_gives_another_key_and_says_which(change):
    other, told = CHANGED[change]
    now = make_key(POLICY, other)
    assert now.digest != KEY.digest
    found = changes(now, KEY)
    assert len(found) == 1
    assert found[0].startswith(told)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Cache(salt="v2"), "salt: v1 -> v2"),
        (Cache(extras={"grid": [2, 1]}), "extra grid: [1, 2] -> [2, 1]"),
        (Cache(extras={"more": None}), "extra more: new"),
        (Cache(packages=["hypothesis"]), "package hypothesis: new"),
        (Cache(ignore=["rounds"]), "parameter rounds: gone"),
        (Cache(ignore=["old"]), "input old: gone"),
        (Cache(image=False), "image: gone"),
        (Cache(metadata=False), "input raw metadata: gone"),
    ],
)
def test_any_single_word_of_the_policy_gives_another_key(policy, told):
    assert changes(make_key(POLICY | policy, FACTS), KEY) == [told]


def test_what_the_policy_leaves_out_is_not_there():
    bare = make_key(Cache(inputs=False, parameters=False, code=False, image=False), facts(environment={}))
    assert list(bare.parts) == ["outputs"]


@pytest.mark.parametrize(
    "policy", [Cache(refresh=True), Cache(unreadable="error"), Cache(verify="size"), Cache(max_age=dt.timedelta(1))]
)
def test_what_is_done_with_a_result_is_no_part_of_its_key(policy):
    assert make_key(POLICY | policy, FACTS) == KEY


def test_where_an_input_lies_and_who_made_it_is_no_part_of_the_key():
    moved = ref(uri="s3://bucket/y.csv", name="y", run_id="2", size=5, metadata="s3://m.json")
    assert make_key(POLICY, facts(inputs=FACTS.inputs | {"raw": InputFact(moved, ".csv", metadata={"rows": 3})})) == KEY


def test_no_variable_and_no_password_in_an_address_is_shown():
    url = "postgresql://ml:hun'ter2@db:5432/x"
    secret = ("hun'ter2", "abc123", "ml:", "20241231")
    key = make_key(
        Cache(extras={"db": {"url": [url]}}),
        facts(
            environment={"DATABASE_URL": url, "WANDB": "abc123", "GRID": {"from": "abc123"}, "PASS": "abc20241231"},
            command=["sh", "-c", f"train --db={url} --mail=a@b"],
            parameters={"db": url},
            inputs={"raw": InputFact(ref(), metadata={"db": url})},
        ),
    )
    assert not [(name, part) for name, part in key.parts.items() for each in secret if each in part.shown]
    assert key.parts["environment WANDB"].shown == key.parts["environment WANDB"].digest[:8]
    assert key.parts["command"].shown == "['sh', '-c', 'train --db=postgresql://***@db:5432/x --mail=a@b']"
    assert key.parts["parameter db"].shown == "postgresql://***@db:5432/x"


def test_no_metadata_and_empty_ones_are_the_same():
    one, two = (make_key(Cache(), KeyFacts(inputs={"raw": InputFact(ref(), metadata=each)})) for each in (None, {}))
    assert one == two


def test_one_and_a_list_of_one_are_two_things():
    assert make_key(Cache(), KeyFacts(inputs={"raw": InputFact(ref())})) != make_key(
        Cache(), KeyFacts(inputs={"raw": [InputFact(ref())]})
    )


def test_no_command_and_an_empty_one_are_two_things():
    assert make_key(Cache(), KeyFacts()) != make_key(Cache(), KeyFacts(command=[]))


def test_an_ignored_value_may_be_anything():
    make_key(Cache(ignore=["x", "y"]), KeyFacts(parameters={"x": object()}, inputs={"y": InputFact(ref(sha256=None))}))


def test_an_input_without_a_digest_is_refused():
    with pytest.raises(ConfigError, match=r"input 'raw' has no digest on record .*ignore=\['raw'\].*extras"):
        make_key(Cache(), KeyFacts(inputs={"raw": InputFact(ref(sha256=None))}))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=3), plain, max_size=3), st.dictionaries(st.text(max_size=3), plain, max_size=3))
def test_parameters_give_one_key_only_when_they_are_the_same(one, two):
    keys = [make_key(Cache(), KeyFacts(parameters=each)) for each in (one, two)]
    assert (keys[0].digest == keys[1].digest) == same(one, two)
    assert make_key(Cache(), KeyFacts(parameters=dict(reversed(one.items())))).digest == keys[0].digest
    assert len(keys[0].parts) == len(one) + 1


@settings(max_examples=60, deadline=None)
@given(
    *[
        st.lists(
            st.tuples(st.sampled_from(["parameter", "extra", "input"]), st.text("ab \"\\'meta", max_size=9)),
            max_size=4,
            unique=True,
        )
    ]
    * 2
)
def test_no_two_things_have_one_name(one, two):
    kinds = [{named(*each) for each in some} for some in (one, two)]
    assert (kinds[0] == kinds[1]) == (set(one) == set(two))
    assert named("input", "a metadata") != named("input", "a") + " metadata"


class TestShown:
    def redact(self, value, name):
        return "***" if "token" in name else value

    def test_secrets_are_not_shown_and_count(self):
        one, two = (make_key(Cache(), facts(parameters={"token": each}), self.redact) for each in ("a", "b"))
        assert one.parts["parameter token"].shown == "***"
        assert one.digest != two.digest
        assert "secret" not in make_key(Cache(), FACTS, self.redact).model_dump_json()

    def test_what_redaction_cannot_look_into_is_not_shown(self):
        part = value_part(Window("secret"), "x", self.redact)
        assert part.shown == f"Window {part.digest[:8]}"

    def test_how_a_value_is_shown_does_not_change_the_key(self):
        assert make_key(POLICY, FACTS, self.redact).digest == KEY.digest


class TestPolicy:
    def test_a_package_has_one_name_however_it_is_written(self):
        assert list(installed(["PyTest", "pytest"])) == ["pytest"]
        assert make_key(Cache(packages=["Hypothesis"]), FACTS) == make_key(Cache(packages=["hypothesis"]), FACTS)

    @pytest.mark.parametrize("name", ["no-such-thing", "", "sklearn"])
    def test_a_package_that_is_not_installed_is_refused(self, name):
        with pytest.raises(ConfigError, match="no such distribution is installed"):
            make_key(Cache(packages=[name]), FACTS)

    def test_a_policy_that_does_not_fit_is_refused(self):
        check_policy(Cache(ignore=["raw", "rounds"], packages=["x"]), ["raw"], ["rounds"])
        with pytest.raises(ConfigError, match=r"ignore=\['round'\].*There are: \['raw', 'rounds'\]"):
            check_policy(Cache(ignore=["round"]), ["raw"], ["rounds"])
        with pytest.raises(ConfigError, match="the image decides"):
            check_policy(Cache(packages=["x"]), [], [], elsewhere=True)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from airflow_ml_provider.core.canonical import canonical
import dataclasses, datetime as dt, decimal, enum, pathlib, uuid
class Size(enum.Enum):
    SMALL = 1
@dataclasses.dataclass
class Window:
    days: int
    names: frozenset
value = {
    "set": {"a", "b", "c", 1, 2.5, None, True, ("x", "y")}, "frozen": frozenset(map(str, range(50))), "window": Window(3, frozenset("abc")),
    1: [1.5, -0.0, float("nan"), 1e300, 0.1 + 0.2], "when": dt.datetime(2024, 3, 31, 2, 30, tzinfo=dt.timezone.utc), "size": Size.SMALL,
    "rest": [decimal.Decimal("1.10"), uuid.UUID(int=5), pathlib.Path("a/b"), b"\\xff", 2**5000, "\\u00e9\\ud800", {True, "é"}, dt.timedelta(1, 2, 3)],
}
print(canonical(value))
"""


def in_a_process(python: str, seed: str) -> str:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    return subprocess.run([python, "-c", SCRIPT, root], env=environment, capture_output=True, text=True, check=True).stdout


def test_other_processes_give_the_same_text():
    assert len({in_a_process(sys.executable, seed) for seed in ("0", "1", "2")}) == 1
