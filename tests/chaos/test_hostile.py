"""24,000 hostile requests through the proxy, beside a verified load through the same door."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.predictor import Predictor
from polyhead.schema import NO_SCORE
from tests.chaos.attack import Attack
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.harm import serve, server_pid
from tests.chaos.hostile import hostile_inputs
from tests.chaos.load import VerifiedLoad
from tests.chaos.proxy import client_of, door_of, through_proxy
from tests.e2e.processes import model_processes

pytestmark = pytest.mark.chaos

INPUTS = 24_000


def expected_scores(checkpoint: Path, inputs: int) -> dict[bytes, Any]:
    """What each text of a well-formed request must get; NO_SCORE where it has no answer."""
    texts = list({text: None for hostile in hostile_inputs(inputs) for text in hostile.texts or ()})
    predictor = Predictor.load(checkpoint, precision="fp32")
    scores = np.concatenate(
        [predictor.score(predictor.encode(texts[start : start + 500])) for start in range(0, len(texts), 500)]
    )
    return dict(zip(texts, np.where(np.isnan(scores), np.float32(NO_SCORE), scores), strict=True))


def by_kind(statuses: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """For the result file."""
    kinds: dict[str, dict[str, int]] = {}
    for (kind, status), number in sorted(statuses.items()):
        kinds.setdefault(kind, {})[status] = number
    return kinds


def test_hostile_inputs(sound: Path, checkpoint: Path, corpus: Corpus, record: Record) -> None:
    """No crash, no 500 that the caller caused, no answer that belongs to someone else, good requests go on."""
    expected = expected_scores(checkpoint, INPUTS)
    with serve(sound) as served, through_proxy(served) as proxied:
        before = server_pid(served), model_processes(served), proxied.process.pid
        with (
            client_of(proxied) as client,
            VerifiedLoad(client.scores, corpus, threads=2) as load,
        ):
            load.wait_for(20)
            attack = Attack(door_of(proxied), expected)
            attack.send_all(hostile_inputs(INPUTS))
            load.wait_for(20)
        print(json.dumps(by_kind(attack.statuses), indent=1))
        after = server_pid(served), model_processes(served), proxied.process.pid
        record(
            f"{INPUTS:,} hostile inputs", load.count + attack.count,
            good_requests=load.count.numbers(), statuses=by_kind(attack.statuses),
        )  # fmt: skip
        assert after == before, "a process fell"
        assert served.times_ready() == 1
        assert attack.count.shed == 0, "the proxy says 503 where it fails itself"
