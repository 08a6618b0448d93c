"""Reading compiled pipelines: what kfp wrote, what people make of it, and what is made to do harm."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.kfp_archive import MAX_BYTES
from airflow_ml_provider.core.kfp_package import read_package, read_spec, shown_source
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_package import ParameterType, PipelinePackage

PACKAGES = Path(__file__).parent / "packages"
GOOD = [
    "every_type.yaml",
    "nested.yaml",
    "wants_artifact.yaml",
    "with_secret.yaml",
    "two_meanings.json",
    "component_month_of.yaml",
]


def read(name: str) -> PipelinePackage:
    return read_package((PACKAGES / name).read_bytes(), source=f"pipelines/{name}")


def made(**changes: Any) -> dict[str, Any]:
    """The smallest pipeline, with changes at its top; what is None is left out."""
    spec: dict[str, Any] = {
        "components": {"comp-a": {"executorLabel": "exec-a"}},
        "deploymentSpec": {"executors": {"exec-a": {"container": {"image": "busybox"}}}},
        "pipelineInfo": {"name": "small"},
        "root": {"dag": {"tasks": {"a": {"componentRef": {"name": "comp-a"}}}}},
        "schemaVersion": "2.1.0",
    } | changes
    return {key: value for key, value in spec.items() if value is not None}


def small(text: str = "", **changes: Any) -> bytes:
    """The smallest pipeline as YAML, with lines behind it."""
    return (yaml.safe_dump(made(**changes)) + text).encode()


def default(scalar: str) -> bytes:
    """A pipeline one of whose parameters has this default, as it stands there."""
    root = {"dag": {}, "inputDefinitions": {"parameters": {"x": {"parameterType": "STRING", "defaultValue": "HERE"}}}}
    return small(root=root).replace(b"HERE", scalar.encode())


def refused(data: bytes | str, source: str = "p.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        read_package(data, source=source)
    message = str(caught.value)
    assert message.startswith(source) or f"archive {source}" in message
    assert len(message) < 700
    return message


def outcome(call: Callable[[], PipelinePackage]) -> PipelinePackage | str:
    """What comes of reading: the pipeline, or the words of a refusal. Any other error is the test's."""
    try:
        return call()
    except ConfigError as error:
        return str(error) or "refused without a word"


