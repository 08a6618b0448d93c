"""From a DAG run to MLflow, asked of Airflow's own API server application and a real MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pendulum
import pytest
from airflow.sdk import dag, task

from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import OpenRun
from airflow_ml_provider.plugin import AirflowMLPlugin
from airflow_ml_provider.tracking.runs import as_pairs, now_ms, tags_of
from tests.plugin.conftest import BASE, Browser
from tests.servers import connection, free_port

NIGHTLY = "manual__2026-01-01T00:00:00+00:00"
Person = Callable[..., Browser]
Record = Callable[..., OpenRun]
PATHS = ("/run", "/run/mlflow", "/run/compare")
THING = "a" * 32
OTHERS = {
    "/run/step": "run_id=a&task_id=train",
    "/run/others": "run_id=a",
    "/artifact": f"run={THING}&path=a.txt",
    "/picture": f"run={THING}&path=a.png",
    "/model": "name=a",
    "/lineage": f"of=models:/m-{THING}",
}
"""The other pages, each with a query that it takes."""


def at(path: str, dag_id: str, run_id: str = NIGHTLY) -> str:
    """Address below that of a DAG; the DAG's own page has no path, and takes no run."""
    return f"/airflow-ml/dags/{dag_id}{path}" + (f"?{urlencode({'run_id': run_id})}" if path else "")


def links(page: str) -> dict[str, str]:
    """Addresses out of Airflow's pages at the head of a page, by the text that people press."""
    head = page.partition("<h2>")[0]
    return {text: unescape(address) for address, text in re.findall(r'<a href="([^"]*)"[^>]* data-leave>([^<]*)</a>', head)}


def leads_to(address: str, run: OpenRun) -> bool:
    """Whether an address is that of the page of a DAG run's MLflow run, in whatever workspace."""
    return address.partition("?")[0].endswith(f"/#/experiments/{run.experiment_id}/runs/{run.parent_run_id}")


def compared(address: str) -> tuple[list[str], list[str]]:
    asked = parse_qs(urlsplit(address.replace("/#/", "/")).query)
    return json.loads(asked["runs"][0]), json.loads(asked["experiments"][0])


def task_of(api: MlflowApi, night: OpenRun, dag_id: str, task_id: str) -> str:
    """Make the MLflow run of a task."""
    tags = {"mlflow.parentRunId": night.parent_run_id, "airflow.dag_id": dag_id, "airflow.task_id": task_id}
    body = {"experiment_id": night.experiment_id, "start_time": now_ms(), "tags": as_pairs(tags)}
    return str(api.post("runs/create", body)["run"]["info"]["run_id"])


def said(page: str) -> str:
    found = re.search(r'<p id="said">([^<]*)</p>', page)
    return unescape(found[1]) if found else ""


