"""Questions about where a model comes from, answered from what MLflow has on record."""
