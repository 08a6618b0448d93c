"""
The keeper: a small process that ends the stack when the process that started it is gone, however that came about.

It waits for the end of its standard input, a pipe whose other end is held by the stack's owner alone. After an
orderly end there is nothing left to do; after ``kill -9`` of the owner it ends what the state file names.

Run as ``python -m demo.keeper FOLDER TOKEN``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo.errors import DemoError
from demo.state import StateFolder

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """
    Wait for the owner's end, then clean up.

    :param arguments: The state folder and the token of the run to keep.
    :return: Exit status: 1 when something could not be ended.
    """
    folder, token = arguments
    sys.stdin.buffer.read()
    try:
        StateFolder(Path(folder)).clean_up(only_token=token)
    except DemoError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
