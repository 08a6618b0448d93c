"""
What the demo shows: progress while it waits, then the table, the champion and the addresses.

On a terminal the progress is live, one line a step; elsewhere each change is one plain line.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from demo.records import metrics_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from demo.nights import Night, Step
    from demo.records import Champion

__all__ = ["NightProgress", "Screen"]

STYLES = {"success": "green", "failed": "red", "upstream_failed": "red", "running": "yellow", "up_for_retry": "yellow"}
WIDTH = 160
STARTED = frozenset({"running", "success", "failed", "up_for_retry", "deferred", "upstream_failed", "skipped"})


class Screen:
    """
    The terminal.

    :param console: Where to print, by default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """
        Print a line.

        :param text: Printed as it is.
        """
        self.console.print(escape(text))

    def component(self, name: str, event: str, seconds: float) -> None:
        """
        Tell what became of a component of the stack.

        :param name: The component.
        :param event: What became of it.
        :param seconds: Seconds since its start.
        """
        if name == "migrate":
            name = "database"
        if event != "starting":
            self.say(f"  {name:<14} {event}" + (f"  {seconds:.0f} s" if event == "ready" else ""))

    @contextmanager
    def night(self, night: Night) -> Iterator[NightProgress]:
        """
        Show the progress of a night until the end of the ``with`` statement.

        :param night: Which.
        :return: Where to put what is known of its steps.
        """
        if not self.console.is_terminal:
            yield NightProgress(self, night, None)
            return
        with Live(console=self.console, refresh_per_second=4, transient=False) as live:
            yield NightProgress(self, night, live)

    def results(self, rows: Sequence[tuple[Night, Step, str, str]]) -> None:
        """
        Print the table of what the steps made.

        :param rows: Night, step, whether it was cached, and what it made.
        """
        # On a terminal the table takes its width; in a file it takes the width that it needs.
        table = Table("night", "step", "state", "duration", "cache", "what it made", title_justify="left")
        last = None
        for night, step, cache, made in rows:
            day = "" if night.day == last else night.day.isoformat()
            last = night.day
            table.add_row(
                day, escape(step.name), _state(step), _duration(step.seconds), f"[cyan]{escape(cache)}[/cyan]", escape(made)
            )
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self.console.print(table)

    def champion(self, champion: Champion | None) -> None:
        """
        Print which model serves and how good it is.

        :param champion: The champion, None when there is none.
        """
        if champion is None:
            self.say("No champion: no model has been promoted yet.")
            return
        self.say(f"Champion: flight-delays version {champion.version} ({champion.source or champion.run_id})")
        self.say(f"  {metrics_text(champion.metrics, limit=12) or 'no metrics on record'}")


class NightProgress:
    """
    The progress of one night.

    :param screen: Where to show it.
    :param night: Which night.
    :param live: The live display, None for plain lines.
    """

    def __init__(self, screen: Screen, night: Night, live: Live | None) -> None:
        self._screen = screen
        self._night = night
        self._live = live
        self._seen: dict[str, tuple[str, int]] = {}

    def show(self, steps: Sequence[Step]) -> None:
        """
        Show how the steps stand.

        :param steps: All steps of the night.
        """
        if self._live:
            table = Table.grid(padding=(0, 2))
            for step in steps:
                table.add_row(f"  {self._night.day}", escape(step.name), _state(step), _duration(step.seconds))
            self._live.update(table)
            return
        for step in steps:
            known = (step.state, step.try_number)
            if self._seen.get(step.name) != known and step.state in STARTED:
                self._screen.say(f"  {self._night.day}  {step.name:<20} {step.state:<12} {_duration(step.seconds)}")
                self._seen[step.name] = known


def _state(step: Step) -> str:
    style = STYLES.get(step.state, "dim")
    again = f" (try {step.try_number})" if step.try_number > 1 else ""
    return f"[{style}]{escape(step.state)}{again}[/{style}]"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"
