"""The parts of the container's half that are pure, and what it has in common with the provider."""

from __future__ import annotations

import ast
import base64
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import step
from airflow_ml_provider.models.artifact import dump_metrics, load_metrics
from airflow_ml_provider.models.pod_step import MESSAGE_BYTES, StepMessage
from airflow_ml_provider.models.run import mlflow_name
from airflow_ml_provider.step import airflow_ml_step
from airflow_ml_provider.tracking.places import Written, hash_tree

FIELDS = {"version": 1, "try_number": 1, "state": "failed", "exit_code": 1, "manifest": True, "sha256": "f" * 64}


@given(st.text(max_size=5000), st.dictionaries(st.text(max_size=300), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_message_is_valid_json_of_at_most_4096_bytes(error: str, metrics: dict[str, float]) -> None:
    text = airflow_ml_step.message_text({**FIELDS, "error": error}, metrics)
    assert len(text) <= MESSAGE_BYTES
    found = StepMessage.find(text.decode())
    assert found is not None
    assert found.metrics.items() <= metrics.items()
    assert found.error == error or found.error.endswith("...")


@pytest.mark.parametrize("sign", ["\U0001f600", "ü", "\x00", '"', "\\", "\ud800", "x"])
def test_a_long_error_is_cut_between_its_letters(sign: str) -> None:
    text = airflow_ml_step.message_text({**FIELDS, "error": sign * 5000}, {"loss": 0.5})
    assert MESSAGE_BYTES - 30 < len(text) <= MESSAGE_BYTES
    assert json.loads(text)["error"].strip(sign + "?") == "..."


def test_as_many_metrics_are_told_as_there_is_room_for() -> None:
    text = airflow_ml_step.message_text({**FIELDS, "error": ""}, {f"metric_{number}": number for number in range(1000)})
    told = json.loads(text)["metrics"]
    assert 150 < len(told) < 300
    assert list(told.values()) == list(range(len(told)))


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), st.integers(0, 10)))
def test_a_directory_has_one_digest_wherever_it_is_computed(files: dict[str, int]) -> None:
    ours = airflow_ml_step.hash_tree((name, (f"{size:064x}", size)) for name, size in files.items())
    theirs = hash_tree((name, Written(f"{size:064x}", size)) for name, size in files.items())
    assert ours == (theirs.sha256, theirs.size)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that all may enter, in the life of who may not read all."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        os.seteuid(user)
        for each in (Path(folder, "made"), Path(folder, "made/below")):
            if each.exists():
                each.chmod(0o755)


@pytest.mark.parametrize("kind", ["file", "folder", "folder below"])
def test_what_another_user_wrote_and_may_not_be_read_is_told_with_the_remedy(nobody: Path, kind: str) -> None:
    made = nobody / "made"
    if kind == "file":
        made.write_text("x")
    else:
        (made / "below").mkdir(parents=True)
    closed = made / "below" if kind == "folder below" else made
    closed.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(airflow_ml_step.OutputError, match=r"Permission denied.*umask 022.*runAsUser") as refused:
        airflow_ml_step.hash_any(made)
    assert str(refused.value).startswith(f"{closed} cannot be read")


@given(st.text())
def test_names_are_made_fit_for_mlflow_alike(name: str) -> None:
    assert airflow_ml_step.mlflow_name(name) == mlflow_name(name)


@given(st.dictionaries(st.text(), st.floats() | st.text() | st.integers()))
def test_metrics_are_written_and_read_alike(values: dict[str, float | str | int]) -> None:
    text = dump_metrics(values)
    assert airflow_ml_step.dump_metrics(values) == text
    assert str(airflow_ml_step.load_metrics(text)) == str(load_metrics(text))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n", 1),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 17\n", 17),
        ("oom_kill_disable 0\nunder_oom 0\n", 0),
        ("", 0),
    ],
)
def test_kills_for_memory_are_counted_in_both_versions(text: str, count: int) -> None:
    assert airflow_ml_step.oom_kills(text) == count


def test_the_count_is_looked_for_in_the_own_group_first() -> None:
    assert airflow_ml_step.oom_files("4:cpu,memory:/pods/x\n0::/\n") == [
        "/sys/fs/cgroup/memory/pods/x/memory.oom_control",
        "/sys/fs/cgroup/memory/memory.oom_control",
        "/sys/fs/cgroup/memory.events",
        "/sys/fs/cgroup/memory.events",
    ]
    assert airflow_ml_step.oom_files("0::/kubepods/x\n")[1] == "/sys/fs/cgroup/kubepods/x/memory.events"


@pytest.mark.parametrize("line", [b"", b"\xff", b"[]", b"1", b'{"key": 1}', b'{"key": "a", "value": "x"}', b'{"value": 1}'])
def test_a_line_that_is_no_point_is_passed_over(line: bytes) -> None:
    assert airflow_ml_step.read_line(line) is None


def test_the_file_is_read_by_python_3_8_and_needs_the_standard_library_alone() -> None:
    tree = ast.parse(step.source(), feature_version=(3, 8))
    imported = {each.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


def test_the_packed_file_is_the_file_and_fits_into_a_variable() -> None:
    assert zlib.decompress(base64.b64decode(step.packed())).decode() == Path(airflow_ml_step.__file__).read_text()
    assert len(step.packed()) < 40_000, "Linux takes 131,072 bytes for one variable, a pod's object 1.5 MB"
