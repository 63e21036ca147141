"""Labels that are probably wrong in the data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong.

    Attributes:
        index: of the text in the evaluation.
        given: the label in the data.
        proposed: the label that the model answers.
        score: how sure it is.
    """

    head: str
    index: int
    given: str
    proposed: str
    score: float
