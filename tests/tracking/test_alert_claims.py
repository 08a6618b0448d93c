"""Who tells, when many want to: against a real MLflow server on SQLite, and as files of one machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import DagRunIdentity, StepRecord
from airflow_ml_provider.tracking import alert_claims
from airflow_ml_provider.tracking.alert_claims import (
    STALE_S,
    TURNS,
    AlertBoard,
    Reason,
    claim_name,
    make_token,
    seconds_between,
)
from airflow_ml_provider.tracking.local_claims import LocalClaims
from airflow_ml_provider.tracking.runs import now_ms, run_id_of, status_of, tags_of
from tests.servers import free_port

MANY = 200


def board(api: MlflowApi, unique: str, going: str = "0-1", run_id: str = "scheduled__1") -> AlertBoard:
    return AlertBoard(api, DagRunIdentity(dag_id=unique, run_id=run_id), unique, going)


@pytest.fixture
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody asks at the same moment, no older run can be under way to MLflow: there is less to wait for."""
    monkeypatch.setattr(alert_claims, "SETTLE_S", 0.1)


def old_token() -> str:
    return f"{now_ms() - int(STALE_S * 1000) - 5000}-gone"


class TestOnMlflow:
    @pytest.mark.parametrize("many", [20, pytest.param(200, marks=pytest.mark.full)])
    def test_of_many_at_once_one_has_the_claim(
        self, mlflow_server: MlflowServer, make_record: Callable[..., StepRecord], unique: str, many: int
    ) -> None:
        make_record()  # the DAG run has its MLflow run
        with MlflowApi(mlflow_server, Settings(http_timeout_s=60, http_retries=8)) as api:
            ready, run = threading.Barrier(many), board(api, unique).find()

            def claim(_: int) -> bool:
                mine = board(api, unique)
                mine.run = run
                ready.wait()
                return mine.claim("0-1.slack", make_token())

            with ThreadPoolExecutor(many) as pool:
                assert sum(pool.map(claim, range(many))) == 1

    def test_where_no_run_is_yet_one_is_made_and_one_has_the_claim(self, mlflow_server: MlflowServer, unique: str) -> None:
        with MlflowApi(mlflow_server, Settings(http_timeout_s=60, http_retries=8)) as api:
            ready = threading.Barrier(20)

            def claim(_: int) -> bool:
                ready.wait()
                return board(api, unique).claim("0-1.slack", make_token())

            with ThreadPoolExecutor(20) as pool:
                assert sum(pool.map(claim, range(20))) == 1
            mine = board(api, unique)
            found = mine.find()
            assert found is not None
            assert status_of(found) == "FAILED"
            assert len(mine.tree.find_parents(found["info"]["experiment_id"], mine.dag_run)) == 1

    def test_a_step_that_comes_later_takes_that_run_over(
        self, mlflow_api: MlflowApi, make_record: Callable[..., StepRecord], unique: str
    ) -> None:
        made = board(mlflow_api, unique).open()
        record = make_record()
        assert record.run.parent_run_id == run_id_of(made)
        assert status_of(mlflow_api.get("runs/get", run_id=run_id_of(made))["run"]) == "RUNNING"

    @pytest.mark.usefixtures("_one_by_one")
    def test_asking_twice_with_the_same_token_gives_the_same(self, mlflow_api: MlflowApi, unique: str) -> None:
        token = make_token()
        assert board(mlflow_api, unique).claim("a", token)
        assert board(mlflow_api, unique).claim("a", token)
        assert not board(mlflow_api, unique).claim("a", make_token())
        assert board(mlflow_api, unique).claim("b", make_token())

    @pytest.mark.usefixtures("_one_by_one")
    def test_a_claim_that_was_not_redeemed_goes_to_the_next(self, mlflow_api: MlflowApi, unique: str) -> None:
        assert board(mlflow_api, unique).claim("a", old_token())
        assert board(mlflow_api, unique).claim("a", make_token())
        assert not board(mlflow_api, unique).claim("a", make_token())

    @pytest.mark.usefixtures("_one_by_one")
    def test_a_claim_that_was_given_back_goes_to_the_next_at_once(self, mlflow_api: MlflowApi, unique: str) -> None:
        for _ in range(2):
            holder, token = board(mlflow_api, unique), make_token()
            assert holder.claim("a", token)
            assert holder.claim("b", token) == (_ == 0)
            assert not board(mlflow_api, unique).claim("a", make_token())
            holder.free("a", token)
        assert board(mlflow_api, unique).claim("a", make_token())
        assert not board(mlflow_api, unique).claim("a", make_token())

    @pytest.mark.usefixtures("_one_by_one")
    def test_one_that_was_given_back_too_often_is_doubled_rather_than_dropped(self, mlflow_api: MlflowApi, unique: str) -> None:
        for _ in range(TURNS + 1):
            holder, token = board(mlflow_api, unique), make_token()
            assert holder.claim("a", token)
            holder.free("a", token)

    @pytest.mark.usefixtures("_one_by_one")
    def test_an_old_claim_that_was_redeemed_stays(self, mlflow_api: MlflowApi, unique: str) -> None:
        first = board(mlflow_api, unique)
        first.claim("a", old_token())
        first.mark_told("a", "1700.5")
        assert not board(mlflow_api, unique).claim("a", make_token())
        assert board(mlflow_api, unique).told("a") == "1700.5"

    def test_what_was_sent_without_a_thread_is_told_all_the_same(self, mlflow_api: MlflowApi, unique: str) -> None:
        assert board(mlflow_api, unique).told("a") is None
        board(mlflow_api, unique).mark_told("a", "")
        assert board(mlflow_api, unique).told("a") == ""
        assert board(mlflow_api, unique).told("b") is None

    def test_an_earlier_going_is_told_from_this_one(self, mlflow_api: MlflowApi, unique: str) -> None:
        board(mlflow_api, unique, "0-1").mark_told("0-1.slack", "")
        assert not board(mlflow_api, unique, "0-1").told_before()
        assert board(mlflow_api, unique, "1-2").told_before()

    def test_reasons_are_read_as_they_were_left_and_in_their_order(self, mlflow_api: MlflowApi, unique: str) -> None:
        later = Reason(task="train[3]", why="x\0\ud800<b>" + "A" * 100_000, url="http://a", at_ms=20)
        board(mlflow_api, unique).write_reason(later)
        board(mlflow_api, unique).write_reason(Reason(task="prepare", why="first", url="", at_ms=10))
        board(mlflow_api, unique, "1-2").write_reason(Reason(task="other going", why="", url="", at_ms=1))
        found = board(mlflow_api, unique).reasons()
        assert [each.task for each in found] == ["prepare", "train[3]"]
        assert found[1].why.startswith("x\0\ud800<b>AAA")

    def test_what_mlflow_cannot_store_is_an_error_and_not_a_lost_claim(self, mlflow_api: MlflowApi, unique: str) -> None:
        first = board(mlflow_api, unique)
        mlflow_api.post("runs/delete", {"run_id": run_id_of(first.open())})
        with pytest.raises(ConfigError):
            first.claim("a", make_token())

    def test_an_mlflow_that_is_away_is_an_error_and_not_a_lost_claim(self, unique: str) -> None:
        server = MlflowServer("mlflow_default", f"http://127.0.0.1:{free_port()}")
        with MlflowApi(server, Settings(http_retries=0)) as api, pytest.raises(RemoteUnavailableError):
            board(api, unique).claim("a", make_token())

    def test_a_run_in_another_experiment_is_found(
        self, mlflow_api: MlflowApi, make_record: Callable[..., StepRecord], unique: str
    ) -> None:
        record = make_record()
        elsewhere = AlertBoard(mlflow_api, record.attempt.identity.dag_run, f"{unique}-default", "0-1")
        found = elsewhere.find()
        assert found is not None
        assert run_id_of(found) == record.run.parent_run_id
        assert "airflow.run_type" not in tags_of(found)