class TestWhoMayAsk:
    @pytest.mark.parametrize("path", [*PATHS, ""])
    def test_nobody_is_asked_to_log_in_and_is_told_nothing_else(
        self, person: Person, record: Record, unique: str, path: str
    ) -> None:
        record(unique, NIGHTLY)
        answer = person().get(at(path, unique))
        assert answer.status_code == 401
        assert links(answer.text) == {"Log in": f"/api/v2/auth/login?{urlencode({'next': f'{BASE}{at(path, unique)}'})}"}
        assert unique not in answer.text.replace(links(answer.text)["Log in"].replace("&", "&amp;"), "")

    @pytest.mark.airflow("3.2")  # before, the address comes back decoded, which the pages bear
    def test_after_the_login_airflow_leads_back(self, person: Person, unique: str) -> None:
        nobody = person()
        answer = nobody.get(links(nobody.get(at("/run", unique)).text)["Log in"])
        assert answer.status_code == 307, "Airflow takes the address to come back to for one of its own"
        assert parse_qs(urlsplit(answer.headers["location"]).query)["next"] == [BASE + at("/run", unique)]

    @pytest.mark.parametrize("path", [*PATHS, ""])
    def test_who_may_not_read_the_runs_of_the_dag_is_refused(
        self, person: Person, record: Record, mlflow_connection: str, unique: str, path: str
    ) -> None:
        record(unique, NIGHTLY)
        answer = person("somebody-else").get(at(path, unique))
        assert answer.status_code == 403
        assert "may not read the runs" in said(answer.text)
        assert mlflow_connection not in answer.text

    @pytest.mark.parametrize("path", OTHERS)
    def test_every_page_is_guarded(self, person: Person, mlflow_connection: str, unique: str, path: str) -> None:
        address = f"/airflow-ml/dags/{unique}{path}?{OTHERS[path]}"
        who = (person(), person("somebody-else"), person(f"runs-of-{unique}"), person(unique))
        assert [each.get(address).status_code for each in who] == [401, 403, 403, 404 if path == "/picture" else 200]

    @pytest.mark.parametrize("path", ["", "/run"])
    def test_who_may_read_the_runs_and_not_the_tasks_sees_no_steps(
        self, person: Person, record: Record, mlflow_connection: str, unique: str, path: str
    ) -> None:
        record(unique, NIGHTLY)
        assert person(f"runs-of-{unique}").get(at(path, unique)).status_code == 403
        assert person(f"runs-of-{unique}").get(at("/run/mlflow", unique)).status_code == 307

    @pytest.mark.parametrize("dag_id", ["~", "a%27b", "%3Cscript%3E", "a" * 251])
    def test_what_is_no_id_of_a_dag_shows_nothing(self, person: Person, dag_id: str) -> None:
        for path in ("", *PATHS):
            assert person().get(at(path, dag_id)).status_code == 401
            for admin in (person("a"), person(unquote(dag_id))):
                assert admin.get(at(path, dag_id)).status_code in {403, 422}

    def test_without_a_run_there_is_nothing_to_show(self, person: Person) -> None:
        for path in PATHS:
            for query in ("", "?run_id=", f"?run_id={'a' * 251}"):
                answer = person("a").get(at(path, "a").partition("?")[0] + query)
                assert answer.status_code == 422
                assert "does not name" in said(answer.text)

    def test_the_dag_that_is_judged_is_the_one_that_is_shown(self, person: Person, record: Record, unique: str) -> None:
        record(unique, NIGHTLY)
        for path in ("", *PATHS):
            address = at(path, unique)
            answer = person("mine").get(f"{address}{'&' if '?' in address else '?'}dag_id=mine")
            assert answer.status_code == 403
            address = at(path, "mine")
            answer = person("mine").get(f"{address}{'&' if '?' in address else '?'}dag_id={unique}")
            assert unique not in answer.text

    def test_the_user_of_a_frame_is_known_by_airflows_cookie(self, person: Person, mlflow_connection: str, unique: str) -> None:
        token = person(unique).headers["Authorization"].removeprefix("Bearer ")
        nobody = person()
        nobody.headers["Cookie"] = f"_token={token}"
        assert nobody.get(at("/run", unique)).status_code == 200
        nobody.headers["Cookie"] = f"_token={token[:-4]}"
        assert nobody.get(at("/run", unique)).status_code in {401, 403}

    def test_there_are_no_pages_about_the_pages(self, person: Person) -> None:
        for path in ("/docs", "/redoc", "/openapi.json", "/", "/dags", "/dags/a/x", "/dags/a/run/mlflow/x"):
            answer = person("a").get(f"/airflow-ml{path}")
            assert answer.status_code == 404
            assert "no such page" in said(answer.text)


