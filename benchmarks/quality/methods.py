"""What is compared: training as a user does it, and the peers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

PRODUCT, LOGISTIC, SGD, MAJORITY, FASTTEXT, SPACY = "polyhead", "logistic", "sgd", "majority", "fasttext", "spacy"


@dataclass(frozen=True)
class Method:
    """One way to classify.

    Attributes:
        title: what tables and plots call it.
        is_seeded: whether it runs once per seed. The others run once: a seed changes nothing, or they take too long.
        is_linear: whether it is a linear model with which the product is compared by a test.
        package: what must be installed, if it is no part of the product's environment.
        reads_limit: whether it stops by itself before the time limit, so that another limit gives other answers.
    """

    name: str
    title: str
    is_seeded: bool = False
    is_linear: bool = False
    package: str | None = None
    reads_limit: bool = False

    @property
    def why_missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        if self.package is None or find_spec(self.package) is not None:
            return None
        return f"the package {self.package} is not installed; setup/requirements-peers.txt names it"


METHODS = {
    method.name: method
    for method in (
        Method(PRODUCT, "Polyhead", is_seeded=True),
        Method(LOGISTIC, "TF-IDF, logistic regression", is_linear=True),
        Method(SGD, "TF-IDF, one-vs-rest SGD", is_seeded=True, is_linear=True),
        Method(FASTTEXT, "fastText", is_seeded=True, package="fasttext"),
        Method(SPACY, "spaCy textcat", package="spacy", reads_limit=True),
        Method(MAJORITY, "majority"),
    )
}
