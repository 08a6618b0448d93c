"""The pages in a real Chromium: a real API server of Airflow, a real MLflow, DAG runs of real steps; clicked as people do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of, tags_of
from tests.plugin import chromium, hostile, nightly
from tests.plugin.chromium import Airflow
from tests.servers import connection

NIGHTS = (0.712, 0.751)
"""What the model of each night reaches."""
pytestmark = [
    pytest.mark.skipif(chromium.program() is None, reason=chromium.NO_CHROMIUM),
    pytest.mark.form("sqlite"),  # what the pages ask of MLflow, test_rights.py and test_web.py ask of each form
]

EVIL = "http://evil."


@dataclass(frozen=True)
class Site:
    """
    What there is to look at.

    :param airflow: Its API server.
    :param mlflow: A client of MLflow.
    :param dag_id: A DAG that has run twice.
    :param model: The model that it has promoted.
    :param nights: Ids of its DAG runs.
    :param bad: A DAG whose records mean harm.
    """

    airflow: Airflow
    mlflow: MlflowApi
    dag_id: str
    model: str
    nights: list[str]
    bad: hostile.Records

    def steps(self, night: str) -> dict[str, Run]:
        """The runs of the steps of a DAG run, as MLflow has them."""
        tree = RunTree(self.mlflow)
        found = tree.search([tree.experiment_id(self.dag_id)], f"tags.`airflow.run_id` = '{night}'")
        return {tags_of(each)["airflow.task_id"]: each for each in found if "airflow.task_id" in tags_of(each)}


@pytest.fixture(scope="module")
def site(airflow_db: None, mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from tests.airflow_runs import run

    name = f"nightly_{os.urandom(4).hex()}"
    with pytest.MonkeyPatch.context() as patch, MlflowApi(mlflow_server) as api:
        patch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(mlflow_server))
        outcomes = [run(nightly.make_dag(name, name, auc)) for auc in NIGHTS]
        assert [each.state for each in outcomes] == ["success", "success"]
        bad = hostile.write(api, f"bad_{name}")
        with chromium.api_server(tmp_path_factory.mktemp("api-server"), os.environ) as airflow:
            yield Site(airflow, api, name, name, [each.run_id for each in outcomes], bad)


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium.program(), args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def person(site: Site, browser: Any) -> Iterator[Any]:
    """A page of somebody who has logged in, as people do."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(60_000)  # a machine that runs three tests at a time
    page.goto(site.airflow.url)
    page.locator("input[name=username]").fill("ada")
    page.locator("input[name=password]").fill(chromium.PASSWORDS["ada"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Dags", exact=True).first.wait_for()
    yield page
    context.close()


def tab(site: Site, person: Any, place: str = "") -> Any:
    """Go to the second night, or a place of it, and press the tab; give what is in the frame."""
    person.goto(f"{site.airflow.url}/dags/{site.dag_id}/runs/{quote(site.nights[1], safe='')}{place}")
    person.get_by_role("link", name="MLflow", exact=True).click()
    frame = person.frame_locator("iframe")
    frame.locator("h1").wait_for()
    return frame


def opened(frame: Any, name: str) -> Any:
    """Press a step, and give what is below it."""
    step = frame.locator(f'details.step:has(> summary .name:text-is("{name}"))')
    step.locator(":scope > summary").click()
    return step


def test_without_a_login_there_is_nothing(site: Site, browser: Any) -> None:
    page = browser.new_page()
    step = site.steps(site.nights[1])["train"]
    for path in (
        "",
        f"/run?run_id={quote(site.nights[1])}",
        f"/run/step?run_id={quote(site.nights[1])}&task_id=train",
        f"/artifact?run={run_id_of(step)}&path=try-1/late.png",
        f"/picture?run={run_id_of(step)}&path=try-1/late.png",
        f"/model?name={site.model}",
        f"/lineage?of=models:/{site.model}/1",
    ):
        answer = page.goto(f"{site.airflow.url}/airflow-ml/dags/{site.dag_id}{path}")
        assert answer.status == 401
        assert page.locator("main").inner_text().split("\n\n") == ["You are not logged in to Airflow.", "Log in"]
    page.close()


def test_a_person_opens_the_tab_of_a_dag_run_and_finds_what_mlflow_holds(site: Site, person: Any) -> None:
    frame, steps = tab(site, person), site.steps(site.nights[1])
    assert frame.locator("h1").inner_text() == site.nights[1]
    assert (
        set(frame.locator("details.step > summary .name").all_inner_texts())
        == set(steps)
        == {*("collect", "train", "gate", "promote")}
    )
    for name, run in steps.items():
        step = opened(frame, name)
        assert step.locator(":scope > summary .badge").first.inner_text() == tags_of(run)["airflow.state"] == "success"
        shown = dict(zip(step.locator("dt").all_inner_texts(), step.locator("dd").all_inner_texts(), strict=True))
        metrics = {each["key"]: each["value"] for each in run["data"].get("metrics", [])}
        assert {key: float(shown[key].replace(",", "")) for key in metrics} == pytest.approx(metrics, rel=1e-5)
        assert (
            shown.items()
            >= {each["key"]: each["value"] for each in run["data"].get("params", []) if each["key"] not in metrics}.items()
        )
        assert run_id_of(run) in (step.get_by_role("link", name="MLflow run").get_attribute("href") or "")
    collect = frame.locator("details.step", has_text="collect").first
    assert tags_of(steps["collect"])["airflow.cache"] == "hit"
    assert collect.locator(":scope > summary .badge").all_inner_texts() == ["success", "cached"]
    assert quote(site.nights[0], safe="") in (collect.get_by_role("link", name="from this step").get_attribute("href") or "")
    gate = frame.locator("details.step", has=frame.locator(".reason .badge"))
    assert tags_of(steps["gate"])["airflow.gate.decision"] == gate.locator(".reason .badge").inner_text()
    assert tags_of(steps["gate"])["airflow.gate.reasons"] in gate.locator(".reason").inner_text()


def test_small_artifacts_are_shown_where_they_are_opened(site: Site, person: Any) -> None:
    frame = tab(site, person)

    def shown(step: str, name: str) -> Any:
        file = opened(frame, step).locator(f'details.file:has(.name:text-is("{name}"))')
        file.locator("summary").click()
        file.locator("[data-fetched=ended]").wait_for()
        return file

    picture = shown("train", "late").locator("img")
    picture.scroll_into_view_if_needed()
    person.wait_for_timeout(300)
    assert picture.evaluate("each => [each.naturalWidth, each.naturalHeight]") == [520, 180]
    table = shown("collect", "flights").locator("table")
    assert table.locator("th").all_inner_texts() == ["carrier", "flights", "late_minutes"]
    assert table.locator("tr").nth(1).locator("td").all_inner_texts() == [str(each) for each in nightly.CARRIERS[0]]
    settings = frame.locator('details.file:has(.name:text-is("settings"))')
    settings.locator("summary").click()
    assert '"learning_rate": 0.06' in settings.locator("pre").inner_text()


def test_links_lead_from_the_run_to_the_model_and_along_its_lineage(site: Site, person: Any) -> None:
    frame = tab(site, person)
    frame.get_by_role("link", name=f"{site.model} version 2").click()
    frame.locator("svg.lineage").wait_for()
    assert frame.locator("h1").inner_text() == site.model
    rows = frame.locator("table tr").all()[1:]
    versions = site.mlflow.get("model-versions/search", filter=f"name = '{site.model}'")["model_versions"]
    assert [each.locator("td").first.inner_text() for each in rows] == sorted(
        (str(each["version"]) for each in versions), reverse=True
    )
    assert [each.locator(".badge").all_inner_texts() for each in rows] == [["@champion"], ["@previous-champion"]]
    chart = frame.locator("figure").filter(has_text="auc").first
    titles = [each.text_content() for each in chart.locator("circle title").all()]
    assert titles == [f"version {number}: {auc}" for number, auc in enumerate(NIGHTS, 1)]
    words = {box.locator("text").first.text_content() for box in frame.locator("svg.lineage a").all()}
    assert words >= {"train", "flights", "collect", "model"}
    frame.locator("svg.lineage a.run").filter(has_text="train").click()
    frame.locator("h1").get_by_text("train", exact=True).wait_for()
    assert frame.locator("details.file").filter(has_text="try-1/late.png").count() == 1, "and all files of the step"
    frame.get_by_role("link", name=site.dag_id, exact=True).click()
    frame.locator("h1").get_by_text(site.dag_id).wait_for()
    assert frame.locator("table td:first-child").all_inner_texts() == site.nights[::-1]


def test_a_step_has_a_tab_of_its_own_and_mlflow_opens_beside_airflow(site: Site, person: Any) -> None:
    frame = tab(site, person, "/tasks/train")
    frame.locator("h1").get_by_text("train", exact=True).wait_for()
    with person.context.expect_page() as opened:
        frame.get_by_role("link", name="MLflow run").click()
    opened.value.wait_for_url(f"**/runs/{run_id_of(site.steps(site.nights[1])['train'])}**")
    assert "iframe" not in opened.value.content()[:200]
    opened.value.close()


def test_it_wears_airflows_theme(site: Site, person: Any) -> None:
    frame = tab(site, person)
    root = frame.locator("html")
    for theme in ("light", "dark"):
        person.evaluate("theme => { document.documentElement.className = theme }", theme)  # as Airflow's own switch does
        frame.locator(f"html[data-theme={theme}]").wait_for()
        outer = person.evaluate("getComputedStyle(document.body).backgroundColor")
        assert root.evaluate("each => getComputedStyle(each.ownerDocument.body).backgroundColor") == outer
        text = root.evaluate("each => getComputedStyle(each.ownerDocument.body).color")
        assert (int(re.findall(r"\d+", text)[0]) < 128) == (theme == "light")


def test_what_means_harm_is_shown_and_does_nothing(site: Site, person: Any) -> None:
    asked: list[str] = []
    harm: list[str] = []

    def talk(dialog: Any) -> None:
        harm.append(dialog.message)
        dialog.dismiss()

    page = person.context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", talk)
    page.on("popup", lambda popup: harm.append(popup.url))
    base = f"{site.airflow.url}/airflow-ml/dags/{site.bad.dag_id}"
    for path in site.bad.pages:
        answer = page.goto(base + path)
        assert answer.status == 200, path
        closed = page.locator("details:not([open]) > summary:visible")
        while closed.count():
            closed.first.click()
        page.wait_for_timeout(200)
        page.locator("[data-fetched=begun]").first.wait_for(state="detached")
        assert page.url == base + path, "nothing has led elsewhere"
        assert page.evaluate("[window.hacked, document.querySelectorAll('main script, main iframe, main object').length]") == [
            None,
            0,
        ]
        foreign = page.evaluate(
            "[...document.querySelectorAll('main *')].some(e => e.getAttributeNames().some(n => n.startsWith('on')))"
        )
        assert not foreign, path
    assert harm == []
    assert [each for each in asked if each.startswith(EVIL)] == [], "nobody else is told"
    text = page.goto(base + site.bad.pages[0]) and page.locator("main").text_content()
    assert hostile.MARKUP in text
    assert "\u202e" not in text
    assert "\\u202e" in text


def test_a_file_never_leaves_as_more_than_a_picture(site: Site, person: Any) -> None:
    base = f"{site.airflow.url}/airflow-ml/dags/{site.bad.dag_id}"
    for path in site.bad.files:
        where = f"?run={site.bad.run_id}&path={quote(path, safe='')}"
        answer = person.request.get(f"{base}/picture{where}")
        if path == "good.png":
            assert answer.headers["content-type"] == "image/png"
            assert "sandbox" in answer.headers["content-security-policy"]
        else:
            assert answer.status == 404
        assert answer.headers["x-content-type-options"] == "nosniff"
        page = person.request.get(f"{base}/artifact{where}")
        assert page.status == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert len(page.body()) < 400_000, path