@pytest.mark.usefixtures("mlflow_connection")
class TestADagRunWithARecord:
    def test_the_page_tells_of_the_run_and_leads_to_it(
        self, person: Person, record: Record, mlflow_server: MlflowServer, unique: str
    ) -> None:
        run = record(unique, NIGHTLY)
        answer = person(unique).get(at("/run", unique))
        assert answer.status_code == 200
        assert links(answer.text) == {"MLflow run": mlflow_server.run_page(run.experiment_id, run.parent_run_id)}
        plain = unescape(answer.text)
        assert f"<h1>{NIGHTLY}</h1>" in plain
        assert '<span class="badge busy">running</span>' in plain
        assert "MLflow <b>RUNNING</b>" in plain
        others = unescape(person(unique).get(at("/run/others", unique)).text)
        assert f"the experiment: {unique}" in others
        assert "no earlier run" in others

    def test_it_is_compared_with_the_runs_before_it_and_none_after_it(self, person: Person, record: Record, unique: str) -> None:
        first, second, _third = (record(unique, f"manual__{number}") for number in range(3))
        both = [second.parent_run_id, first.parent_run_id]
        page = person(unique).get(at("/run/others", unique, "manual__1")).text
        assert compared(links(page)["Compare the last runs"]) == (both, [first.experiment_id])
        answer = person(unique).get(at("/run/compare", unique, "manual__1"))
        assert (answer.status_code, answer.headers["location"]) == (307, links(page)["Compare the last runs"])
        page = person(unique).get(at("/run", unique, "manual__1")).text
        answer = person(unique).get(at("/run/mlflow", unique, "manual__1"))
        assert (answer.status_code, answer.headers["location"]) == (307, links(page)["MLflow run"])

    def test_ten_are_compared_at_most_and_no_tasks(self, person: Person, record: Record, unique: str) -> None:
        made = [record(unique, f"manual__{number:02}").parent_run_id for number in range(12)]
        answer = person(unique).get(at("/run/compare", unique, "manual__11"))
        assert compared(answer.headers["location"])[0] == made[:1:-1]

    def test_a_task_with_metrics_is_compared_with_itself_in_the_runs_before(
        self, person: Person, record: Record, unique: str, mlflow_api: MlflowApi
    ) -> None:
        nights = [record(unique, f"manual__{number}") for number in range(3)]
        for night in nights:
            for task_id in ("train", "<b>"):
                made = task_of(mlflow_api, night, unique, task_id)
                if task_id == "train" or night is nights[0]:  # the other has a metric in the first night alone
                    mlflow_api.post("runs/log-metric", {"run_id": made, "key": "auc", "value": 0.9, "timestamp": 1})
        page = person(unique).get(at("/run/others", unique, "manual__1")).text
        assert set(links(page)) == {"Compare the last runs", "Compare train"}
        runs, experiments = compared(links(page)["Compare train"])
        found = [mlflow_api.get("runs/get", run_id=each)["run"] for each in runs]
        assert [tags_of(each)["mlflow.parentRunId"] for each in found] == [
            nights[1].parent_run_id,
            nights[0].parent_run_id,
        ]
        assert experiments == [nights[0].experiment_id]

    def test_the_page_of_a_dag_lists_its_runs_the_newest_first_and_goes_on(
        self, person: Person, record: Record, unique: str
    ) -> None:
        made = [record(unique, f"manual__{number:02}") for number in range(27)]
        first = person(unique).get(at("", unique)).text
        (older,) = re.findall(r'<a href="([^"]*)">Older runs</a>', first)
        second = person(unique).get(unescape(older)).text
        listed = [re.findall(r"run_id=manual__(\d\d)", page) for page in (first, second)]
        assert listed == [[f"{number:02}" for number in range(26, 1, -1)], ["01", "00"]]
        assert made[26].parent_run_id in first
        assert "Older runs" not in second

    def test_it_is_found_in_an_experiment_of_another_name(self, person: Person, record: Record, unique: str) -> None:
        run = record(unique, NIGHTLY, experiment=f"other/{unique}")
        page = person(unique).get(at("/run", unique)).text
        assert leads_to(links(page)["MLflow run"], run)
        assert f"the experiment: other/{unique}" in person(unique).get(at("/run/others", unique)).text

    def test_links_lead_to_the_pages_that_people_reach(
        self, person: Person, record: Record, mlflow_server: MlflowServer, unique: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(mlflow_server, ui_url="https://mlflow.example.com/ui"))
        record(unique, "manual__0")
        record(unique, NIGHTLY)
        for path in ("/run/mlflow", "/run/compare"):
            assert person(unique).get(at(path, unique)).headers["location"].startswith("https://mlflow.example.com/ui/#/")

    @pytest.mark.parametrize(
        "run_id", ["<script>alert(1)</script>", "../../../etc/passwd", '"><img src=x>', "a/b?c#d&e='f' %2F", "..", "nächtlich"]
    )
    def test_an_id_that_means_harm_is_an_id(self, person: Person, record: Record, unique: str, run_id: str) -> None:
        run = record(unique, run_id)
        answer = person(unique).get(at("/run", unique, run_id))
        assert answer.status_code == 200
        assert leads_to(links(answer.text)["MLflow run"], run)
        assert run_id in unescape(answer.text)
        if set(run_id) & set("<>\"'"):
            assert run_id not in answer.text
        answer = person(unique).get(at("/run/mlflow", unique, run_id))
        assert leads_to(answer.headers["location"], run)

    def test_where_to_is_never_taken_from_the_address(self, person: Person, record: Record, mlflow_url: str, unique: str) -> None:
        record(unique, NIGHTLY)
        answer = person(unique).get(at("/run/mlflow", unique) + "&next=https://evil.example&url=//evil.example")
        assert answer.headers["location"].startswith(f"{mlflow_url}/#/")

    def test_only_its_own_script_may_run_and_only_airflow_may_frame_it(self, person: Person, record: Record, unique: str) -> None:
        record(unique, NIGHTLY)
        answers = [person(unique).get(at("/run", unique)) for _ in range(2)]
        nonces = [set(re.findall(r'nonce="([^"]+)"', answer.text)) for answer in answers]
        assert nonces[0].isdisjoint(nonces[1])
        for answer, (nonce,) in zip(answers, nonces, strict=True):
            policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == f"'nonce-{nonce}'"
            assert policy["frame-ancestors"] == "'self'"
            assert answer.text.count("<script") == answer.text.count(f'<script nonce="{nonce}">') == 1
            assert not re.search(r"<(link|img|iframe|form)\b| style=| on\w+=", answer.text)
            assert answer.headers["cache-control"] == "no-store"


