"""Policies compose, keys are compared part by part, an entry that is not whole is no entry."""

from __future__ import annotations

import json
import zlib
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.models.cache import SHOWN_LENGTH, Cache, CacheEntry, CacheKey, CachePart, changes, json_keeps, shorten
from airflow_ml_provider.models.reference import ArtifactRef

DIGESTS = [letter * 64 for letter in "0123456789abcdef"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
parts = st.builds(
    CachePart, digest=st.sampled_from(DIGESTS), shown=st.text(max_size=SHOWN_LENGTH).map(shorten)
)  # fmt: skip
keys = st.builds(CacheKey, parts=st.dictionaries(st.text(alphabet="ab c", max_size=4), parts, max_size=4))


def key(**shown: str) -> CacheKey:
    """Parts whose digest is made of what they show."""
    return CacheKey(
        parts={name: CachePart(digest=f"{zlib.crc32(text.encode()):064x}", shown=text) for name, text in shown.items()}
    )


def entry(**more) -> CacheEntry:
    made = key(code="1f2e", salt="x")
    given = {
        "key": made.digest,
        "parts": made.parts,
        "dag_id": "retrain",
        "task_id": "features",
        "dag_run_id": "nightly",
        "try_number": 1,
        "run_id": "abc",
        "made_at_ms": 5,
        "outputs": {"table": ArtifactRef(type="Dataset", name="table", uri="runs:/abc/table.csv", sha256="a" * 64, size=3)},
    }
    return CacheEntry(**(given | more))


class TestPolicy:
    def test_what_the_second_sets_wins_and_the_rest_stays(self):
        both = Cache(salt="v1", code=False, max_age=timedelta(days=1)) | Cache(salt="v2", code=True)
        assert both == Cache(salt="v2", code=True, max_age=timedelta(days=1))

    def test_what_is_set_to_its_default_wins_too(self):
        assert (Cache(verify="size", inputs=False, salt="x") | Cache(verify="digest", inputs=True, salt="")) == Cache()

    def test_names_are_united_and_extras_merged(self):
        both = Cache(packages=["a", "b"], ignore=["x"], extras={"one": 1, "two": 2}) | Cache(
            packages=["b", "c"], ignore=["y"], extras={"two": 3}
        )
        assert (both.packages, both.ignore, both.extras) == (("a", "b", "c"), ("x", "y"), {"one": 1, "two": 3})

    def test_composing_is_associative_and_the_empty_one_changes_nothing(self):
        one, two, three = Cache(packages=["a"], salt="1"), Cache(extras={"x": 1}, code=False), Cache(salt="2", ignore=["p"])
        assert (one | two) | three == one | (two | three)
        assert one | Cache() == one == Cache() | one

    def test_what_is_written_for_a_step_is_read(self):
        policy = Cache(salt="v")
        assert [Cache.read(each) for each in (None, False, True, policy)] == [None, None, Cache(), policy]
        with pytest.raises(ConfigError, match=r"cache='yes' is no policy\. Use True"):
            Cache.read("yes")

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ({"package": ["x"]}, "Cache has no field 'package'. There are: inputs, "),
            ({"packages": "scikit-learn"}, "Write ['scikit-learn']"),
            ({"ignore": "label"}, "Write ['label']"),
            ({"max_age": timedelta(0)}, "Cache: max_age="),
            ({"verify": "none"}, "Cache: verify='none'"),
            ({"extras": {"a": {1, 2}}}, "extras['a']={1, 2} is not plain JSON"),
            ({"extras": {"a": (1, 2)}}, "is not plain JSON"),
        ],
    )
    def test_a_wrong_field_is_refused_in_words(self, wrong, told):
        with pytest.raises(ConfigError) as error:
            Cache(**wrong)
        assert told in str(error.value)

    def test_a_set_of_names_is_the_same_in_every_process(self):
        assert Cache(packages={"c", "a", "b"}).packages == ("a", "b", "c")


