"""MLflow as the system of record: the run tree, artifacts, what a step leaves behind, the registry."""