def reordered(value: Any) -> Any:
    """The same value with every mapping the other way round."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(each) for each in value] if isinstance(value, list) else value


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


class TestWhatKfpCompiles:
    def test_every_type_comes_with_default_description_and_optionality(self) -> None:
        parameters = read("every_type.yaml").parameters
        types = {name: str(each.type) for name, each in parameters.items()}
        assert types == {
            "text": "STRING", "text_default": "STRING", "maybe": "STRING", "day": "STRING", "clock": "STRING", "kind": "STRING",
            "number": "NUMBER_INTEGER", "number_default": "NUMBER_INTEGER", "size": "NUMBER_INTEGER",
            "rate": "NUMBER_DOUBLE", "rate_default": "NUMBER_DOUBLE", "small": "NUMBER_DOUBLE",
            "flag": "BOOLEAN", "flag_default": "BOOLEAN",
            "items": "LIST", "items_default": "LIST",
            "settings": "STRUCT", "settings_default": "STRUCT",
        }  # fmt: skip
        assert {name for name, each in parameters.items() if each.required} == {
            "text", "number", "rate", "flag", "items", "settings", "kind",
        }  # fmt: skip
        assert parameters["text"].description == "What to show."
        defaults = {name: each.default for name, each in parameters.items() if each.has_default}
        assert defaults == {
            "text_default": "on", "day": "2024-01-31", "clock": "1:30", "number_default": 3, "size": 1, "rate_default": 1,
            "small": 1e-05, "flag_default": False, "items_default": [1, "two", 1.5],
            "settings_default": {"a": {"b": [True, 1.5]}, "on": "yes"},
        }  # fmt: skip
        assert parameters["maybe"].optional
        assert not parameters["maybe"].has_default

    def test_tasks_of_loops_conditions_and_inner_pipelines_are_counted_once_each(self) -> None:
        assert read("nested.yaml").tasks == 10

    def test_an_optional_artifact_input_is_known_as_one(self) -> None:
        table = read("nested.yaml").artifacts["table"]
        assert (table.type, table.optional) == ("system.Dataset", True)
        assert not read("wants_artifact.yaml").artifacts["table"].optional

    def test_what_is_special_to_kubernetes_is_kept_apart_and_sent_beside_the_spec(self) -> None:
        package = read("with_secret.yaml")
        assert package.platform_spec is not None
        assert set(package.platform_spec) == {"platforms"}
        assert package.body == {"pipeline_spec": package.spec, "platform_spec": package.platform_spec}
        assert read("every_type.yaml").body == read("every_type.yaml").spec

    def test_a_compiled_component_is_a_pipeline_of_one_task(self) -> None:
        assert read("component_month_of.yaml").tasks == 1

    def test_a_text_that_the_server_would_read_as_a_number_is_refused_with_line_and_both_ways_out(self) -> None:
        message = refused((PACKAGES / "two_meanings.yaml").read_bytes())
        assert "line 71: 08 without quotes is the number 8 to the server, but kfp writes the text '08' so." in message
        assert "Put it in quotes if it is a text (kfp does so when it compiles to .json); write 8.0" in message

    def test_compiled_to_json_the_same_text_is_a_text(self) -> None:
        parameters = read("two_meanings.json").parameters
        assert (parameters["month"].default, parameters["rate"].default) == ("08", "1e-5")

    def test_a_kubernetes_manifest_of_a_pipeline_is_told_from_a_package(self) -> None:
        assert "Compile without kubernetes_manifest_format" in refused((PACKAGES / "manifest.yaml").read_bytes())


class TestTheDigest:
    @pytest.mark.parametrize("name", GOOD)
    def test_it_does_not_change_with_the_layout(self, name: str) -> None:
        package = read(name)
        documents = [package.spec] + ([package.platform_spec] if package.platform_spec else [])
        texts = [
            package.text,
            "\n---\n".join(json.dumps(reordered(each), indent=3) for each in documents).encode(),
            b"\xef\xbb\xbf# a comment\n---\n" + yaml.safe_dump_all(reversed(documents), indent=6, sort_keys=False).encode(),
        ]
        texts = texts[:2] if name == "two_meanings.json" else texts  # which YAML as kfp writes it cannot say
        assert {read_package(each, source="x").digest for each in texts} == {package.digest}

    @pytest.mark.parametrize("name", GOOD)
    def test_what_the_server_gives_back_has_the_same_one(self, name: str) -> None:
        package = read(name)
        given_back = json.loads(json.dumps(package.body))
        assert read_spec(given_back, source="pipeline 'x', version 'y'").digest == package.digest

    def test_order_quotes_comments_and_the_form_of_numbers_do_not_count(self) -> None:
        one = default("3.0")
        two = (
            b"\xef\xbb\xbf# PIPELINE DEFINITION\n---\n" + yaml.safe_dump(yaml.safe_load(one), sort_keys=False, indent=6).encode()
        )
        assert read_package(one, source="x").digest == read_package(two, source="y").digest
        assert read_package(default("3"), source="x").digest == read_package(default("0x3"), source="x").digest

    @pytest.mark.parametrize(
        ("uploaded", "given_back"), [("1.0e+17", "100000000000000000"), ("1.0", "1"), ("1.0e-05", "0.00001"), ("3", "3.0")]
    )
    def test_numbers_that_the_server_gives_back_in_another_form_are_the_same(self, uploaded: str, given_back: str) -> None:
        text = json.dumps(yaml.safe_load(default("HERE"))).replace('"HERE"', given_back)
        found = read_spec(json.loads(text), source="pipeline 'x'")
        assert found.digest == read_package(default(uploaded), source="x").digest

    def test_any_other_value_counts(self) -> None:
        texts = [
            small(),
            default("a"),
            default("b"),
            default("1"),
            default("'1'"),
            default("true"),
            default("null"),
            default("[]"),
        ]
        assert len({read_package(each, source="x").digest for each in texts}) == len(texts)

    def test_what_is_uploaded_is_plain_ascii_whatever_the_pipeline_says(self) -> None:
        package = read_package(default('"caf\u00e9 \u65e5\u672c \\x7f \\u0085 \\u2028"'), source="x")
        assert package.parameters["x"].default == "caf\u00e9 \u65e5\u672c \x7f \x85 \u2028"
        assert package.text.decode("ascii").rstrip("\n").isprintable()
        assert read_package(package.text, source="x") == package


class TestScalars:
    @pytest.mark.parametrize("case", json.loads((PACKAGES / "scalars.json").read_text()), ids=lambda case: repr(case[0]))
    def test_a_plain_scalar_is_read_as_the_server_reads_it_or_refused(self, case: list[Any]) -> None:
        # The table is what Go's yaml.v3 (3.0.1), with which the server reads, made of each of them.
        found = outcome(lambda: read_package(default(case[0]), source="x"))
        if isinstance(found, str):
            written = yaml.safe_load(f"k: {case[0]}")["k"] if case[1] == "read" else None
            assert "line " in found
            assert case[1] == "refused" or not (written == case[2] and type(written) is type(case[2]))
            return
        value = found.parameters["x"].default
        assert case[1] == "read"
        assert value == case[2] or float(value) == float(case[2])
        assert isinstance(value, bool) == isinstance(case[2], bool)

    @pytest.mark.parametrize(
        "scalar", ["08", "09", "1e-5", "1e3", "0o17", "-.5", "0X1F", "2024-01-31", "2024-1-3", ".inf", ".nan"]
    )
    def test_a_scalar_with_two_meanings_is_fine_in_quotes(self, scalar: str) -> None:
        assert "without quotes" in (told := refused(default(scalar))) or "that JSON does not have" in told
        assert read_package(default(f"'{scalar}'"), source="x").parameters["x"].default == scalar

    @pytest.mark.parametrize("scalar", ["yes", "no", "on", "off", "Yes", "NO", "y", "n", "1:30"])
    def test_what_yaml_1_1_takes_for_something_else_is_a_text(self, scalar: str) -> None:
        assert read_package(default(scalar), source="x").parameters["x"].default == scalar

    def test_digits_beyond_any_number_are_a_text_and_take_no_time(self) -> None:
        assert read_package(default("9" * 100_000), source="x").parameters["x"].default == "9" * 100_000

    @given(st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_any_text_that_kfp_writes_comes_back_or_is_refused(self, text: str) -> None:
        data = small(
            root={"dag": {}, "inputDefinitions": {"parameters": {"x": {"parameterType": "STRING", "defaultValue": text}}}}
        )
        found = outcome(lambda: read_package(data, source="x"))
        if isinstance(found, str):
            assert "without quotes" in found
        else:
            assert found.parameters["x"].default == text


BOMB = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12))
HOSTILE = {
    "a tag that runs code": (b"x: !!python/object/apply:os.system ['true']\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
    "a tag of one's own": (b"x: !secret y\n", "the tag '!secret'"),
    "a tag on a mapping": (b"x: !!map {a: b}\n", "the tag"),
    "a tag on a list": (b"x: !!set [a]\n", "the tag"),
    "a tag that only looks plain": (b"x: !!str 08\n", "the tag"),
    "binary data": (b"x: !!binary aGVsbG8=\n", "the tag"),
    "the same key twice": (b"pipelineInfo: {name: other}\n", "the key 'pipelineInfo' stands twice"),
    "the same key twice, deep": (b"x: {a: {b: 1, c: 2, b: 3}}\n", "the key 'b' stands twice"),
    "the same key twice, in another spelling": (b'x: {a: 1, "\\x61": 2}\n', "the key 'a' stands twice"),
    "a key that is a number": (b"1: x\n", "the key 1 is no text"),
    "a key that is a boolean": (b"x: {true: 1}\n", "the key True is no text"),
    "a key that is nothing": (b"x: {~: 1}\n", "the key None is no text"),
    "a key that is a list": (b"? [a, b]\n: 1\n", "is no text"),
    "a merge key": (b"x: &x {a: 1}\ny:\n  <<: *x\n", "a merge key"),
    "an alias to nothing": (b"x: *nowhere\n", "alias *nowhere"),
    "an alias to itself": (b"x: &x [*x]\n", "alias *x"),
    "a bomb": (f"a0: &a0 lol\n{BOMB}".encode(), "with its aliases written out"),
    "a bomb of one large text": (b"x: &x '" + b"a" * 1_000_000 + b"'\ny: [" + b"*x, " * 100 + b"]\n", "with its aliases written out"),
    "brackets without end": (b"x: " + b"[" * 100_000, "more than 200 levels"),
    "braces without end": (b"x: " + b"{a: " * 100_000, "more than 200 levels"),
    "dashes without end": (b"x:\n" + b"- " * 100_000, "more than 200 levels"),
    "documents without end": (b"---\n" * 100_000, "more than 10 documents"),
    "a second pipeline": (b"---\n" + small(), "holds 2 pipelines"),
    "two platforms": (b"---\nplatforms: {}\n---\nplatforms: {}\n", "2 platform documents"),
    "an open quote": (b"x: 'a\n", "is no YAML"),
    "a tab for a blank": (b"x:\n\ty: 1\n", "is no YAML"),
    "control characters": (b"x: a\x01b\n", "is no YAML"),
    "an unknown directive": (b"...\n%YAML 9.9\n---\n", "is no YAML"),
    "text behind the end": (b"---\njust text\n", "a str, not a mapping"),
}  # fmt: skip


class TestHostileYaml:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_it_is_refused_by_what_it_is_and_soon(self, case: str) -> None:
        text, reason = HOSTILE[case]
        before = time.process_time()
        message = refused(small() + text)
        assert reason in message
        assert time.process_time() - before < 3

    def test_the_line_is_named(self) -> None:
        assert "line 3: the tag '!b'" in refused("pipelineInfo:\n  name: a\n  x: !b c\n")

    def test_an_alias_that_does_no_harm_is_read(self) -> None:
        text = small(deploymentSpec=None) + b"deploymentSpec:\n  a: &a {image: x}\n  b: *a\n"
        assert read_package(text, source="x").spec["deploymentSpec"] == {"a": {"image": "x"}, "b": {"image": "x"}}

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    @settings(max_examples=200, deadline=None)
    def test_no_bytes_whatever_end_in_another_error(self, junk: bytes) -> None:
        for data in (junk, small() + junk, b"PK" + junk, b"\x1f\x8b" + junk):
            assert outcome(lambda data=data: read_package(data, source="x")) != "refused without a word"

    @given(
        st.recursive(
            st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_no_value_in_any_place_of_a_spec_ends_in_another_error(self, junk: Any) -> None:
        places: list[Callable[[Any], dict[str, Any]]] = [
            lambda value: made(pipelineInfo=value),
            lambda value: made(root=value),
            lambda value: made(components=value),
            lambda value: made(components={"a": value}),
            lambda value: made(components={"a": {"dag": {"tasks": value}}}),
            lambda value: made(root={"inputDefinitions": value}),
            lambda value: made(root={"inputDefinitions": {"parameters": value, "artifacts": value}}),
            lambda value: made(root={"inputDefinitions": {"parameters": {"a": value}}}),
            lambda value: made(root={"inputDefinitions": {"artifacts": {"a": {"artifactType": value}}}}),
            lambda value: made(root={"inputDefinitions": {"parameters": {"a": {"parameterType": value, "literals": value}}}}),
            lambda value: {"pipeline_spec": value, "platform_spec": value},
            lambda value: {"pipeline_spec": made(), "platform_spec": value},
        ]
        for place in places:
            assert outcome(lambda place=place: read_spec(place(junk), source="x")) != "refused without a word"


NOT_PACKAGES = {
    "nothing": (b"", "is empty. Compile"),
    "blanks": (b" \n\n", "is empty"),
    "a comment": (b"# nothing\n", "holds 0 pipelines"),
    "a text": (b"just text", "a str, not a mapping"),
    "a list": (b"- a\n- b\n", "a list, not a mapping"),
    "binary": (bytes(range(256)), "is no text in UTF-8"),
    "latin-1": ("name: caf\u00e9".encode("latin-1"), "is no text in UTF-8 (byte 9)"),
    "Python": (b"from kfp import dsl\n\n@dsl.pipeline\ndef churn(): ...\n", "is Python, not what was compiled from it"),
    "a web page": (b"<!DOCTYPE html><html></html>", "is a web page"),
    "kfp 1": (b"apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nspec: {}\n", "is an Argo Workflow, which is what kfp 1 compiled to"),
    "Kubernetes": (b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n", "is a Kubernetes object ('ConfigMap')"),
    "a component": (b"name: Add\ninputs: []\nimplementation: {container: {image: x}}\n", "is a component, not a pipeline"),
    "a job of Vertex": (b"pipelineSpec: {}\nruntimeConfig: {}\n", "is a pipeline job"),
    "a misspelled key": (small(components=None, components_1={}), "unknown key 'components_1'. Did you mean 'components'?"),
    "a newer schema": (small(schemaVersion="9.9.9"), "schema version '9.9.9'"),
    "no schema": (small(schemaVersion=None), "schema version None"),
    "no root": (small(root=None), "has no root"),
    "no info": (small(pipelineInfo=None), "has no name (pipelineInfo.name)"),
    "no name": (small(pipelineInfo={"name": None}), "has no name"),
    "a number for a name": (small(pipelineInfo={"name": 5}), "has no name"),
    "a name in capitals": (small(pipelineInfo={"name": "Bad_Name \u00e9"}), "the pipeline's name (pipelineInfo.name), 'Bad_Name \u00e9'"),
    "a name of 129": (small(pipelineInfo={"name": "a" * 129}), "at most 128"),
    "a list for parameters": (small(root={"inputDefinitions": {"parameters": []}}), "root.inputDefinitions.parameters is a list"),
    "a number for platforms": (small("---\nplatforms: 5\n"), "platforms is a int, not a mapping"),
    "a number for a platform": (small("---\nplatforms: {kubernetes: 5}\n"), "platforms.kubernetes is a int, not a mapping"),
    "only a platform": (b"platforms: {kubernetes: {}}\n", "holds 0 pipelines and 1 platform"),
}  # fmt: skip


class TestWhatIsNoPackage:
    @pytest.mark.parametrize("case", NOT_PACKAGES)
    def test_it_is_told_what_it_is(self, case: str) -> None:
        text, reason = NOT_PACKAGES[case]
        assert reason in refused(text)

    def test_a_name_of_128_characters_is_fine(self) -> None:
        assert read_package(small(pipelineInfo={"name": "a" * 128}), source="x").name == "a" * 128

    def test_a_registered_pipeline_of_kfp_1_is_told_by_its_name_on_the_server(self) -> None:
        with pytest.raises(ConfigError, match=r"^pipeline 'old' is an Argo Workflow"):
            read_spec({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow"}, source="pipeline 'old'")

    def test_a_type_of_tomorrow_is_no_error_before_it_is_given(self) -> None:
        root = {"dag": {}, "inputDefinitions": {"parameters": {"x": {"parameterType": "NUMBER_COMPLEX", "isOptional": True}}}}
        assert read_package(small(root=root), source="x").parameters["x"].type is ParameterType.UNSPECIFIED

    @pytest.mark.parametrize("text", ["print('\U0001f680')", "rocket \\U0001F680", "\\ud83d\\ude80"])
    def test_a_character_of_4_bytes_anywhere_is_refused_since_every_run_would_be_an_orphan(self, text: str) -> None:
        spec = small(deploymentSpec={"executors": {"exec-a": {"container": {"args": ["HERE"]}}}}).replace(
            b"HERE", f'"{text}"'.encode()
        )
        message = refused(spec)
        assert "deploymentSpec.executors.exec-a.container.args[0] holds" in message or "invalid Unicode character" in message

    def test_a_character_of_4_bytes_in_a_comment_is_left_behind(self) -> None:
        assert b"rocket" not in read_package("# rocket \U0001f680\n".encode() + small(), source="x").text

    @pytest.mark.parametrize(
        ("source", "shown"),
        [
            ("https://user:secret@host.example/p.yaml?token=secret#x", "https://host.example/p.yaml"),
            ("s3://conn@bucket/p.yaml", "s3://bucket/p.yaml"),
            ("https://[broken/p.yaml?secret", "https://..."),
            ("pipelines/p.yaml", "pipelines/p.yaml"),
        ],
    )
    def test_no_password_of_an_address_is_shown(self, source: str, shown: str) -> None:
        assert shown_source(source) == shown
        with pytest.raises(ConfigError) as caught:
            read_package(b"", source=source)
        assert str(caught.value).startswith(f"{shown} is empty")


class TestArchives:
    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_pipeline_yaml_is_found_among_others(self, pack: Callable[..., bytes]) -> None:
        data = pack(**{"readme.md": b"x", "component.yaml": b"x: 1", "pipeline.yaml": small()})
        assert read_package(data, source="p.zip").digest == read_package(small(), source="x").digest

    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_else_the_first_file_is_taken_as_the_server_does(self, pack: Callable[..., bytes]) -> None:
        assert read_package(pack(**{"churn.yml": small(), "b.txt": b"x"}), source="p.zip").name == "small"

    @pytest.mark.parametrize("pack", [zipped, tarred])
    @pytest.mark.parametrize("files", [{}, {"a.txt": b"x", "churn.yaml": b"x: 1"}])
    def test_an_archive_without_a_pipeline_is_refused(self, pack: Callable[..., bytes], files: dict[str, bytes]) -> None:
        assert "has no pipeline.yaml, and its first file is" in refused(pack(**files), "p.zip")

    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_a_small_archive_of_something_huge_is_refused(self, pack: Callable[..., bytes]) -> None:
        data = pack(**{"pipeline.yaml": b"#" * (MAX_BYTES + 1)})
        assert len(data) < 100_000
        assert "is larger than 33554432 bytes (32 MiB)" in refused(data, "p.zip")

    def test_a_small_archive_of_many_files_is_not_unpacked_to_its_end(self) -> None:
        data = tarred(**{"a.bin": bytes(8 * MAX_BYTES), "pipeline.yaml": small()})
        tracemalloc.start()
        assert "is larger than" in refused(data, "p.tar.gz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5 * MAX_BYTES

    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_a_broken_archive_is_refused_wherever_it_breaks(self, pack: Callable[..., bytes]) -> None:
        whole = pack(**{"pipeline.yaml": small()})
        for end in range(3, len(whole) - 1, 7):
            try:
                read_package(whole[:end], source="p.zip")
            except ConfigError:
                continue
            assert pack is tarred  # only the zeros behind the file are missing

    def test_plain_yaml_in_gzip_is_no_archive(self) -> None:
        assert "cannot be read: ReadError" in refused(gzip.compress(small()), "p.yaml.gz")

    def test_a_link_in_an_archive_leads_nowhere(self) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            link = tarfile.TarInfo("pipeline.yaml")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        assert "cannot be read: KeyError" in refused(out.getvalue(), "p.tar.gz")


def test_a_dag_file_that_imports_all_this_pays_for_no_yaml_parser() -> None:
    imports = (
        "import airflow_ml_provider.core.kfp_package, airflow_ml_provider.core.kfp_names, airflow_ml_provider.jobs.kfp_source"
    )
    code = f"{imports}, sys; print([each for each in ('yaml', 'httpx', 'airflow', 'tarfile') if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestSize:
    def test_a_package_beyond_the_limit_of_the_server_is_refused_with_the_limit(self) -> None:
        assert "is larger than 33554432 bytes (32 MiB)" in refused(b"#" * (MAX_BYTES + 1))

    def test_10_mb_of_code_are_read_quickly(self) -> None:
        code = "import os  # caf\u00e9\n" * 550_000
        data = small(deploymentSpec={"args": ["HERE"]}).replace(b"HERE", json.dumps(code, ensure_ascii=False).encode())
        assert len(data) > 10_000_000
        before = time.process_time()
        package = read_package(data, source="x")
        assert time.process_time() - before < 4
        assert package.spec["deploymentSpec"]["args"] == [code]

    def test_10_mb_of_small_values_are_read_in_seconds(self) -> None:
        data = (json.dumps(many_tasks(33_000), indent=1)).encode()
        assert len(data) > 10_000_000
        before = time.process_time()
        package = read_package(data, source="x.json")
        assert time.process_time() - before < 8
        assert package.tasks == 33_000

    def test_a_pipeline_of_1000_tasks_is_read_whole(self) -> None:
        package = read_package(yaml.safe_dump(many_tasks(1000)), source="x")
        assert package.tasks == 1000
        assert package.spec == many_tasks(1000)

    def test_names_of_300_characters_and_of_all_scripts_are_kept(self) -> None:
        name = "\u65e5\u672c\u8a9e-caf\u00e9-\u0434\u0430" * 28
        root = {"dag": {"tasks": {name: {}}}, "inputDefinitions": {"parameters": {name: {"parameterType": "STRING"}}}}
        assert len(name) > 300
        assert list(read_package(small(root=root), source="x").parameters) == [name]


def many_tasks(count: int) -> dict[str, Any]:
    """A pipeline of independent tasks."""
    return made(
        root={
            "dag": {
                "tasks": {
                    f"task-{index}": {
                        "cachingOptions": {"enableCache": True},
                        "componentRef": {"name": "comp-a"},
                        "inputs": {"parameters": {"x": {"runtimeValue": {"constant": index + 0.5}}}},
                        "taskInfo": {"name": f"task-{index}"},
                    }
                    for index in range(count)
                }
            }
        }
    )
