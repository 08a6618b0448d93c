from pathlib import Path
import pendulum
from airflow.sdk import dag
from airflow_ml_provider import Input, Model, Output, ml_task
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.tracking.registry import ModelRegistry


@ml_task
def fit(model: Output[Model]) -> None:
    Path(model.path).write_text("x")


@ml_task
def look(model: Input[Model] | None) -> str:
    return str(model)


def test_x(run_dag, unique, mlflow_api):
    @dag(dag_id=unique, schedule=None, start_date=pendulum.datetime(2024, 1, 1))
    def d():
        PromoteModelOperator(task_id="promote", model=fit()["model"], name=unique)

    run_dag(d())
    m = ModelRegistry(mlflow_api).find(unique, "champion")
    mlflow_api.delete(f"logged-models/{m.model_id}", {})

    @dag(dag_id=unique + "2", schedule=None, start_date=pendulum.datetime(2024, 1, 1))
    def d2():
        look(model=f"models:/{unique}@champion")

    o = run_dag(d2())
    print("LOOKED", o.state, o.xcom("look"))