class TestWhatIsMissing:
    def test_a_dag_run_without_a_record(self, person: Person, mlflow_connection: str, unique: str) -> None:
        assert [person(unique).get(at(path, unique)).status_code for path in PATHS] == [200, 404, 404]
        page = person(unique).get(at("/run", unique)).text
        assert "has no run of this DAG run" in said(page)
        assert links(page) == {}
        assert "has no run of this DAG." in said(person(unique).get(at("", unique)).text)

    def test_nothing_to_compare_with(self, person: Person, mlflow_connection: str, record: Record, unique: str) -> None:
        record(unique, NIGHTLY)
        answer = person(unique).get(at("/run/compare", unique))
        assert answer.status_code == 404
        assert "no earlier run" in answer.text

    def test_mlflow_is_away(self, person: Person, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
        address = f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(MlflowServer("c", address)))
        assert [person(unique).get(at(path, unique)).status_code for path in PATHS] == [200, 503, 503]
        page = person(unique).get(at("/run", unique)).text
        assert "does not answer" in said(page)
        assert address not in page, "only who may read connections is told of it"

    def test_there_is_no_connection(self, person: Person, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT", raising=False)
        assert [person(unique).get(at(path, unique)).status_code for path in PATHS] == [200, 500, 500]
        assert "'mlflow_default' is missing" in said(person(unique).get(at("/run", unique)).text)

    def test_a_connection_with_a_password_in_its_address_is_not_shown(
        self, person: Person, unique: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(MlflowServer("c", "http://me:opensesame@127.0.0.1:1")))
        page = person(unique).get(at("/run", unique)).text
        assert "'mlflow_default' is missing" in said(page)
        assert "opensesame" not in page


def _nothing() -> None: ...


class TestWhichConnection:
    @pytest.fixture
    def elsewhere(
        self, run_dag: Callable[..., Any], unique: str, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
    ) -> str:
        """A DAG in Airflow's database that names another connection than the default."""

        @dag(
            dag_id=unique,
            schedule=None,
            start_date=pendulum.datetime(2024, 1, 1),
            default_args={"mlflow_conn_id": "other_mlflow"},
        )
        def plain() -> None:
            task(task_id="train")(_nothing)()

        run_dag(plain())
        monkeypatch.setenv("AIRFLOW_CONN_OTHER_MLFLOW", connection(mlflow_server))
        monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT")
        return unique

    def test_it_is_the_one_of_the_dags_default_args(self, person: Person, record: Record, elsewhere: str) -> None:
        run = record(elsewhere, NIGHTLY)
        page = person(elsewhere).get(at("/run", elsewhere)).text
        assert leads_to(links(page)["MLflow run"], run)

    def test_the_experiment_of_its_default_args_comes_first(
        self, run_dag: Callable[..., Any], person: Person, record: Record, mlflow_connection: str, unique: str
    ) -> None:
        """A DAG with records of its own that is given the experiment of a team."""
        old = record(unique, "manual__old")

        @dag(dag_id=unique, schedule=None, start_date=pendulum.datetime(2024, 1, 1), default_args={"experiment": "team/{dag_id}"})
        def plain() -> None:
            task(task_id="train")(_nothing)()

        run_dag(plain())
        assert old.parent_run_id in person(unique).get(at("", unique)).text, "nothing is in the new one yet"
        new = record(unique, NIGHTLY, experiment=f"team/{unique}")
        page = person(unique).get(at("", unique)).text
        assert (new.parent_run_id in page, old.parent_run_id in page) == (True, False)
        for night, run_id in ((new, NIGHTLY), (old, "manual__old")):
            assert leads_to(links(person(unique).get(at("/run", unique, run_id)).text)["MLflow run"], night)

    def test_it_is_found_in_airflows_database_too(
        self, person: Person, record: Record, mlflow_server: MlflowServer, unique: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow.models import Connection
        from airflow.utils.session import create_session

        monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT", raising=False)
        monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # as Airflow's API server sets it
        with create_session() as session:
            session.add(Connection.from_json(connection(mlflow_server), "mlflow_default"))
        try:
            run = record(unique, NIGHTLY)
            assert leads_to(links(person(unique).get(at("/run", unique)).text)["MLflow run"], run)
        finally:
            with create_session() as session:
                session.query(Connection).filter_by(conn_id="mlflow_default").delete()


class TestTheTab:
    def test_airflows_ui_is_told_of_all_tabs(self, person: Person) -> None:
        answer = person("admin", role="admin").get("/api/v2/plugins")
        (ours,) = (each for each in answer.json()["plugins"] if each["name"] == "airflow_ml")
        views = {each["destination"]: each for each in ours["external_views"]}
        assert views.keys() == {"dag", "dag_run", "task_instance"}
        assert {each["name"] for each in views.values()} == {"MLflow"}
        assert all(not each["href"].startswith("/") for each in views.values()), "Airflow's UI may live below a path"

    @pytest.mark.usefixtures("mlflow_connection")
    def test_its_address_filled_in_as_the_ui_does_is_a_page(self, person: Person, record: Record, unique: str) -> None:
        record(unique, NIGHTLY)
        ids = {"{DAG_ID}": unique, "{RUN_ID}": quote(NIGHTLY, safe=""), "{TASK_ID}": "train"}  # it leaves {MAP_INDEX}
        for view in AirflowMLPlugin.external_views:
            address = re.sub(r"\{(DAG|RUN|TASK)_ID\}", lambda found: ids[found[0]], view["href"])
            answer = person(unique).get(f"/{address}")
            assert (answer.status_code, said(answer.text)) == (200, "")
