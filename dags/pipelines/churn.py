"""The pipeline of ``kfp_training``. After a change: ``python churn.py``, in an interpreter that has the kfp SDK."""

from kfp import compiler, dsl

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE)
def prepare(day: str, table: dsl.Output[dsl.Dataset]) -> None:
    """Write the customers of a day: months with us, calls to the hotline, and whether they left."""
    import csv
    import random

    chance = random.Random(day)
    with open(table.path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["months", "calls", "left"])
        for _ in range(2000):
            months, calls = chance.randint(1, 60), chance.randint(0, 9)
            rows.writerow([months, calls, int(chance.random() < 0.02 + 0.08 * calls / (1 + months / 12))])


@dsl.component(base_image=IMAGE, packages_to_install=["scikit-learn==1.7.2"])
def train(
    table: dsl.Input[dsl.Dataset], n_estimators: int, model: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics]
) -> None:
    """Fit a forest and say how well it tells who leaves."""
    import csv
    import pickle

    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    with open(table.path, newline="") as file:
        rows = [(int(each["months"]), int(each["calls"]), int(each["left"])) for each in csv.DictReader(file)]
    known, held_out = rows[:1500], rows[1500:]
    forest = RandomForestClassifier(n_estimators, min_samples_leaf=20).fit([row[:2] for row in known], [row[2] for row in known])
    scores = forest.predict_proba([row[:2] for row in held_out])[:, 1]
    metrics.log_metric("auc", roc_auc_score([row[2] for row in held_out], scores))
    with open(model.path, "wb") as file:
        pickle.dump(forest, file)


@dsl.pipeline(name="churn", description="Who will leave next month?")
def churn(day: str, n_estimators: int = 300) -> None:
    """Prepare, then train."""
    train(table=prepare(day=day).outputs["table"], n_estimators=n_estimators)


if __name__ == "__main__":
    compiler.Compiler().compile(churn, __file__.replace(".py", ".yaml"))
