"""What a file on this machine says of itself: columns and rows of a table, what a model was made with."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider.lineage.facts import NOTHING, FileFacts

log = logging.getLogger(__name__)

MLMODEL = "MLmodel"
"""File with which MLflow describes a model."""
GENERAL_FLAVOR = "python_function"
COLUMNS_KEPT = 500
MLMODEL_BYTES = 1 << 20
"""A longer description is not read: YAML takes seconds for a megabyte."""


def look_into(path: str) -> FileFacts:
    """
    Read what a file says; only its footer, or a few lines.

    :param path: File or directory.
    :return: What it says; nothing where that is not known, or cannot be read.
    """
    file = Path(path)
    try:
        if file.suffix == ".parquet" and file.is_file():
            return _table(file)
        if (file / MLMODEL).is_file() and (file / MLMODEL).stat().st_size <= MLMODEL_BYTES:
            return _model(file / MLMODEL)
    except Exception as error:  # noqa: BLE001  (a file may be anything)
        log.debug("%s says nothing of itself: %s", path, error)
    return NOTHING


def _table(file: Path) -> FileFacts:
    if "pyarrow" not in sys.modules:  # whoever wrote or read it here has it; to import it only for this would take a second
        return NOTHING
    from pyarrow import parquet

    found: Any
    with parquet.ParquetFile(file) as found:
        columns = {each.name: str(each.type) for each in found.schema_arrow}
        return FileFacts(dict(list(columns.items())[:COLUMNS_KEPT]), found.metadata.num_rows)


def _model(file: Path) -> FileFacts:
    import yaml  # type: ignore[import-untyped]

    found = yaml.safe_load(file.read_text())
    flavors = found.get("flavors") if isinstance(found, Mapping) else None
    names = [str(each) for each in flavors or {} if each != GENERAL_FLAVOR]
    return FileFacts(framework=names[0] if names else "")