class TestOnOneMachine:
    @pytest.fixture
    def claims(self, tmp_path: Path) -> LocalClaims:
        return LocalClaims(tmp_path / "claims")

    def test_of_two_hundred_at_once_one_has_the_claim(self, claims: LocalClaims) -> None:
        ready = threading.Barrier(MANY)

        def take(_: int) -> bool:
            ready.wait()
            return claims.take("night")

        with ThreadPoolExecutor(MANY) as pool:
            assert sum(pool.map(take, range(MANY))) == 1

    def test_processes_count_as_well(self, claims: LocalClaims) -> None:
        found: list[int] = []
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                os._exit(10 + claims.take("night"))
            found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) - 10)
        assert sum(found) == 1

    def test_one_that_was_left_without_a_word_goes_to_one_other(self, claims: LocalClaims) -> None:
        assert claims.take("night")
        (file,) = claims.folder.iterdir()
        os.utime(file, (1, 1))
        with ThreadPoolExecutor(20) as pool:
            assert sum(pool.map(claims.take, ["night"] * 20)) == 1

    def test_one_that_was_redeemed_stays(self, claims: LocalClaims) -> None:
        claims.take("night")
        claims.mark_told("night", "1700.5")
        (file,) = claims.folder.iterdir()
        os.utime(file, (1, 1))
        assert not claims.take("night")
        assert claims.told("night") == "1700.5"
        assert claims.told("other") is None

    def test_one_that_was_given_back_goes_to_the_next_and_one_that_was_redeemed_does_not(self, claims: LocalClaims) -> None:
        assert claims.take("night")
        claims.free("night")
        assert claims.take("night")
        claims.mark_told("night", "1700.5")
        claims.free("night")
        assert not claims.take("night")
        claims.free("never taken")

    def test_old_files_are_removed(self, claims: LocalClaims) -> None:
        claims.take("long ago")
        (file,) = claims.folder.iterdir()
        os.utime(file, (1, 1))
        claims.take("now")
        assert not file.exists()

    def test_where_no_file_can_be_written_it_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        claims = LocalClaims(tmp_path / "file" / "claims")
        assert claims.take("night")
        claims.mark_told("night", "")
        assert claims.told("night") is None

    @pytest.mark.parametrize("kind", ["open to all", "a link"])
    def test_a_folder_that_others_can_write_to_is_not_trusted(self, kind: str, tmp_path: Path) -> None:
        folder = tmp_path / "claims"
        if kind == "a link":
            (tmp_path / "real").mkdir()
            folder.symlink_to(tmp_path / "real")
        else:
            folder.mkdir()
            folder.chmod(0o777)
        claims = LocalClaims(folder)
        assert claims.take("night")
        assert claims.take("night")


def test_a_name_tells_goings_groups_channels_and_targets_apart() -> None:
    target: dict[str, Any] = {"conn_id": "s", "channel": ""}
    names = {
        claim_name("0-1", "", target, "slack"),
        claim_name("1-1", "", target, "slack"),
        claim_name("0-1", "train 1", target, "slack"),
        claim_name("0-1", "", target | {"channel": "#x"}, "slack"),
        claim_name("0-1", "", target, "email"),
    }
    assert len(names) == 5
    assert claim_name("0-1", "", {"channel": "", "conn_id": "s"}, "slack") in names


def test_tokens_say_how_far_apart_they_were_made() -> None:
    assert seconds_between(old_token(), make_token()) > STALE_S
    assert seconds_between(make_token(), make_token()) < STALE_S
    assert seconds_between("no token", make_token()) == 0
