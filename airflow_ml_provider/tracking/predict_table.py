"""
Predicting over a table by stream, with a model of MLflow's pyfunc kind.

Run in the worker by import, or by path in an interpreter of the model's own (``python predict_table.py request.json``): so
this file imports nothing of this package, and nothing heavy before it has to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NO_REQUEST = 2
LATER = "a later batch of predictions has other types than the first"


class TableError(Exception):
    """The table and the model do not fit; a retry never helps."""


def predict_table(request: dict[str, Any]) -> dict[str, Any]:
    """
    Predict over a table, batch by batch, and write the predictions as Parquet.

    :param request: ``model`` (local folder), ``table`` (local Parquet or CSV file, or a folder of Parquet files),
        ``predictions`` (file to write), ``batch_rows``, ``keep`` (columns to keep, None for all) and ``parameters`` (for the
        model's ``predict``).
    :return: ``rows``, ``batches``, and the ``columns`` that were written.
    :raises TableError: a column is missing, or the model did not answer row by row.
    """
    import mlflow.pyfunc
    from pyarrow import parquet

    table, format_ = _opened(request["table"])
    keep = _kept(request["keep"], table.schema.names)
    model = mlflow.pyfunc.load_model(request["model"])
    features = _features(model, table.schema.names)
    writer, made, rows, batches, columns = None, None, 0, 0, list(keep)
    try:
        for batch in _batches(table, request["batch_rows"], format_):
            answer = _predicted(model, batch, features, keep, request["parameters"])
            made = _as_table(answer, None if made is None else made.schema)
            written = _beside(batch, keep, made)
            writer = writer or parquet.ParquetWriter(request["predictions"], written.schema)
            writer.write_table(written)
            rows, batches, columns = rows + written.num_rows, batches + 1, written.schema.names
        if writer is None:  # nothing to predict on: the kept columns, without rows
            parquet.write_table(table.schema.empty_table().select(keep), request["predictions"])
    finally:
        if writer is not None:
            writer.close()
    return {"rows": rows, "batches": batches, "columns": list(columns)}


def _opened(path: str) -> tuple[Any, str]:
    """Open a table without reading it."""
    import pyarrow as pa
    from pyarrow import dataset

    suffix = Path(path).suffix.lower()
    format_ = "csv" if suffix == ".csv" else "parquet"
    if suffix not in {".csv", ".parquet", ".pq"} and not Path(path).is_dir():
        raise TableError(f"the table {Path(path).name!r} is neither Parquet nor CSV by its ending (.parquet, .pq, .csv).")
    try:
        return dataset.dataset(path, format=format_), format_
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"the table {Path(path).name!r} cannot be read as {format_}: {error}") from error


def _batches(table: Any, batch_rows: int, format_: str) -> Iterator[Any]:
    """Give the rows in batches, two of them in memory at most."""
    import pyarrow as pa

    try:
        for batch in table.to_batches(batch_size=batch_rows, batch_readahead=1, fragment_readahead=1, use_threads=False):
            if batch.num_rows:
                yield batch
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"the table cannot be read as {format_}: {error}") from error


def _kept(wanted: list[str] | None, has: list[str]) -> list[str]:
    if wanted is None:
        return has
    if missing := [each for each in wanted if each not in has]:
        raise TableError(f"the table has no columns {missing} to keep; it has {has}.")
    return list(dict.fromkeys(wanted))


def _features(model: Any, has: list[str]) -> list[str]:
    """Name the columns that the model's signature asks for; all of them for a model without names in one."""
    schema = model.metadata.get_input_schema()
    if schema is None or not schema.has_input_names():
        return has
    missing = [each for each in schema.required_input_names() if each not in has]
    if missing:
        raise TableError(f"the table has no columns {missing}, which the model's signature asks for; it has {has}.")
    return [each for each in schema.input_names() if each in has]


def _predicted(model: Any, batch: Any, features: list[str], keep: list[str], parameters: dict[str, Any] | None) -> Any:
    """Predict on one batch, and look whether the answer fits beside the columns that are kept."""
    import pandas as pd

    frame = batch.to_pandas()
    answer = model.predict(frame[features], params=parameters) if parameters else model.predict(frame[features])
    columns = _columns(answer)
    lengths = {len(each) for each in columns.values()}
    if lengths != {len(frame)}:
        raise TableError(f"the model gave {sorted(lengths)} predictions for {len(frame)} rows; it must give one for each row.")
    if both := sorted(set(keep) & set(columns)):
        raise TableError(f"the columns {both} are in the table and in the model's answer. Leave them out of keep_columns.")
    return pd.DataFrame(columns)


def _columns(answer: Any) -> dict[str, Any]:
    """Name the columns of a model's answer: its own names, ``prediction``, or ``prediction_0`` and so on."""
    import numpy as np
    import pandas as pd

    if isinstance(answer, pd.DataFrame):
        return {str(name): answer[name].to_numpy() for name in answer.columns}
    if isinstance(answer, dict):
        return {str(name): list(values) for name, values in answer.items()}
    if isinstance(answer, list):
        return {"prediction": answer}
    values = np.asarray(answer)
    if values.ndim == 1:
        return {"prediction": values}
    if values.ndim == len(["rows", "columns"]):
        return {f"prediction_{index}": values[:, index] for index in range(values.shape[1])}
    raise TableError(f"the model answered with {values.ndim} dimensions; a table takes one or two.")


def _as_table(frame: Any, schema: Any) -> Any:
    import pyarrow as pa

    try:
        return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        what = "the predictions cannot be written as a table" if schema is None else LATER
        raise TableError(f"{what}: {error}") from error


def _beside(batch: Any, keep: list[str], made: Any) -> Any:
    """Put predictions beside the columns that are kept; these stay in Arrow, as pandas has other types than the table."""
    import pyarrow as pa

    written = pa.Table.from_batches([batch]).select(keep)
    for name, values in zip(made.column_names, made.columns, strict=True):
        written = written.append_column(name, values)
    return written


def main(arguments: list[str]) -> int:
    """
    Predict as a file says, and write beside it what came of it.

    :param arguments: Path of the request, and of the answer to write.
    :return: Exit code: 0, or 1 where the answer says what is wrong.
    """
    if len(arguments) != NO_REQUEST:
        return NO_REQUEST
    request, answer = map(Path, arguments)
    try:
        said = predict_table(json.loads(request.read_text()))
    except TableError as error:
        answer.write_text(json.dumps({"error": str(error)}))
        return 1
    answer.write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
