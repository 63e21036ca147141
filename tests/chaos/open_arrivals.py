"""Requests that arrive at a rate, whether or not earlier ones were answered, as in an overload."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
from collections.abc import Sequence
from http import HTTPStatus

import numpy as np

from tests.chaos.corpus import Corpus
from tests.chaos.count import Count
from tests.chaos.plain import INFER
from tests.e2e.plain_json import json_body

DEADLINE_S = 60.0


def arrive(place: str, corpus: Corpus, rate: float, seconds: float, *also_right: Corpus) -> Count:
    """Sends single texts at random intervals (Poisson), one connection each, no retries; judges every answer.

    An answer is right if `corpus` or one of `also_right`, with the same texts, gives it.
    """
    wanted = min(16_384, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return asyncio.run(_arrive(place, (corpus, *also_right), rate, seconds))


async def _arrive(place: str, corpora: Sequence[Corpus], rate: float, seconds: float) -> Count:
    count, draw = Count(), random.Random(0)
    began = due = time.monotonic()
    async with asyncio.TaskGroup() as requests:
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            requests.create_task(_ask(place, corpora, draw.randrange(len(corpora[0].texts)), count))
            due += draw.expovariate(rate)
    return count


async def _ask(place: str, corpora: Sequence[Corpus], position: int, count: Count) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            status, body = await _exchange(
                place, json.dumps(json_body([corpora[0].texts[position]], ["SCORES"])).encode()
            )
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
        count.add("lost", repr(error))
        return
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        count.add("shed")
    elif status != HTTPStatus.OK:
        count.add("lost", f"{status} {body[:200]!r}")
    else:
        scores = np.array(json.loads(body)["outputs"][0]["data"], dtype=np.float32)
        right = any(corpus.is_right([position], scores[None]) for corpus in corpora)
        count.add("answered" if right else "wrong", f"text {position} got {scores.tolist()}")


async def _exchange(place: str, body: bytes) -> tuple[int, bytes]:
    host, port = place.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = f"POST {INFER} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(": ", 1) for line in answer.decode("latin-1").split("\r\n")[1:] if line)
        return int(answer.split()[1]), await reader.readexactly(int(fields["content-length"]))
    finally:
        writer.close()
