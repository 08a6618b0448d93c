"""The gate in real DAG runs, against a real MLflow server: what it reads, what it says, and what then follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pendulum
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import dag

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.models.gate import PairedComparison, Verdict
from airflow_ml_provider.operators.gate import ModelGateOperator, read_rows
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree, tags_of

START = pendulum.datetime(2024, 1, 1)
APPROVAL_BODY = "{{ ti.xcom_pull(task_ids='gate')['reasons'] | join('\n\n') }}"


@ml_task(retries=0)
def fit(
    apart: float, columns: list[str], said: str, model: Output[Model], scores: Output[Dataset], metrics: Output[Metrics]
) -> None:
    """Train nothing: scores that lie the further apart the better; those of the champion lie 0.2 apart."""
    random = np.random.default_rng(1)
    label = (random.random(1000) < 0.3).astype(int)
    noise = random.normal(0, 0.15, 1000)
    frame = pd.DataFrame({"label": label, "challenger": 0.3 + apart * label + noise, "champion": 0.3 + 0.2 * label + noise})
    model.path += ".txt"
    Path(model.path).write_text(f"{apart}")
    scores.path += ".parquet"
    scores.metadata["note"] = "from a test"
    if said:
        scores.metadata["champion_unreadable"] = said
    frame[["label", *columns]].to_parquet(scores.path)
    metrics.log_metric("auc", 0.5 + apart)
    metrics.metadata["remark"] = "not a number"


def told(text: str) -> str:
    return text


BOTH = ["challenger", "champion"]
ALONE = ["challenger"]


@pytest.fixture
def night(run_dag, unique):
    """One night: fit, gate, promote, report; the arguments of the gate may differ."""

    def run(apart, columns=BOTH, *, said="", day=1, **gate):
        @dag(dag_id=unique, schedule=None, start_date=START, params={"floor": 0.6})
        def nightly():
            fitted = fit(apart=apart, columns=columns, said=said)
            arguments = {
                "challenger": fitted["model"],
                "champion": f"models:/{unique}@champion",
                "metrics": fitted["metrics"],
                "scores": fitted["scores"],
                "rules": ["auc >= {{ params.floor }}"],
                "compare": PairedComparison(metric="auc", resamples=100),
            }
            judged = ModelGateOperator(task_id="gate", retries=2, retry_delay=0, **(arguments | gate))
            promote = PromoteModelOperator(task_id="promote", model=fitted["model"], name=unique)
            tell = PythonOperator(task_id="tell", python_callable=told, op_args=[APPROVAL_BODY], trigger_rule="none_failed")
            judged >> promote >> EmptyOperator(task_id="report", trigger_rule="none_failed")
            judged >> EmptyOperator(task_id="beside") if "branches" in gate else promote >> tell

        return run_dag(nightly(), logical_date=None if day is None else START.add(days=day))

    return run


@pytest.fixture
def crowned(run_dag, unique):
    """A champion from a night before, promoted without a gate."""

    def run(*, day=1):
        @dag(dag_id=f"{unique}-before", schedule=None, start_date=START)
        def before():
            PromoteModelOperator(task_id="promote", model=fit(apart=0.2, columns=ALONE, said="")["model"], name=unique)

        assert run_dag(before(), logical_date=START.add(days=day)).state == "success"

    return run


@pytest.fixture
def registry(mlflow_api):
    return ModelRegistry(mlflow_api)


def verdict_of(outcome):
    return Verdict.from_json(outcome.xcom("gate"))


def run_of(api, dag_id, outcome):
    tree = RunTree(api)
    found = tree.search([tree.experiment_id(dag_id)], "tags.`airflow.task_id` = 'gate'")
    (run,) = [each for each in found if tags_of(each)["airflow.run_id"] == outcome.run_id]
    return run


def test_the_first_model_is_promoted_and_a_better_one_takes_its_place(night, registry, unique, mlflow_api):
    first = night(0.2, ALONE, day=1)
    assert verdict_of(first).reasons[0].startswith("There is no champion yet")
    assert (first.state, first.task("promote"), first.task("report")) == ("success", "success", "success")

    second = night(0.3, day=2)
    verdict = verdict_of(second)
    assert (verdict.decision, verdict.champion) == ("promote", verdict_of(first).challenger)
    assert verdict.metrics["auc"] == 0.8
    assert second.xcom("promote") == {
        "name": unique,
        "version": "2",
        "alias": "champion",
        "previous_version": "1",
        "uri": f"models:/{unique}/2",
        "reason": f"Promoted: version 2 is {unique}@champion now; before it: version 1.",
    }
    assert registry.find(unique, "champion").source == verdict.challenger
    assert second.xcom("tell") == "\n\n".join(verdict.reasons)

    run = run_of(mlflow_api, unique, second)
    assert run["info"]["status"] == "FINISHED"
    assert tags_of(run)["airflow.gate.decision"] == "promote"
    assert tags_of(run)["airflow.gate.reasons"].startswith("auc is 0.9")
    logged = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    assert logged.keys() == {"auc", "challenger_auc", "champion_auc", "gain", "gain_low", "gain_high"}
    assert logged["gain_low"] == verdict.gain.low > 0
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert params["rules"] == '["auc >= 0.6"]'
    assert '"metric": "auc"' in params["compare"]
    assert [each["path"] for each in mlflow_api.list_files(_artifacts(run))] == ["verdict.json"]


def _artifacts(run):
    return run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/") + "/try-1"


def test_a_tie_skips_the_promotion_keeps_the_verdict_and_lets_the_report_run(night, crowned, registry, unique, mlflow_api):
    crowned()
    tie = night(0.2, day=2)
    assert (tie.state, tie.task("gate"), tie.task("promote"), tie.task("report")) == ("success", "success", "skipped", "success")
    assert verdict_of(tie).decision == "keep"
    assert "a tie keeps the champion" in verdict_of(tie).reasons[0]
    assert registry.find(unique, "champion").version == "1"
    assert run_of(mlflow_api, unique, tie)["info"]["status"] == "FINISHED"


def test_a_gate_that_fails_fails_at_once_and_still_says_why(night, unique, mlflow_api):
    shut = night(0.05, ALONE, otherwise="fail")
    assert (shut.state, shut.task("gate"), shut.task("promote")) == ("failed", "failed", "upstream_failed")
    assert verdict_of(shut).decision == "reject"
    run = run_of(mlflow_api, unique, shut)
    assert run["info"]["status"] == "FAILED"
    tags = tags_of(run)
    assert tags["airflow.try_number"] == "1"
    assert tags["airflow.gate.decision"] == "reject"
    assert "the gate's verdict is reject: The rule auc >= 0.6 is broken: auc is 0.55." in tags["airflow.error"]


def test_a_gate_that_may_fail_lets_a_good_model_pass(night):
    assert night(0.2, ALONE, otherwise="fail").task("promote") == "success"


@pytest.mark.parametrize(
    ("apart", "follows", "skipped"), [(0.2, ["promote"], ["beside"]), (0.05, ["beside"], ["promote"])], ids=["promote", "reject"]
)
def test_a_branch_follows_the_verdict(night, apart, follows, skipped):
    outcome = night(apart, ALONE, otherwise="branch", branches={"promote": "promote", "reject": ["beside"]})
    assert [outcome.task(each) for each in follows] == ["success"]
    assert [outcome.task(each) for each in skipped] == ["skipped"]
    assert verdict_of(outcome).decision in ("promote", "reject")


def test_a_verdict_without_a_branch_skips_all(night):
    outcome = night(0.05, ALONE, otherwise="branch", branches={"promote": "promote"})
    assert (outcome.task("promote"), outcome.task("beside")) == ("skipped", "skipped")


def test_a_backfill_of_an_older_night_keeps_the_newer_champion(night, crowned, registry, unique):
    crowned(day=5)
    late = night(0.4, day=3)
    assert verdict_of(late).decision == "keep"
    assert "is of 2024-01-04T00:00:00+00:00, older than the champion of 2024-01-06T00:00:00+00:00" in verdict_of(late).reasons[0]
    assert registry.find(unique, "champion").version == "1"


def test_a_run_without_a_logical_date_does_not_shut_the_gate_for_the_nights(night, registry, mlflow_api, unique):
    night(0.2, ALONE, day=None)
    first = registry.find(unique, "champion")
    assert registry.trained_at(first) is None
    model = mlflow_api.get(f"logged-models/{first.model_id}")["model"]["info"]
    assert "airflow.logical_date" not in {*first.tags, *(each["key"] for each in model["tags"])}
    verdict = verdict_of(night(0.3, day=2))
    assert verdict.decision == "promote"
    assert "The logical date of the champion is not on record" in verdict.reasons[1]
    assert registry.find(unique, "champion").version == "2"


def test_an_at_sign_in_the_place_of_the_champion_is_no_alias(night, registry, tmp_path, unique):
    place = tmp_path / "models@prod" / "champion"
    place.parent.mkdir()
    place.write_text("serves")
    worse = night(0.1, champion=str(place))
    assert (verdict_of(worse).decision, verdict_of(worse).champion) == ("keep", str(place))
    assert "the challenger is worse" in verdict_of(worse).reasons[0]
    assert registry.find(unique, "champion") is None


def test_scores_of_a_champion_that_is_not_there_promote_nothing(night, registry, unique):
    verdict = verdict_of(night(0.3, BOTH))
    assert verdict.decision == "keep"
    assert "There is no champion, and yet the scores have a column" in verdict.reasons[0]
    assert registry.find(unique, "champion") is None


@ml_task
def score(challenger: Input[Model], champion: Input[Model], made: Input[Dataset], scores: Output[Dataset]) -> None:
    """Score both, so to say: whoever asks for the models of this step finds both."""
    scores.path += ".parquet"
    pd.read_parquet(made.path).to_parquet(scores.path)


@ml_task
def hand_on(champion: Input[Model], scores: Input[Dataset], said: Output[Dataset]) -> None:
    """Say of which champion the scores are: that is all that can be known of it."""
    said.path += ".parquet"
    pd.read_parquet(scores.path).to_parquet(said.path)
    said.metadata["champion"] = champion.uri


@pytest.mark.parametrize(
    ("moves", "by"),
    [(True, "lineage"), (True, "metadata"), (False, "lineage"), pytest.param(False, "metadata", marks=pytest.mark.full)],
)
def test_a_champion_that_changed_after_the_scores_were_made_is_not_compared(run_dag, crowned, registry, unique, by, moves):
    crowned()
    champion = f"models:/{unique}@champion"
    scored = registry.find(unique, "champion").source

    @dag(dag_id=f"{unique}-late", schedule=None, start_date=START)
    def late():
        fitted = fit(apart=0.3, columns=BOTH, said="")
        better = fit.override(task_id="better")(apart=0.25, columns=BOTH, said="")
        if by == "lineage":
            scores = score(challenger=fitted["model"], champion=champion, made=fitted["scores"])["scores"]
        else:
            scores = hand_on(champion=champion, scores=fitted["scores"])["said"]
        gate = ModelGateOperator(
            task_id="gate", challenger=fitted["model"], champion=champion, scores=scores, compare=PairedComparison(metric="auc")
        )
        if moves:
            scores.operator >> PromoteModelOperator(task_id="meanwhile", model=better["model"], name=unique) >> gate

    verdict = verdict_of(run_dag(late(), logical_date=START.add(days=2)))
    now = registry.find(unique, "champion").source
    assert (verdict.decision, verdict.champion) == ("keep" if moves else "promote", now)
    assert (f"is that of {scored}, and the champion is {now} now" in verdict.reasons[0]) == moves


@pytest.mark.parametrize(("choice", "decision"), [("keep", "keep"), ("promote", "promote")])
def test_a_champion_changed_in_the_store_is_said_to_be_unreadable(night, crowned, registry, mlflow_api, unique, choice, decision):
    crowned()
    model = mlflow_api.get(f"logged-models/{registry.find(unique, 'champion').model_id}")["model"]["info"]
    place = model["artifact_uri"].removeprefix("mlflow-artifacts:/") + "/model.txt"
    mlflow_api.upload(place, [b"something else"], 14)
    verdict = verdict_of(night(0.3, ALONE, day=2, unreadable_champion=choice))
    assert verdict.decision == decision
    assert "cannot be read: Model 'champion' at models:/m-" in verdict.reasons[0]
    assert "was changed in the store" in verdict.reasons[0]


def test_a_champion_deleted_from_the_store_is_not_taken_for_none_yet(night, crowned, registry, mlflow_api, unique):
    crowned()
    champion = registry.find(unique, "champion")
    mlflow_api.delete(f"logged-models/{champion.model_id}", {})
    verdict = verdict_of(night(0.3, ALONE, day=2))
    assert (verdict.decision, verdict.champion) == ("keep", champion.source)
    assert "cannot be read" in verdict.reasons[0]


def test_a_step_that_could_not_load_the_champion_may_say_why(night, crowned):
    crowned()
    verdict = verdict_of(night(0.3, ALONE, day=2, said="it was pickled by scikit-learn 1.2"))
    assert verdict.decision == "keep"
    assert "cannot be read: it was pickled by scikit-learn 1.2. It stays until somebody looks" in verdict.reasons[0]


def test_a_champion_that_can_be_read_and_was_not_scored_is_kept_for_lack_of_pairs(night, crowned):
    crowned()
    verdict = verdict_of(night(0.3, ALONE, day=2))
    assert verdict.decision == "keep"
    assert "no column 'champion'" in verdict.reasons[0]


def test_mapped_gates_judge_each_its_own(run_dag, unique):
    @dag(dag_id=unique, schedule=None, start_date=START)
    def example():
        fitted = fit(apart=0.3, columns=ALONE, said="")
        ModelGateOperator.partial(
            task_id="gate", challenger=fitted["model"], champion=f"models:/{unique}@champion", scores=fitted["scores"]
        ).expand(rules=[["auc >= 0.6"], ["auc >= 0.99"]])

    outcome = run_dag(example())
    assert outcome.state == "success"
    assert [outcome.xcom("gate", index)["decision"] for index in (0, 1)] == ["promote", "reject"]


def arguments(**changed):
    known = {"challenger": "models:/m@new", "champion": "models:/m@champion", "scores": "/data/scores.csv", "compare": "auc"}
    return {"task_id": "gate"} | {key: value for key, value in (known | changed).items() if value != "left out"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rules": ["auc => 0.7"]}, "'auc => 0.7' is not a rule"),
        ({"compare": "uac"}, "Did you mean 'auc'"),
        ({"compare": "shop.metrics:profit"}, "greater_is_better=True"),
        ({"compare": None}, "nothing to judge by"),
        ({"scores": None}, "needs scores="),
        ({"otherwise": "stop"}, "none of skip, fail and branch"),
        ({"otherwise": "branch"}, "go together"),
        ({"branches": {"promote": "x"}}, "go together"),
        ({"otherwise": "branch", "branches": {"promot": "x"}}, "Did you mean 'promote'"),
        ({"champion": "flight-delays"}, "'flight-delays' is not the place of one"),
        ({"champion": None}, "needs both models"),
    ],
)
def test_what_could_never_work_is_refused_when_the_dag_is_parsed(changed, said):
    with pytest.raises(ConfigError, match=said):
        ModelGateOperator(**arguments(**changed))


def test_a_reference_of_another_type_is_refused_when_the_dag_is_parsed():
    with dag(dag_id="wrong", schedule=None, start_date=START)(lambda: None)():
        fitted = fit(apart=0.3, columns=ALONE, said="")
        with pytest.raises(ConfigError, match=r"step 'gate', parameter 'challenger' wants Input\[Model\], but .* is a Dataset"):
            ModelGateOperator(**arguments(challenger=fitted["scores"]))


def test_scores_are_read_from_csv_and_parquet_alike(tmp_path):
    frame = pd.DataFrame({"label": [0, 1], "challenger": [0.1, 0.9], "other": ["a", "b"]})
    frame.to_csv(tmp_path / "scores.csv", index=False)
    frame.to_parquet(tmp_path / "scores.parquet")
    for name in ("scores.csv", "scores.parquet"):
        rows = read_rows(tmp_path / name)
        assert (list(rows.label), list(rows.challenger), rows.champion) == ([0, 1], [0.1, 0.9], None)


def test_scores_that_are_no_table_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match="neither"):
        read_rows(tmp_path / "scores")
    broken = tmp_path / "scores.parquet"
    broken.write_text("label\n1\n")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_rows(broken)
