"""The verified load: threads that ask for the scores of known texts through one client and compare every answer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from polyhead_client import Client, PolyheadClientError, ServerOverloadedError
from tests.chaos.corpus import Corpus
from tests.chaos.count import Count

TIMEOUT_S = 30.0  # the client's default
Ask = Callable[[list[str]], NDArray[np.float32]]


class VerifiedLoad:
    """Asks until the block ends.

    Args:
        ask: gives the scores of texts; raises the client's errors.
        corpora: an answer is right if one of these gives it; see `expect`.
        threads: how many ask at the same time.
        pause_s: pause of a thread after each answer, so that the load leaves processors to the servers.
        most_texts: the most texts of a request; the number is drawn.

    Attributes:
        count: how the requests so far have ended.
        slowest_s: the longest time to an answer.
    """

    def __init__(
        self, ask: Ask, *corpora: Corpus, threads: int = 6, pause_s: float = 0.02, most_texts: int = 4
    ) -> None:
        self.count = Count()
        self.slowest_s = 0.0
        self._ask = ask
        self._corpora = corpora
        self._pause_s = pause_s
        self._most_texts = most_texts
        self._leaving = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]

    def __enter__(self) -> VerifiedLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for requests in progress; a request that does not end is lost."""
        self._leaving.set()
        deadline = time.monotonic() + TIMEOUT_S + 10
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.count.add("lost", "a request that never ended")

    def expect(self, *corpora: Corpus) -> None:
        """From now on, one of these must give an answer; a request in progress may still get the old answer."""
        self._corpora = corpora

    def wait_for(self, answers: int, within_s: float = 60.0) -> None:
        """Returns when this many more requests have been answered; fails if they are not."""
        goal, deadline = self.count.answered + answers, time.monotonic() + within_s
        while self.count.answered < goal:
            assert not self.count.wrong, f"a wrong answer: {self.count}"
            assert time.monotonic() < deadline, f"no {answers} answers within {within_s:g} s: {self.count}"
            time.sleep(0.02)

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        while not self._leaving.is_set():
            self._once(draw)
            time.sleep(self._pause_s)

    def _once(self, draw: random.Random) -> None:
        before = self._corpora
        texts = before[0].texts
        positions = [draw.randrange(len(texts)) for _ in range(draw.randint(1, self._most_texts))]
        began = time.monotonic()
        try:
            answered = self._ask([texts[position] for position in positions])
        except ServerOverloadedError:
            self.count.add("shed")
        except PolyheadClientError as error:
            self.count.add("lost", f"after {time.monotonic() - began:.1f} s: {type(error).__name__}: {error}")
        except Exception as error:
            self.count.add("lost", f"the client itself failed: {error!r}")
        else:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            accepted: Sequence[Corpus] = (*before, *self._corpora)
            if any(corpus.is_right(positions, answered) for corpus in accepted):
                self.count.add("answered")
            else:
                self.count.add("wrong", f"texts {positions} got {answered.tolist()}")


def through_client(*servers: str, **settings: object) -> Client:
    """The client as its guide recommends: replicas, and defaults for everything else."""
    return Client(list(servers), **settings)  # type: ignore[arg-type] # settings are passed on
