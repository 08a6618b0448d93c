"""Entry point."""

from __future__ import annotations


def main() -> int:
    """
    Run the command line.

    :return: Exit status.
    """
    return 0
