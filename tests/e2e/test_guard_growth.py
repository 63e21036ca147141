"""What the JavaScript of the proxy costs: for every kind of input, CPU time grows with the size, not its square."""

from __future__ import annotations

import http.client
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import descendants
from tests.e2e.proxied import KEY, Proxied
from tests.e2e.upstream import upstream

INFER, CLASSIFY = "/v2/models/gpt2_classifier/infer", "/v1/classify"
SMALL, LARGE = 64_000, 256_000  # the cap is 256 KB
GROWTH = 8  # the sizes' ratio is 4; that of their squares is 16
FLOOR_NS = 2_000_000  # TLS and all else that a request costs
TRIES = 4

# Pieces of a JSON string. Surrogate pairs come whole: half of one is refused at once.
PIECES = (
    "x", "\\\\", '\\"', "\\n", "\\/", "\\u0041", "\\ud83d\\ude42", "\u00e9", "\U0001f642", "\ufffd", " ", "9", "-1e9",
    "{}", "[", ":", "shape", "\\\\u d83d", "\\\\\\\\u",
)  # fmt: skip


def text_of(unit: str) -> Callable[[int], str]:
    """A text that is this unit over and over."""
    return lambda size: '"' + unit * (size // len(unit.encode())) + '"'


def list_of(unit: str) -> Callable[[int], str]:
    """A list of many small values."""
    return lambda size: "[" + ",".join([unit] * (size // (len(unit) + 1))) + "]"


def names(size: int) -> str:
    """An object of many names."""
    return "{" + ",".join(f'"{number:06}":0' for number in range(size // 11)) + "}"


def random_units() -> Iterator[tuple[str, Callable[[int], str]]]:
    """Units of two and three pieces, the same ones in every run."""
    draw = random.Random(14)
    pairs = draw.sample(list(itertools.permutations(PIECES, 2)), 20)
    triples = [tuple(draw.choices(PIECES, k=3)) for _ in range(10)]
    for pieces in (*pairs, *triples):
        yield f"text {'|'.join(pieces)!a}", text_of("".join(pieces))


VALUES: dict[str, Callable[[int], str]] = {
    **{f"text {piece!a}": text_of(piece) for piece in PIECES},
    **dict(random_units()),
    "an emoji, then backslashes": lambda size: '"\\ud83d\\ude42' + "\\\\" * (size // 2) + '"',
    "an emoji itself, then quotes": lambda size: '"\U0001f642' + '\\"' * (size // 2) + '"',
    "backslashes, then an emoji": lambda size: '"' + "\\\\" * (size // 2) + '\\ud83d\\ude42"',
    "a string without an end": lambda size: '"' + "\\\\" * (size // 2),
    "half a pair at the end": lambda size: '"' + "\\ud83d\\ude42" * (size // 12) + '\\ud83d"',
    **{f"list of {unit}": list_of(unit) for unit in ('""', '"\\u00e9"', "1", "[]", "{}", "null", "1.5", '{"a":1}')},
    "names": names,
    "a long name": lambda size: '{"' + "n" * size + '":1}',
    "a long name, twice": lambda size: '{"' + "n" * (size // 2) + '":1,"' + "n" * (size // 2) + '":1}',
    "digits": lambda size: "9" * size,
    "a fraction": lambda size: "0." + "1" * size,
    "signs": lambda size: "-" * size,
    "nested lists": lambda size: "[" * size,
    "nested objects": lambda size: '{"a":' * (size // 5),
    "spaces": lambda size: " " * size + "1",
    "spaces in a list": lambda size: "[" + "1 , " * (size // 4) + "1]",
}


@dataclass(frozen=True)
class Asking:
    """A connection to a proxy with one worker, and the worker."""

    connection: http.client.HTTPSConnection
    worker: int

    def cost(self, path: str, body: bytes) -> int:
        """The worker's CPU time for one request in nanoseconds, the least of some tries."""
        return min(self._cost(path, body) for _ in range(TRIES))

    def _cost(self, path: str, body: bytes) -> int:
        before = self._used()
        self.connection.request("POST", path, body, {"Authorization": f"Bearer {KEY}"})
        with self.connection.getresponse() as response:
            response.read()
            assert response.status in (200, 400)
        return self._used() - before

    def _used(self) -> int:
        return int(Path(f"/proc/{self.worker}/schedstat").read_text(encoding="utf-8").split()[0])


@pytest.fixture(scope="module")
def asking() -> Iterator[Asking]:
    """A proxy whose server answers at once."""
    places = {"RATE": "100000r/s", "BURST": "10000", "WORKERS": "1"}
    with upstream() as server, Proxied(INFERENCE=server.place, **places) as proxied:
        connection = proxied.connect()
        (worker,) = descendants(proxied.process.pid)
        yield Asking(connection, worker)
        connection.close()


def infer(value: str) -> bytes:
    """An inference request with this as its data."""
    head = json.dumps({"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]})[:-1]
    return f'{{"inputs": [{head}, "data": [{value}]}}]}}'.encode()


def classify(value: str) -> bytes:
    """The same for plain JSON."""
    return f'{{"texts": [{value}]}}'.encode()


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_time_grows_with_the_size(asking: Asking, make: Callable[[int], str]) -> None:
    """Four times as much input takes about four times as long, through both ways in."""
    for path, body in ((INFER, infer), (CLASSIFY, classify)):
        small, large = (asking.cost(path, body(make(size))) for size in (SMALL, LARGE))
        assert large < GROWTH * max(small, FLOOR_NS), (path, small, large)