class TestKey:
    @settings(deadline=None)
    @given(key=keys)
    def test_the_order_of_parts_does_not_matter(self, key):
        assert CacheKey(parts=dict(reversed(key.parts.items()))).digest == key.digest

    @settings(max_examples=100, deadline=None)
    @given(one=keys, two=keys)
    def test_other_names_or_digests_give_another_key_and_what_is_shown_does_not(self, one, two):
        def told(key):
            return {name: part.digest for name, part in key.parts.items()}

        assert (one.digest == two.digest) == (told(one) == told(two)) == (changes(one, two) == [])

    def test_changes_are_told_part_by_part(self):
        before = key(**{"input features": "3f2a91bc", "parameter max_iter": "300", "image": "a@sha256:1", "salt": "x"})
        now = key(**{"package x": "1", "input features": "91bc03ee", "parameter max_iter": "400", "salt": "x"})
        assert changes(now, before) == [
            "package x: new",
            "input features: 3f2a91bc -> 91bc03ee",
            "parameter max_iter: 300 -> 400",
            "image: gone",
        ]

    def test_what_looks_alike_is_told_by_digest(self):
        now, before = (CacheKey(parts={"parameter token": CachePart(digest=each, shown="***")}) for each in DIGESTS[1:3])
        assert changes(now, before) == ["parameter token: 22222222 -> 11111111"]


class TestEntry:
    @settings(deadline=None)
    @given(result=values, extra=st.dictionaries(st.text(), values, max_size=2))
    def test_it_comes_back_as_it_was(self, result, extra):
        made = entry(result=result, extra=extra, model_ids={"model": "m-1"}, map_index=3)
        read = CacheEntry.from_text(made.to_text())
        assert repr(read) == repr(made)  # NaN is not equal to itself

    def test_the_order_of_a_result_stays(self):
        assert list(CacheEntry.from_text(entry(result={"b": 1, "a": 2}).to_text()).result) == ["b", "a"]

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_a_torn_or_altered_file_is_never_read_as_another_entry(self, data):
        text = entry().to_text().encode()
        if data.draw(st.booleans(), "torn"):
            broken = text[: data.draw(st.integers(0, len(text) - 1), "length")]
        else:
            at = data.draw(st.integers(0, len(text) - 1), "at")
            broken = text[:at] + bytes([data.draw(st.integers(0, 255), "byte")]) + text[at + 1 :]
        try:
            read = CacheEntry.from_text(broken)
        except ArtifactError as error:
            assert str(error).startswith("an entry of the cache cannot be read: ")  # noqa: PT017
        else:
            assert read == entry()  # another blank between two words
            assert len(broken) == len(text)

    @pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, "\x00", b"\xff\xfe"])
    def test_what_is_no_entry_at_all_is_told(self, text):
        with pytest.raises(ArtifactError, match="cannot be read"):
            CacheEntry.from_text(text)

    @pytest.mark.parametrize(
        "change", [{"version": 2}, {"key": "0" * 64}, {"parts": {}}, {"surplus": 1}, {"run_id": ""}, {"made_at_ms": 10**18}]
    )
    def test_another_version_or_key_is_refused_though_it_is_whole(self, change):
        import hashlib

        plain = json.loads(entry().to_text()) | change
        del plain["sha256"]
        text = json.dumps(plain | {"sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()})
        with pytest.raises(ArtifactError):
            CacheEntry.from_text(text)

    @pytest.mark.parametrize("result", [{1: 2}, (1,), {1}, b"x", object(), [float], pytest.param(10**5000, id="long")])
    def test_a_result_that_json_would_change_is_refused(self, result):
        assert not json_keeps(result)
        with pytest.raises(ValueError, match="result is not a value that JSON keeps"):
            entry(result=result)

    def test_a_value_that_contains_itself_is_not_kept(self):
        circle: list[object] = []
        circle.append(circle)
        assert not json_keeps(circle)


@settings(deadline=None)
@given(st.text())
def test_what_is_shown_is_one_short_line_that_any_file_takes(text):
    shown = shorten(text)
    assert len(shown) <= SHOWN_LENGTH
    assert "\n" not in shown
    shown.encode()


def test_the_middle_of_a_long_text_is_left_out():
    assert shorten("a" * 50 + "\n" + "b" * 50) == "a" * 38 + "..." + "b" * 38
    assert shorten("\ud800") == "\\ud800"
