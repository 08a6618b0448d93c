"""
The container's half of a step, and how it gets into a container.

``airflow_ml_step.py`` imports nothing of this package, and nothing in this package imports it: it is read as text. Copy it into
an image, or let the operator put :func:`packed` into the environment and run :data:`BOOT`.
"""

from __future__ import annotations

import base64
import functools
import zlib
from pathlib import Path

VARIABLE = "AIRFLOW_ML_STEP"
"""Environment variable for :func:`packed`."""
BOOT = (
    "import sys;sys.path=[p for p in sys.path if p];import os,zlib,binascii;"
    f"exec(compile(zlib.decompress(binascii.a2b_base64(os.environ['{VARIABLE}'])),'airflow_ml_step.py','exec'))"
)
"""
Program for ``python3 -c``: unpacks the file and runs it with the arguments that follow (``run -- CMD ARGS...``).

The working directory is taken off the path first: a ``json.py`` that lies there is the user's.
"""


@functools.cache
def source() -> str:
    """
    Read the container's half.

    :return: The text of ``airflow_ml_step.py``.
    """
    return (Path(__file__).parent / "airflow_ml_step.py").read_text()


@functools.cache
def packed() -> str:
    """
    Pack the container's half for an environment variable.

    :return: ASCII: base64 of the compressed source.
    """
    return base64.b64encode(zlib.compress(source().encode(), 9)).decode()
