import datetime, pendulum
from airflow.sdk import dag, task
from airflow.providers.standard.operators.hitl import ApprovalOperator
def test_x(run_dag, unique):
    @dag(dag_id=unique, schedule=None, start_date=pendulum.datetime(2024,1,1))
    def d():
        @task
        def gate(): return {"reasons":["a","b"],"challenger":"models:/m"}
        @task
        def promote(): return 1
        ask = ApprovalOperator(task_id="ask", subject="Promote {{ ti.xcom_pull(task_ids='gate')['challenger'] }}?", body="{{ ti.xcom_pull(task_ids='gate')['reasons'] | join('\n\n') }}", defaults="Approve", response_timeout=datetime.timedelta(seconds=2))
        gate() >> ask >> promote()
    o = run_dag(d())
    print(o)
