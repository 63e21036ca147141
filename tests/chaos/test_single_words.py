"""16 MB of single words without a blank, the slowest texts to tokenize, beside a verified load."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from polyhead_client import ServerOverloadedError
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.harm import serve, server_pid
from tests.chaos.load import VerifiedLoad
from tests.chaos.proxy import client_of, through_proxy
from tests.e2e.processes import model_processes

pytestmark = pytest.mark.chaos

TEXTS = 64  # as many as a request may have
CHARACTERS = 250_000
REQUESTS = 5
SLOWEST_S = 10.0  # a request's own time in the queue


def single_words(seed: int) -> list[str]:
    """Texts of one word each; together 16 MB, which is almost what the proxy lets through."""
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=CHARACTERS)) for _ in range(TEXTS)]


def test_single_words(sound: Path, corpus: Corpus, record: Record) -> None:
    """Nobody else waits longer than the limit, and the supervisor restarts nothing."""
    answered = 0
    with serve(sound) as served, through_proxy(served) as proxied:
        before = server_pid(served), model_processes(served)
        with (
            client_of(proxied) as client,
            client_of(proxied) as hostile,
            VerifiedLoad(client.scores, corpus, threads=3) as load,
        ):
            load.wait_for(50)
            for seed in range(REQUESTS):
                with contextlib.suppress(ServerOverloadedError):
                    hostile.scores(single_words(seed))
                    answered += 1
            load.wait_for(50)
        assert (server_pid(served), model_processes(served)) == before, "a healthy server was restarted"
        assert served.times_ready() == 1
        assert load.slowest_s < SLOWEST_S, f"another caller waited {load.slowest_s:.1f} s"
        record("16 MB of single words", load.count, slowest_answer_s=round(load.slowest_s, 1), answered_too=answered)
