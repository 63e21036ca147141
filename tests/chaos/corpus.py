"""Texts and the scores that each must get, so that an answer for another text is noticed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyhead.predictor import Predictor

TOLERANCE = 1e-4  # the gate's for fp32, which all servers here compute in
WORDS = """
    parliament budget night striker half crowd telescope light galaxy mirror rain price wage minister harvest word größe
    café naïve model return train board game player sun moon river stone bread wine letter paper window door
""".split()  # noqa: SIM905 - one a line would be longer than the rest of the file


@dataclass(frozen=True)
class Corpus:
    """Texts with a checkpoint's scores, ``(texts, columns)``."""

    texts: tuple[str, ...]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, checkpoint: Path, texts: Sequence[str]) -> Corpus:
        """The checkpoint's scores of `texts`, computed here in float32.

        Raises:
            ValueError: two texts have so similar answers that one could be taken for the other.
        """
        predictor = Predictor.load(checkpoint, precision="fp32")
        scores = predictor.score(predictor.encode(texts))
        for row in range(1, len(scores)):
            nearest = float(np.abs(scores[:row] - scores[row]).max(axis=1).min())
            if not nearest > 4 * TOLERANCE:
                raise ValueError(f"{texts[row]!r} is answered as another text is, to within {nearest:.2g}")
        return cls(tuple(texts), scores)

    def is_right(self, positions: Sequence[int], answered: NDArray[np.float32]) -> bool:
        """Whether `answered` ``(len(positions), columns)`` holds these texts' scores, in this order."""
        expected = self.scores[list(positions)]
        if answered.shape != expected.shape:
            return False
        return bool((np.abs(answered - expected) <= TOLERANCE * np.maximum(1, np.abs(expected))).all())


def make_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Different texts of 2 to `longest` words."""
    draw = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(draw.choices(WORDS, k=draw.randint(2, longest)))] = None
    return list(texts)
