from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from demo.component import launch
from demo.errors import DemoError
from demo.failure import error_lines, log_path
from demo.nights import Step, choose_nights, in_order, steps
from demo.ports import HIGHEST, HOST, LOWEST, free_ports, is_free, port_from_environment
from demo.processes import ProcessId, _from_proc, _from_ps, family, identify, is_alive, stop
from demo.records import metrics_text, size_text
from demo.settings import PORT_NAMES, commands, prepare_folders, stack_environment
from demo.signals import StopRequested, deferred, stop_on_signal
from demo.stack import LocalStack
from demo.state import StackState, StateFolder

PORTS = dict(zip(PORT_NAMES, (20_001, 20_002, 20_003, 20_004), strict=True))
SLEEP = "import time; time.sleep(120)"
# Starts a child of its own and ignores the polite signal, as a busy worker does.
STUBBORN = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print("ready", flush=True)
time.sleep(120)
"""


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def started(tmp_path):
    """Start a process as the stack does; whatever a test leaves is ended."""
    components = []

    def start(code: str, folder: Path = tmp_path):
        component = launch("sleeper", [sys.executable, "-c", code], os.environ, tmp_path / "sleeper.log", folder)
        components.append(component)
        return component

    yield start
    stop([component.identity for component in components], grace_s=0.1)
    for component in components:
        component.process.wait()


def wait_until(condition, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def log_says_ready(component):
    return "ready" in component.log.read_text(encoding="utf-8")


class TestPorts:
    def test_chosen_ports_are_distinct_free_and_out_of_the_range_of_outgoing_connections(self):
        ports = free_ports(20)
        assert len(set(ports)) == 20
        assert all(LOWEST <= port < HIGHEST and is_free(port) for port in ports)

    def test_the_ports_of_the_last_run_come_first_unless_they_are_taken(self, listener):
        own = free_ports(1)[0]
        first, second = free_ports(2, [own, listener])
        assert first == own
        assert second != listener

    def test_the_same_preferred_port_is_given_only_once(self):
        own = free_ports(1)[0]
        first, second = free_ports(2, [own, own])
        assert first == own != second

    @pytest.mark.parametrize("name", ["airflow", "mlflow"])
    def test_a_wanted_port_is_not_given_to_another_that_had_it_in_the_last_run(self, tmp_path, monkeypatch, name):
        monkeypatch.setattr(LocalStack, "_start_keeper", lambda _: None)
        last = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
        for each in PORT_NAMES:
            StateFolder(tmp_path).save(StackState("last", {}, last))
            stack = LocalStack(tmp_path, **{f"{name}_port": last[each]})
            stack._prepare()
            assert stack._state.ports[name] == last[each]
            assert len(set(stack._state.ports.values())) == len(PORT_NAMES)

    def test_a_taken_port_is_refused_by_name_with_the_way_out(self, listener):
        with pytest.raises(DemoError, match=f"DEMO_MLFLOW_PORT={listener} is taken on 127.0.0.1: give another, or unset"):
            port_from_environment("DEMO_MLFLOW_PORT", {"DEMO_MLFLOW_PORT": str(listener)})

    @pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "80.5", " 80"])
    def test_what_is_no_port_is_refused(self, text):
        with pytest.raises(DemoError, match="is not a port: give a number from 1 to 65535"):
            port_from_environment("DEMO_AIRFLOW_PORT", {"DEMO_AIRFLOW_PORT": text})

    def test_a_port_that_nobody_asks_for_is_not_chosen_here(self):
        assert port_from_environment("DEMO_AIRFLOW_PORT", {}) is None
        assert port_from_environment("DEMO_AIRFLOW_PORT", {"DEMO_AIRFLOW_PORT": ""}) is None


class TestProcesses:
    def test_a_process_is_known_by_id_and_start_time(self, started):
        process = started(SLEEP).identity
        assert is_alive(process)
        assert not is_alive(ProcessId(process.pid, "another start"))

    def test_a_zombie_is_not_alive(self, started):
        component = started("pass")
        wait_until(lambda: identify(component.process.pid) is None)
        assert not is_alive(component.identity)

    def test_a_whole_session_is_stopped_even_when_it_ignores_the_polite_signal(self, started):
        component = started(STUBBORN)
        wait_until(lambda: log_says_ready(component))
        members = family([component.identity])
        assert len(members) == 2
        assert stop([component.identity], grace_s=0.2) == set()
        assert not any(is_alive(member) for member in members)

    def test_orphans_of_a_killed_leader_are_found_by_where_they_work(self, started, tmp_path):
        component = started(STUBBORN)
        wait_until(lambda: log_says_ready(component))
        component.process.kill()
        component.process.wait()
        assert family([component.identity], within=tmp_path / "elsewhere") == set()
        orphans = family([component.identity], within=tmp_path)
        assert len(orphans) == 1
        assert stop([component.identity], grace_s=0.2, within=tmp_path) == set()
        assert not any(is_alive(orphan) for orphan in orphans)

    def test_a_stranger_with_the_number_of_a_dead_process_is_left_alone(self, started, tmp_path):
        stranger = started(SLEEP)
        remembered = ProcessId(stranger.identity.pid, "an earlier start")
        assert stop([remembered], grace_s=0.2, within=tmp_path) == set()
        assert is_alive(stranger.identity)

    @pytest.mark.skipif(not (Path("/proc/self/stat").exists() and shutil.which("ps")), reason="compares /proc with ps")
    def test_both_ways_to_look_at_processes_see_the_same(self, started):
        pid = started(SLEEP).process.pid
        ours, theirs = _from_proc()[pid], _from_ps()[pid]
        assert (ours.parent, ours.session) == (theirs.parent, theirs.session)


class TestState:
    def test_what_is_saved_is_read_back(self, tmp_path):
        folder = StateFolder(tmp_path)
        state = StackState("token", {"mlflow": ProcessId(7, "then")}, {"mlflow": 20_000})
        folder.save(state)
        assert folder.load() == state

    def test_a_first_run_finds_nothing(self, tmp_path):
        assert StateFolder(tmp_path / "new").load() == StackState()
        assert StateFolder(tmp_path / "new").clean_up() == []
        assert (tmp_path / "new").stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "token": "t", "processes": []}'])
    def test_a_state_that_cannot_be_read_is_an_error_that_says_what_to_do(self, tmp_path, text):
        folder = StateFolder(tmp_path)
        folder.file.write_text(text, encoding="utf-8")
        with pytest.raises(DemoError, match=r"state\.json cannot be read .* delete that file"):
            folder.load()

    def test_a_folder_is_held_by_one_stack_at_a_time(self, tmp_path):
        first, second = StateFolder(tmp_path), StateFolder(tmp_path)
        first.lock()
        with pytest.raises(DemoError, match=f"Process {os.getpid()} already runs a stack in"):
            second.lock()
        first.unlock()
        second.lock()
        second.unlock()

    def test_what_a_killed_demo_left_running_is_ended(self, started, tmp_path):
        component = started(SLEEP)
        folder = StateFolder(tmp_path)
        dead = ProcessId(component.process.pid + 1, "long ago")
        folder.save(StackState("old", {"scheduler": component.identity, "mlflow": dead}, {"mlflow": 20_000}))
        assert folder.clean_up() == ["scheduler"]
        assert not is_alive(component.identity)
        assert folder.load() == StackState("old", {}, {"mlflow": 20_000})

    def test_a_live_process_that_only_has_the_number_is_not_touched(self, started, tmp_path):
        component = started(SLEEP)
        folder = StateFolder(tmp_path)
        folder.save(StackState("old", {"scheduler": ProcessId(component.process.pid, "long ago")}, {}))
        assert folder.clean_up() == []
        assert is_alive(component.identity)

    def test_the_keeper_ends_what_its_owner_left_and_nothing_of_a_later_run(self, started, tmp_path):
        component = started(SLEEP)
        StateFolder(tmp_path).save(StackState("this run", {"scheduler": component.identity}, {}))
        command = [sys.executable, "-m", "demo.keeper", str(tmp_path)]
        root = Path(__file__).parents[2]
        subprocess.run([*command, "an earlier run"], stdin=subprocess.DEVNULL, check=True, cwd=root)
        assert is_alive(component.identity)
        subprocess.run([*command, "this run"], stdin=subprocess.DEVNULL, check=True, cwd=root)
        assert not is_alive(component.identity)


class TestComponent:
    def test_one_that_ends_by_itself_is_told_with_its_last_words_and_its_log(self, started):
        component = started("print('no such table'); raise SystemExit(3)")
        component.process.wait()
        with pytest.raises(DemoError, match=r"(?s)sleeper ended with status 3:\nno such table\nWhole log: .*sleeper\.log"):
            component.require_alive()

    def test_it_leads_a_session_of_its_own(self, started):
        assert os.getsid(pid := started(SLEEP).process.pid) == pid

    def test_a_command_that_does_not_exist_is_one_message(self, tmp_path):
        with pytest.raises(DemoError, match="mlflow cannot be started"):
            launch("mlflow", [str(tmp_path / "nothing")], os.environ, tmp_path / "log", tmp_path)


class TestSettings:
    @pytest.fixture
    def environment(self, tmp_path, monkeypatch):
        for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_CONN_X", "MLFLOW_TRACKING_URI", "PYTHONDONTWRITEBYTECODE"):
            monkeypatch.setenv(name, "foreign")
        return stack_environment(tmp_path, PORTS, [Path("/dags"), Path("/more")], {"MINE": "1"})

    def test_nothing_of_another_airflow_or_mlflow_leaks_in(self, environment):
        assert "foreign" not in environment.values()
        assert environment["MINE"] == "1"

    def test_everything_listens_on_the_loopback_interface(self, environment, tmp_path):
        assert environment["AIRFLOW__API__HOST"] == HOST
        assert environment["AIRFLOW__API__PORT"] == "20001"
        lines = commands(tmp_path, PORTS)
        assert lines["mlflow"][lines["mlflow"].index("--host") + 1] == HOST
        # Their log servers know no other interface than all of them.
        assert "--skip-serve-logs" in lines["scheduler"]
        assert "--skip-serve-logs" in lines["triggerer"]

    def test_secrets_are_made_once_and_for_this_user_alone(self, environment, tmp_path):
        again = stack_environment(tmp_path, PORTS, [Path("/dags")], {})
        names = ["AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY"]
        assert [environment[name] for name in names] == [again[name] for name in names]
        assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600

    def test_each_dags_folder_is_a_bundle(self, environment):
        bundles = json.loads(environment["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
        assert [(bundle["name"], bundle["kwargs"]["path"]) for bundle in bundles] == [("dags", "/dags"), ("dags-2", "/more")]

    def test_a_second_start_keeps_the_databases(self, tmp_path):
        prepare_folders(tmp_path)
        size = (tmp_path / "airflow/airflow.db").stat().st_size
        prepare_folders(tmp_path)
        assert (tmp_path / "airflow/airflow.db").stat().st_size == size


class TestSignals:
    def test_the_first_signal_asks_to_stop_and_the_second_is_ignored(self):
        with stop_on_signal():
            with pytest.raises(StopRequested):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    def test_a_signal_waits_for_what_must_not_be_cut_in_two(self):
        done = []
        with stop_on_signal(), pytest.raises(StopRequested):  # noqa: PT012 - the order is what is tested
            with deferred():
                signal.raise_signal(signal.SIGINT)
                done.append("whole")
            done.append("never")
        assert done == ["whole"]


class TestNights:
    @staticmethod
    def run(day: int, state: str) -> dict[str, str]:
        return {"logical_date": f"2013-11-{day:02}T07:00:00Z", "dag_run_id": f"run {day}", "state": state}

    def test_the_first_demo_takes_the_first_two_nights_at_two_in_new_york(self):
        nights = choose_nights([])
        assert [night.day for night in nights] == [date(2013, 11, 6), date(2013, 11, 7)]
        assert nights[0].logical_date.astimezone(UTC) == datetime(2013, 11, 6, 7, tzinfo=UTC)

    def test_a_later_demo_goes_on_where_the_last_one_ended(self):
        nights = choose_nights([self.run(5, "success"), self.run(6, "success")])
        assert [night.day.day for night in nights] == [7, 8]

    def test_a_night_that_failed_comes_again_as_the_same_run(self):
        first, second = choose_nights([self.run(5, "success"), self.run(6, "failed")])
        assert (first.day.day, first.run_id, first.state) == (6, "run 6", "failed")
        assert (second.day.day, second.run_id) == (7, None)

    def test_a_run_without_a_logical_date_is_no_night(self):
        assert choose_nights([{"logical_date": None, "dag_run_id": "by hand", "state": "success"}])[0].day.day == 6

    def test_after_the_last_night_there_is_none(self):
        runs = [{**self.run(5, "success"), "logical_date": f"2013-{m}-{d:02}T07:00:00Z"} for m in (11, 12) for d in range(1, 32)]
        assert choose_nights(run for run in runs if "11-31" not in run["logical_date"]) == []

    def test_steps_come_in_the_order_of_the_graph(self):
        tasks = [
            {"task_id": "report", "downstream_task_ids": []},
            {"task_id": "train", "downstream_task_ids": ["report"]},
            {"task_id": "validate", "downstream_task_ids": ["train", "report"]},
        ]
        order = in_order(tasks)
        assert order == ["validate", "train", "report"]
        blank = {"map_index": -1, "state": None, "start_date": None, "end_date": None, "duration": None, "try_number": 0}
        running = {"state": "running", "start_date": "2026-01-01T00:00:00Z"}
        found = steps(
            [{**blank, "task_id": "report"}, {**blank, **running, "task_id": "validate"}],
            order,
            datetime(2026, 1, 1, 0, 0, 3, tzinfo=UTC),
        )
        assert [(step.name, step.state, step.seconds) for step in found] == [
            ("validate", "running", 3.0),
            ("report", "waiting", None),
        ]


class TestWords:
    def test_an_error_is_told_with_the_place_where_it_was_raised(self):
        failed = {
            "event": "Task failed with exception",
            "error_detail": [
                {
                    "exc_type": "ValueError",
                    "exc_value": "no rows",
                    "frames": [{"filename": "dag.py", "lineno": 7, "name": "train"}],
                }
            ],
        }
        log = [json.dumps({"event": "before"}), "not json", json.dumps(failed), json.dumps({"event": "after"})]
        assert error_lines(log) == ["dag.py:7 in train", "ValueError: no rows"]
        assert error_lines(log[:2]) == ["before", "not json"]

    def test_a_log_is_where_airflow_puts_it(self):
        plain, mapped = Step("train", -1, "failed", 1.0, 2), Step("train", 3, "failed", 1.0, 1)
        assert log_path(Path("/l"), "d", "r", plain) == Path("/l/dag_id=d/run_id=r/task_id=train/attempt=2.log")
        assert log_path(Path("/l"), "d", "r", mapped).parent.name == "map_index=3"

    @pytest.mark.parametrize(
        ("size", "text"), [(0, "0 B"), (999, "999 B"), (1_400, "1.4 kB"), (2_500_000, "2.5 MB"), (3.2e9, "3.2 GB")]
    )
    def test_sizes_read_as_people_say_them(self, size, text):
        assert size_text(size) == text

    def test_many_metrics_are_counted_not_listed(self):
        assert metrics_text({"auc": 0.73456, "rows": 1_000.0}) == "auc 0.7346, rows 1000"
        assert metrics_text(dict.fromkeys("abcdef", 1.0)) == "a 1, b 1, c 1, d 1, 2 more"
        assert metrics_text({}) == ""
