"""The queue of a model process: texts of many requests that wait for their scores, and which of them come next.

A text is due once as many tokens have left the queue as waited when the text arrived, its own included. In order of
arrival it would just have been taken then. Due texts come first, in order of arrival. While none is due, the shortest
come first. So a text waits at most twice as long as in order of arrival (docs/decisions/0018-own-queue.md).
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from polyhead.decode import Scores
from polyhead.encode import EncodedText
from polyhead.engine.micro_batch import STRETCH


def _never_cancelled() -> bool:
    return False


@dataclass(eq=False)
class ScoreRequest:
    """The texts of one request. The scheduler fills in their scores, or says why there are none.

    Attributes:
        encoded: the texts. A text with an error needs no scores.
        width: columns of `scores`.
        on_finished: called once, in the scheduler's thread or in that of `Scheduler.submit`; must be quick.
        timeout_s: how long its caller waits for the answer. None: it may wait `default_timeout_s` until its first text
            begins to be computed, and then takes as long as it takes.
        is_cancelled: whether the caller has cancelled the request.
        arrived: when the request arrived; ``time.monotonic`` seconds.
        scores: float32 ``(texts, width)``; NaN where there are none.
        failure: why the request has no scores; None if it has them.
    """

    encoded: Sequence[EncodedText]
    width: int
    on_finished: Callable[[], None]
    timeout_s: float | None = None
    is_cancelled: Callable[[], bool] = _never_cancelled
    default_timeout_s: float = float("inf")
    arrived: float = field(default_factory=time.monotonic)
    scores: Scores = field(init=False)
    failure: Exception | None = field(default=None, init=False)
    waiting: set[WaitingText] = field(default_factory=set, init=False)  # its texts that have not begun
    unscored: int = field(default=0, init=False)
    has_begun: bool = field(default=False, init=False)
    is_finished: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.scores = np.full((len(self.encoded), self.width), np.nan, dtype=np.float32)

    @property
    def tokens(self) -> int:
        """Tokens that the engine computes for all texts."""
        return sum(text.computed_tokens for text in self.encoded)

    @property
    def deadline(self) -> float:
        """When it expires if nothing more of it is computed; ``time.monotonic`` seconds."""
        if self.timeout_s is not None:
            return self.arrived + self.timeout_s
        return float("inf") if self.has_begun else self.arrived + self.default_timeout_s

    @property
    def has_texts(self) -> bool:
        """Whether any of its texts can be scored."""
        return any(text.error is None for text in self.encoded)

    def has_expired(self, now: float) -> bool:
        """Whether its time ended before it was computed."""
        return bool(self.waiting) and now > self.deadline


class WaitingText:
    """A text that waits, once for all requests that ask for the same text.

    Attributes:
        key: of `EncodedText`.
        tokens: that the engine computes for it, in all of its windows.
        places: who asks for it: the request and the text's row there.
        has_left: whether it was taken or removed.
        due_at: see the module's docstring; compared with `TextQueue.left_tokens`.
    """

    __slots__ = ("due_at", "encoded", "has_left", "key", "places", "tokens")

    def __init__(self, encoded: EncodedText, key: tuple[object, ...], tokens: int, due_at: int) -> None:
        self.encoded = encoded
        self.key = key
        self.tokens = tokens
        self.due_at = due_at
        self.places: list[tuple[ScoreRequest, int]] = []
        self.has_left = False


class TextQueue:
    """Waiting texts. Not for several threads at once: the scheduler holds a lock.

    Args:
        token_budget: the most tokens of a micro-batch; a text longer than that stands alone.
        enough_tokens: so many tokens keep the device busy. A micro-batch that has them takes no text that is more than
            `STRETCH` times as long as its first, so that short texts do not wait for a long one.

    Attributes:
        rows: waiting texts, where equal ones count as often as they were asked for.
        tokens: tokens to compute, where equal texts count once.
        left_tokens: tokens of all texts that were ever taken or removed: the queue's clock.
    """

    def __init__(self, token_budget: int, enough_tokens: int) -> None:
        self.token_budget = token_budget
        self.enough_tokens = enough_tokens
        self.rows = 0
        self.tokens = 0
        self.left_tokens = 0
        self._waiting: dict[tuple[object, ...], WaitingText] = {}
        self._by_arrival: deque[WaitingText] = deque()
        self._by_length: list[tuple[int, int, WaitingText]] = []
        self._requests: dict[ScoreRequest, None] = {}  # those with waiting texts, in order of arrival
        self._next_deadline = float("inf")  # no request expires before
        self._arrivals = 0

    def add(self, request: ScoreRequest) -> None:
        """Queues the readable texts of a request."""
        for row, encoded in enumerate(request.encoded):
            if encoded.error is not None:
                continue
            key = encoded.key
            text = self._waiting.get(key)
            if text is None:
                text = self._waiting[key] = self._new_text(encoded, key)
            text.places.append((request, row))
            request.waiting.add(text)
            request.unscored += 1
            self.rows += 1
        if request.waiting:
            self._requests[request] = None
            self._next_deadline = min(self._next_deadline, request.deadline)

    def remove(self, request: ScoreRequest) -> None:
        """Forgets the waiting texts of a request; equal texts of other requests stay."""
        for text in request.waiting:
            others = [place for place in text.places if place[0] is not request]
            self.rows -= len(text.places) - len(others)
            text.places = others
            if not others:
                self._forget(text)
        request.waiting.clear()
        self._requests.pop(request, None)

    def take(self) -> list[WaitingText]:
        """The texts of the next micro-batch: those that are due, else the shortest."""
        due: list[WaitingText] = []
        tokens = 0
        while (text := self._oldest()) is not None and text.due_at <= self.left_tokens:
            if due and tokens + text.tokens > self.token_budget:
                return due
            tokens += text.tokens
            due.append(self._take(text))
        if not due:
            return self._take_shortest(self.token_budget)
        # Texts that are much shorter pass between the layers, which is sooner than together with these.
        shortest = self._shortest()
        is_similar = shortest is not None and shortest.tokens * STRETCH >= max(text.tokens for text in due)
        left = (self.token_budget if is_similar else self.enough_tokens) - tokens
        return due + self._take_shortest(left, may_exceed=False)

    def take_shorter(self, longest: int) -> list[WaitingText]:
        """Texts of at most `longest` tokens that may pass a micro-batch; none while a longer text is due."""
        return self._take_shortest(self.enough_tokens, longest) if self.has_shorter(longest) else []

    def has_shorter(self, longest: int) -> bool:
        """Whether `take_shorter` would return texts."""
        oldest, shortest = self._oldest(), self._shortest()
        if oldest is None or shortest is None or shortest.tokens > longest:
            return False
        return oldest.due_at > self.left_tokens or oldest.tokens <= longest

    def expired(self, now: float) -> list[ScoreRequest]:
        """Removes and returns the requests whose time has ended."""
        if now <= self._next_deadline:
            return []
        found = [request for request in self._requests if request.has_expired(now)]
        for request in found:
            self.remove(request)
        self._next_deadline = min((request.deadline for request in self._requests), default=float("inf"))
        return found

    def _new_text(self, encoded: EncodedText, key: tuple[object, ...]) -> WaitingText:
        tokens = encoded.computed_tokens
        self.tokens += tokens
        text = WaitingText(encoded, key, tokens, self.left_tokens + self.tokens)
        self._arrivals += 1
        self._by_arrival.append(text)
        heapq.heappush(self._by_length, (text.tokens, self._arrivals, text))
        if len(self._by_length) > 2 * len(self._waiting) + 64:  # texts that have left stay below shorter ones
            self._by_length = [entry for entry in self._by_length if not entry[2].has_left]
            heapq.heapify(self._by_length)
        return text

    def _take_shortest(self, budget: int, longest: int | None = None, may_exceed: bool = True) -> list[WaitingText]:
        """The shortest texts within a budget.

        Args:
            budget: the most tokens.
            longest: the most tokens per text.
            may_exceed: whether the first text may have more tokens than the budget.
        """
        chosen: list[WaitingText] = []
        tokens = 0
        while (text := self._shortest()) is not None and (longest is None or text.tokens <= longest):
            if tokens + text.tokens > budget and (chosen or not may_exceed):
                break
            if tokens >= self.enough_tokens and text.tokens > STRETCH * chosen[0].tokens:
                break
            tokens += text.tokens
            chosen.append(self._take(text))
        return chosen

    def _oldest(self) -> WaitingText | None:
        while self._by_arrival and self._by_arrival[0].has_left:
            self._by_arrival.popleft()
        return self._by_arrival[0] if self._by_arrival else None

    def _shortest(self) -> WaitingText | None:
        while self._by_length and self._by_length[0][2].has_left:
            heapq.heappop(self._by_length)
        return self._by_length[0][2] if self._by_length else None

    def _take(self, text: WaitingText) -> WaitingText:
        self._forget(text)
        self.rows -= len(text.places)
        for request, _ in text.places:
            request.waiting.discard(text)
            request.has_begun = True
            if not request.waiting:
                self._requests.pop(request, None)
        return text

    def _forget(self, text: WaitingText) -> None:
        text.has_left = True
        del self._waiting[text.key]
        self.tokens -= text.tokens
        self.left_tokens += text.tokens


def requests_of(texts: Iterable[WaitingText]) -> list[ScoreRequest]:
    """The distinct requests that ask for these texts, in a stable order."""
    return list(dict.fromkeys(request for text in texts for request, _ in text.places))
