"""What the proxy's JavaScript costs: for every kind of input, the time grows with the size and not with its square."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.proxied import KEY, Proxied
from tests.e2e.upstream import upstream

INFER, CLASSIFY = "/v2/models/gpt2_classifier/infer", "/v1/classify"
SMALL, LARGE = 64_000, 256_000  # the cap is 256 KB
GROWTH = 9  # the sizes' ratio is 4; that of their squares is 16
FLOOR_S = 0.004  # TLS records, the fake server's thread
TRIES = 6

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


@pytest.fixture(scope="module")
def asking() -> Iterator[http.client.HTTPSConnection]:
    """A connection to a proxy whose server answers at once."""
    with upstream() as server, Proxied(INFERENCE=server.place, RATE="100000r/s", BURST="10000") as proxied:
        connection = proxied.connect()
        yield connection
        connection.close()


def seconds(asking: http.client.HTTPSConnection, path: str, body: bytes) -> float:
    """The time of one request, the best of some."""
    best = 60.0
    for _ in range(TRIES):
        began = time.perf_counter()
        asking.request("POST", path, body, {"Authorization": f"Bearer {KEY}"})
        with asking.getresponse() as response:
            response.read()
            assert response.status in (200, 400)
        best = min(best, time.perf_counter() - began)
    return best


def infer(value: str) -> bytes:
    """An inference request with this as its data."""
    head = json.dumps({"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]})[:-1]
    return f'{{"inputs": [{head}, "data": [{value}]}}]}}'.encode()


def classify(value: str) -> bytes:
    """The same for plain JSON."""
    return f'{{"texts": [{value}]}}'.encode()


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_time_grows_with_the_size(asking: http.client.HTTPSConnection, make: Callable[[int], str]) -> None:
    """Four times as much input takes about four times as long, through both ways in."""
    for path, body in ((INFER, infer), (CLASSIFY, classify)):
        small, large = (seconds(asking, path, body(make(size))) for size in (SMALL, LARGE))
        assert large < GROWTH * max(small, FLOOR_S), (path, small, large)
