"""Clients that read slowly, and clients that vanish, beside a verified load on the same single server."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest.local_server import LocalServer
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.harm import serve, server_pid
from tests.chaos.load import VerifiedLoad, through_client
from tests.chaos.plain import INFER
from tests.e2e.plain_json import json_body
from tests.e2e.processes import model_processes

pytestmark = pytest.mark.chaos

BAD_CLIENTS = 50
SECONDS = 20.0


def connect(place: str) -> socket.socket:
    """A connection with small kernel buffers."""
    host, port = place.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(SECONDS)
    connection.connect((host, int(port)))
    return connection


def big_request(texts: int) -> bytes:
    """A request whose answer is long: every output of many texts."""
    outputs = ["PREDICTION", "SCORES", "TOKEN_COUNT", "SCHEMA"]
    body = json.dumps(json_body(["Prices rose."] * texts, outputs)).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)


def read_slowly(place: str, leaving: threading.Event, _: random.Random) -> None:
    """Asks for a long answer and reads it byte by byte."""
    with connect(place) as connection:
        connection.sendall(big_request(64))
        while not leaving.wait(0.05) and connection.recv(16):
            pass


def vanish(place: str, _: threading.Event, draw: random.Random) -> None:
    """Leaves in the middle of its request or before its answer, with a reset or without."""
    request = big_request(draw.choice((1, 8, 64)))
    with connect(place) as connection:
        connection.sendall(request[: draw.choice((1, 30, len(request) // 2, len(request) - 1, len(request)))])
        time.sleep(draw.choice((0, 0, 0.005, 0.05)))
        if draw.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def bad_clients(place: str, behave: Callable[[str, threading.Event, random.Random], None]) -> Iterator[list[int]]:
    """Runs many at a time, again and again; yields how often each has connected."""
    leaving = threading.Event()
    tries = [0] * BAD_CLIENTS

    def run(number: int) -> None:
        draw = random.Random(number)
        while not leaving.is_set():
            tries[number] += 1
            with contextlib.suppress(OSError):
                behave(place, leaving, draw)
            time.sleep(0.05)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(BAD_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield tries
    finally:
        leaving.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("name", "behave"),
    [("slow-reading clients", read_slowly), ("vanishing clients", vanish)],
    ids=["slow", "vanishing"],
)
def test_bad_clients_harm_nobody_else(
    name: str,
    behave: Callable[[str, threading.Event, random.Random], None],
    sound: Path,
    corpus: Corpus,
    record: Record,
) -> None:
    """50 clients that read byte by byte, or leave before their answer, only slow the others down."""
    with serve(sound) as served:
        before = processes(served)
        with (
            through_client(served.url("http")) as client,
            VerifiedLoad(client.scores, corpus) as load,
        ):
            load.wait_for(100)
            with bad_clients(served.url("http"), behave) as tries:
                time.sleep(SECONDS)
                meanwhile = load.count.answered
            load.wait_for(100)
        assert processes(served) == before
        assert meanwhile > 200, f"only {meanwhile} answers in {SECONDS:g} s beside bad clients"
        record(
            name, load.count, bad_clients=BAD_CLIENTS, connections=sum(tries), slowest_answer_s=round(load.slowest_s, 1)
        )


def processes(served: LocalServer) -> tuple[int, list[int]]:
    """The processes of tritonserver and of the model."""
    return server_pid(served), model_processes(served)
