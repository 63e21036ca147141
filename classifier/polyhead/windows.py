"""Windows: how a text that is longer than the network reads at once is cut, and how its windows give one answer.

Window k begins at token ``k * stride`` and has at most `length` tokens, so neighbours share ``length - stride`` tokens.
The network reads each window as a text of its own. The logits of the text are the mean of those of its windows, each
weighted by its new tokens, which are those that no earlier window has (docs/decisions/0027-long-texts.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_WINDOWS = 64  # per text: bounds the time that one text takes


class LongTexts(BaseModel):
    """``long_texts`` of a checkpoint that reads long texts in windows.

    Attributes:
        stride: each window begins so many tokens after the one before.
        most_windows: the rest of a text that needs more windows is not read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    stride: int = Field(gt=0)
    most_windows: int = Field(ge=2, le=MOST_WINDOWS)


@dataclass(frozen=True)
class Windows:
    """How texts are cut.

    Attributes:
        length: the most tokens of a window.
        stride: as in `LongTexts`.
        most: the most windows per text; 1 means that longer texts are truncated.
    """

    length: int
    stride: int
    most: int = 1

    @classmethod
    def of(cls, max_length: int, long_texts: LongTexts | None) -> Windows:
        """The windows of a checkpoint; None truncates."""
        if long_texts is None:
            return cls(max_length, max_length)
        return cls(max_length, long_texts.stride, long_texts.most_windows)

    @property
    def reach(self) -> int:
        """The most tokens of a text that are read."""
        return self.length + (self.most - 1) * self.stride

    def count(self, tokens: int) -> int:
        """How many windows a text of so many tokens has."""
        return 1 + max(0, -(-(min(tokens, self.reach) - self.length) // self.stride))

    def computed(self, tokens: int) -> int:
        """Tokens of all windows of a text of so many tokens; those that two windows share count twice."""
        return min(tokens, self.reach) + (self.count(tokens) - 1) * (self.length - self.stride)

    def cut(self, token_ids: Sequence[int]) -> list[Sequence[int]]:
        """The windows of a text of at most `reach` tokens."""
        if self.most == 1 or len(token_ids) <= self.length:
            return [token_ids]
        starts = range(0, self.count(len(token_ids)) * self.stride, self.stride)
        return [token_ids[start : start + self.length] for start in starts]

    def shares(self, tokens: int) -> list[float]:
        """The weight of each window of a text of so many tokens; they sum to 1."""
        count = self.count(tokens)
        if count == 1:
            return [1.0]
        last = tokens - self.length - (count - 2) * self.stride
        return [new / tokens for new in (self.length, *[self.stride] * (count - 2), last)]

    def pool(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits of texts.

        Args:
            logits: of all windows of all texts, in order: ``(windows, width)``.
            tokens: per text.

        Returns:
            float32 ``(len(tokens), width)``. A text of one window has that window's logits.
        """
        if len(logits) == len(tokens):
            return logits
        import numpy as np  # the supervisor reads schemas without it

        pooled = np.empty((len(tokens), logits.shape[1]), dtype=np.float32)
        first = 0
        for row, count in enumerate(tokens):
            shares = self.shares(count)
            part = logits[first : first + len(shares)]
            first += len(shares)
            with np.errstate(all="ignore"):  # logits that are not finite: the text gets no answer
                pooled[row] = (part * np.array(shares)[:, None]).sum(axis=0) if len(shares) > 1 else part[0]
        return pooled
