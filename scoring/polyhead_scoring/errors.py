"""What keeps a scoring run from starting or ending: one line that names the place; exit code 2.

ScoringError
├── InputError    an input file or a column is not as it must be
├── OutputError   the output folder holds something else, another run, or cannot be written
└── ClusterError  Ray cannot be reached, lacks what was asked for, or lost a task for good

A row that cannot be scored is no error here: it is kept in the output, with its reason in the column ``error``.
"""

from __future__ import annotations

from polyhead.errors import PolyheadError


class ScoringError(PolyheadError):
    """Base of the errors that the user of the scoring package can mend."""


class InputError(ScoringError):
    """An input file or a column is not as it must be."""


class OutputError(ScoringError):
    """The output folder holds something else, another run, or cannot be written."""


class ClusterError(ScoringError):
    """Ray cannot be reached, lacks what was asked for, or lost a task for good."""
