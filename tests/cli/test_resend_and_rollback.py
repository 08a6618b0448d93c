"""``airflow-ml resend`` and ``airflow-ml rollback``, on a real MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_ml_provider.cli.main import main
from airflow_ml_provider.models.run import StepRecord
from airflow_ml_provider.tracking import spool
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree, now_ms, status_of
from tests.alert_servers import MailServer, SlackEndpoint
from tests.lineage.nights import Night


@pytest.fixture
def record(night: Night) -> StepRecord:
    """What a step would have sent, had MLflow been there."""
    kept = night.open("train")
    kept.params = {"max_iter": "300"}
    kept.outputs = [night.output(kept, "model", "Model")]
    kept.status, kept.end_time_ms = "FINISHED", now_ms()
    return kept


def champion_of(night: Night, name: str) -> str:
    found = ModelRegistry(night.api).find(name, "champion")
    assert found is not None
    return found.version


class TestResend:
    def test_a_record_is_sent_and_removed(
        self, night: Night, record: StepRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = spool.keep(str(tmp_path / "spool"), record)
        assert main(["resend", place.removeprefix("file://")]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"sent: train, try 1 of {night.dag_id} {night.run_id} (finished; outputs: model)")
        run = RunTree(night.api).get(record.run.run_id)
        assert status_of(run) == "FINISHED"
        assert run["outputs"]["model_outputs"]
        assert not Path(place.removeprefix("file://")).exists()

    def test_a_relative_path_is_found(
        self, record: StepRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = Path(spool.keep(str(tmp_path / "spool"), record).removeprefix("file://"))
        monkeypatch.chdir(tmp_path)
        assert main(["resend", str(place.relative_to(tmp_path))]) == 0, capsys.readouterr().err

    def test_a_superseded_record_stays_and_the_others_are_sent(
        self, night: Night, record: StepRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = night.open("evaluate")
        other.status = "FINISHED"
        late, good = (spool.keep(str(tmp_path / "spool"), each).removeprefix("file://") for each in (record, other))
        night.open("train", try_number=2)
        assert main(["resend", late, good]) == 1
        out, err = capsys.readouterr()
        assert "sent: evaluate" in out
        assert err.count("\n") == 1
        assert f"{late}: not sent" in err
        assert "try 2 has taken over" in err
        assert spool.read(late).attempt == record.attempt
        assert status_of(RunTree(night.api).get(record.run.run_id)) == "RUNNING"

    def test_a_folder_without_a_record_is_said(self, night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["resend", str(tmp_path)]) == 1
        assert "there is no record" in capsys.readouterr().err

    def test_a_run_that_was_deleted_for_good_keeps_the_record(
        self, night: Night, record: StepRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lost = record.model_copy(update={"run": record.run.model_copy(update={"run_id": "0" * 32}), "outputs": []})
        place = spool.keep(str(tmp_path / "spool"), lost).removeprefix("file://")
        assert main(["resend", place]) == 1
        assert "mlflow runs restore" in capsys.readouterr().err
        assert spool.read(place).run.run_id == "0" * 32


class TestRollback:
    def test_the_champion_before_it_returns(self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]) -> None:
        night.whole(unique)
        Night(night.api, night.folder, night.dag_id, "scheduled__2013-12-31").whole(unique)
        assert champion_of(night, unique) == "2"
        assert main(["rollback", unique]) == 0
        assert capsys.readouterr().out == f"{unique}@champion is version 1 again; previous-champion is version 2.\n"
        assert champion_of(night, unique) == "1"

    def test_without_one_before_it_nothing_moves(self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]) -> None:
        night.whole(unique)
        assert main(["rollback", unique]) == 1
        assert "cannot be rolled back" in capsys.readouterr().err

    def test_whoever_is_named_hears_of_it(
        self, night: Night, unique: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(unique)
        Night(night.api, night.folder, night.dag_id, "scheduled__2013-12-31").whole(unique)
        with SlackEndpoint() as slack, MailServer() as mails:
            monkeypatch.setenv("AIRFLOW_CONN_SLACK_ML", slack.bot(channel="#ml"))
            monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", mails.connection())
            assert main(["rollback", unique, "--slack", "slack_ml", "--email", "a@example.com", "--email", "b@example.com"]) == 0
        out = capsys.readouterr().out
        assert "slack: told Slack #ml by connection 'slack_ml'" in out
        assert "email: told a@example.com, b@example.com by connection 'smtp_default'" in out
        (message,), (mail,) = slack.messages, mails.mails
        assert f"was rolled back: version 1 is {unique}@champion again" in message["text"]
        assert mail.recipients == ["a@example.com", "b@example.com"]
        said = " ".join(mail.part("text/plain").split())
        assert f"version 1 is {unique}@champion again. Somebody has called airflow-ml rollback." in said

    def test_an_alert_that_is_not_sent_leaves_the_rollback_done_and_says_so(
        self, night: Night, unique: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(unique)
        Night(night.api, night.folder, night.dag_id, "scheduled__2013-12-31").whole(unique)
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_ML", '{"conn_type": "http", "host": "http://127.0.0.1:1"}')
        assert main(["rollback", unique, "--slack", "slack_ml"]) == 0
        assert champion_of(night, unique) == "1"
        assert "rolled back, and nobody was told by slack: connection 'slack_ml' is of type 'http'" in capsys.readouterr().err

    def test_an_address_that_is_none_is_refused_before_anything_moves(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(unique)
        Night(night.api, night.folder, night.dag_id, "scheduled__2013-12-31").whole(unique)
        assert main(["rollback", unique, "--email", "nobody"]) == 1
        assert "is no e-mail address" in capsys.readouterr().err
        assert champion_of(night, unique) == "2"
