"""Samples taken in turns, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """
    Two or more ways to do one thing, each measured once in every round.

    :param title: What is measured.
    :param unit: Unit of the samples.
    :param samples: Samples per way, in the order of the rounds.
    :param ours: The way that is judged.
    :param base: The way that it is judged by.
    :param aim: Largest ratio that is wanted; None for a figure that has none.
    :param empty: The way whose sample of the same round is taken off both before they are divided.
    :param added: Judge by the difference, not by the ratio: milliseconds added.
    """

    title: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    ours: str
    base: str
    aim: float | None = None
    empty: str | None = None
    added: bool = False

    @property
    def pairs(self) -> list[float]:
        """Ratio, or difference, of each round."""
        zero = self.samples[self.empty] if self.empty else [0.0] * len(self.samples[self.ours])
        rounds = zip(self.samples[self.ours], self.samples[self.base], zero, strict=True)
        if self.added:
            return [ours - base for ours, base, _ in rounds]
        return [(ours - nothing) / (base - nothing) for ours, base, nothing in rounds if base > nothing]

    @property
    def result(self) -> float:
        """Median of the pairs; not a number where none could be made."""
        return median(self.pairs) if self.pairs else float("nan")

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None without one."""
        return None if self.aim is None else self.result <= self.aim


@dataclass(frozen=True)
class Finding:
    """
    What one benchmark says.

    :param title: Its headline.
    :param how: How it was measured, in a sentence or two.
    :param comparisons: Its figures.
    :param notes: What else was seen.
    """

    title: str
    how: str
    comparisons: list[Comparison]
    notes: list[str] = field(default_factory=list)


def take_turns(ways: Iterable[str], measure: Callable[[str], float], rounds: int) -> dict[str, list[float]]:
    """
    Measure the ways in turns, each second round backwards, so that a drift of the machine hits all alike.

    :param ways: Names of the ways.
    :param measure: Does one way once, and returns the sample.
    :param rounds: Samples of each; one more is taken first, to warm up, and dropped, unless one is all that is wanted.
    :return: Samples per way.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + (rounds > 1)):
        for name in list(taken)[:: -1 if turn % 2 else 1]:
            taken[name].append(measure(name))
    return last(taken, rounds)


def last(taken: Mapping[str, list[T]], rounds: int) -> dict[str, list[T]]:
    """
    Drop what was taken to warm up.

    :param taken: Samples per way.
    :param rounds: How many to keep.
    :return: The newest of each.
    """
    return {name: values[-rounds:] for name, values in taken.items()}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """
    Return the values a quarter and three quarters up the sorted list.

    :param values: At least one.
    :return: Both.
    """
    listed = sorted(values)
    last = len(listed) - 1
    return listed[round(last * 0.25)], listed[round(last * 0.75)]
