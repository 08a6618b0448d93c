"""References to artifacts."""

from __future__ import annotations

from airflow_ml_provider.models.reference import model_id_of


def test_the_id_of_a_loggedmodel_is_read_from_its_uri() -> None:
    model_id = "m-" + "0f" * 16
    assert model_id_of(f"models:/{model_id}") == model_id_of(f"models:/{model_id}/model.pkl") == model_id
    assert model_id_of("models:/m-short") == model_id_of("models:/name/3") == model_id_of("s3://b/" + model_id) == ""
