"""Progress: a line that says how far, how fast and how long."""

from __future__ import annotations

import io

from rich.console import Console

from polyhead_scoring.partition import Partition
from polyhead_scoring.progress import ScoringProgress
from polyhead_scoring.run_folder import Done


def done(number: int, errors: int = 0) -> Done:
    """A finished partition of ten rows."""
    return Done(number=number, rows=10, errors=errors, tokens=5, precision="fp32", output="x", size=1, sha256="x")


def test_a_line_in_a_log() -> None:
    """It counts what an earlier run did, but not in the rate; the last line comes when all is done."""
    partitions = [Partition(file="f", first_row=0, rows=10, start=0, size=1, tokens=5, number=i) for i in range(3)]
    written = io.StringIO()
    with ScoringProgress(partitions, [0], Console(file=written)) as progress:
        progress.started -= 4
        progress.add(done(1))
        assert written.getvalue() == ""
        progress.add(done(2, errors=3))
    assert progress.rows == 20
    assert 4 < progress.rows_a_second <= 5
    assert written.getvalue().startswith("  30 of 30 rows, 5 rows/s, 0:00 left, 3 errors")
