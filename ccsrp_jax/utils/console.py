"""Terminal output of long jobs: progress bars, lines and tables."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
else:  # `ccsrp --help` and errors need no tables
    Console = Any


def counted(count: int, plural: str) -> str:
    """A number of things, such as 1 attack or 2 attacks."""
    return f"{count} {plural if count != 1 else plural[:-1]}"


def one_line(text: str) -> str:
    """A text in which line breaks and other control characters, as names can have, are escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def escape_what_cannot_be_encoded(*streams: Any) -> None:
    """Makes text streams write `\\xe9` for a character that their encoding does not have."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def duration(seconds: float) -> str:
    """A time in words of two units: `1 h 05 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Terminal:
    """Output with progress bars on a terminal, and as plain text elsewhere."""

    def __init__(self, console: Console | None = None, on_step: Callable[[], None] = lambda: None):
        """Prints to a console, by default that of standard output.

        Args:
          console: where to.
          on_step: called at every step of every stage; it may raise, to stop there.
        """
        from rich.console import Console

        self.console = console or Console(highlight=False, markup=False, soft_wrap=True)
        self._on_step = on_step

    def line(self, text: str) -> None:
        """Prints a line of text."""
        self.console.print(one_line(text))

    def progress(self, text: str) -> None:
        """Prints a line about progress, where there are no progress bars that show it."""
        if not self.console.is_terminal:
            self.line(text)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar over `total` units of work; yields `advance(units=1, note=None)`."""
        self._on_step()
        if not self.console.is_terminal:
            yield lambda units=1, note=None: self._on_step()
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            bar = progress.add_task(title, total=total, note="")

            def advance(units: int = 1, note: str | None = None) -> None:
                progress.update(bar, advance=units)
                if note is not None:
                    progress.update(bar, note=note)
                self._on_step()

            yield advance

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Prints a table: the first column left-aligned, the others right-aligned."""
        from rich.box import ROUNDED
        from rich.table import Table

        box = ROUNDED if self.console.is_terminal else None
        table = Table(title=one_line(title), title_justify="left", box=box)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
