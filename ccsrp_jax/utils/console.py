"""Terminal output of long jobs: progress bars, lines and tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import ROUNDED
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Terminal:
    """Output with progress bars on a terminal, and as plain text elsewhere."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False, markup=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Prints a line of text."""
        self.console.print(text)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar over `total` units of work; yields `advance(units=1, note=None)`."""
        if not self.console.is_terminal:
            yield lambda units=1, note=None: None
            return
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

            yield advance

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Prints a table: the first column left-aligned, the others right-aligned."""
        box = ROUNDED if self.console.is_terminal else None
        table = Table(title=title, title_justify="left", box=box)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
