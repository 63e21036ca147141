"""Bulk scoring: reads files of texts and writes files of answers from a server, from the engine here, or from Ray."""

from __future__ import annotations

from polyhead.errors import PolyheadError


class ScoringError(PolyheadError):
    """A run cannot start, continue or end; the message is one line that says what to do.

    A row that has no answer is not an error here: it is in the output, with its reason in the column ``error``.
    """
