"""Answers from a running server: sends several requests at a time, and waits for a server that restarts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from polyhead_client import (
    BadResponseError,
    Client,
    ModelNotFoundError,
    NotReadyError,
    PolyheadClientError,
    Prediction,
    RequestRejectedError,
    RequestTimeoutError,
    RetryPolicy,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
    Tls,
)
from polyhead_scoring import ScoringError

RETRIED = (
    ModelNotFoundError, NotReadyError, RequestTimeoutError, ServerFailedError, ServerOverloadedError,
    ServerUnreachableError,
)  # fmt: skip  # what a server that starts or restarts may say
KEY_REFUSED = ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED")
CANARY = "canary"
CLIENT_TRIES = 3  # then the run itself waits, for longer than a call's deadline, and says so
TRIES = 5  # of the same texts, while the server answers the canary; overload does not count
LONGEST_PAUSE_S = 5.0
OVERLOADED_PAUSE_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class ServerOptions:
    """Which server to ask, and how.

    Attributes:
        wait_s: how long to wait for a server that does not answer.
        batch_size: texts per request.
        workers: requests at a time.
        others as in `polyhead_client.Client`.
    """

    servers: tuple[str, ...]
    model: str = "gpt2_classifier"
    version: str = ""
    protocol: Literal["http", "grpc"] = "http"
    timeout_s: float = 30.0
    wait_s: float = 600.0
    batch_size: int = 64
    workers: int = 4
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    proxy: str | None = None

    def client(self) -> Client:
        """A client with these options.

        Raises:
            UsageError: one of them is wrong.
        """
        files = [str(file) if file else None for file in (self.ca_file, self.client_cert, self.client_key)]
        return Client(
            list(self.servers), self.model, self.protocol, self.version, self.timeout_s, self.batch_size,
            api_key=self.api_key, headers=self.headers, tls=Tls(*files) if any(files) else None, proxy=self.proxy,
            retry=RetryPolicy(max_attempts=CLIENT_TRIES, budget=CLIENT_TRIES), user_agent="polyhead-score",
            max_connections=max(64, self.workers),
        )  # fmt: skip


class ServerAnswers:
    """Asks a server. Its heads must stay the same from the first text to the last.

    Args:
        say: tells the user that the run waits for the server.

    Raises:
        ScoringError: the server did not answer within ``wait_s``.
        PolyheadClientError: an option is wrong, or the server refuses the key.
    """

    precision: str | None = None  # only the server knows it
    longest_text: float = 16 * 2**20 - 2**16  # bytes: the client's requests have at most 16 MiB

    def __init__(self, options: ServerOptions, decoding: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.options = options
        self._decoding = decoding
        self.client = options.client()
        self._say = say
        self._failing_since: float | None = None
        self._tries = self._overloaded = 0  # since then; `_overloaded` of the tries failed because of too many requests
        self.schema = self._patiently(self.client.schema)
        self.heads = heads_of(self.schema)
        self._kinds = {head["name"]: head["kind"] for head in self.heads}

    def answer(self, parts: Iterable[Sequence[str]]) -> Iterator[list[dict[str, Any]]]:
        """The answers to the texts of each part, in their order; requests reach ahead into the next parts."""
        sizes: deque[int] = deque()  # texts of the parts that were handed out and are not answered

        def texts() -> Iterator[str]:
            for part in parts:
                sizes.append(len(part))
                yield from part

        answers: list[dict[str, Any]] = []
        for answer in self._predict(texts()):
            while not sizes[0]:
                sizes.popleft()
                yield []
            answers.append(answer)
            if len(answers) == sizes[0]:
                if heads_of(self._patiently(self.client.schema)) != self.heads:
                    raise self._heads_changed()
                sizes.popleft()
                yield answers
                answers = []
        yield from ([] for _ in sizes)

    def _predict(self, texts: Iterator[str]) -> Iterator[dict[str, Any]]:
        """One answer per text, in order, whatever happens to the server meanwhile.

        If the server rejects a batch, its texts are asked one by one.
        """
        size = self.options.batch_size
        asked: deque[str] = deque()  # texts that the stream has taken and not answered

        def noted(source: Iterable[str]) -> Iterator[str]:
            for text in source:
                asked.append(text)
                yield text

        rest: Iterable[str] = texts
        while True:
            stream = self.client.stream(noted(rest), size, self.options.workers, **self._decoding)
            try:
                with closing(stream):
                    for prediction in stream:
                        self._answered()
                        asked.popleft()
                        yield self._checked(prediction)
                return
            except RequestRejectedError as error:
                _check_key(error)
                again = list(asked)
                for text in again[:size]:
                    yield self._ask_alone(text)
                again = again[size:]
            except (*RETRIED, BadResponseError) as error:
                again = list(asked)
                self._wait(error, f"; the first text without an answer begins {again[0][:60]!r}" if again else "")
            asked.clear()
            rest = chain(again, texts)

    def _ask_alone(self, text: str) -> dict[str, Any]:
        try:
            return self._checked(self._patiently(lambda: self.client.classify(text, **self._decoding)))
        except RequestRejectedError as error:
            _check_key(error)
            # This raises if it is not the text that the server rejects.
            self._patiently(lambda: self.client.classify(CANARY, **self._decoding))
            return {"error": str(error)}

    def _checked(self, prediction: Prediction) -> dict[str, Any]:
        answer = prediction.to_json()
        kinds = {name: head["kind"] for name, head in answer.get("heads", {}).items()}
        if "heads" in answer and list(kinds.items()) != list(self._kinds.items()):
            raise self._heads_changed()
        return answer

    def _heads_changed(self) -> ScoringError:
        return ScoringError(
            f"{self._servers}: the model's heads changed during the run; what is done is kept: serve the old model and "
            "run the command again, or score everything with the new one: --restart"
        )

    @property
    def _servers(self) -> str:
        return ", ".join(self.options.servers)

    def _patiently(self, ask: Callable[[], T]) -> T:
        while True:
            try:
                value = ask()
            except RETRIED as error:
                self._wait(error)
            else:
                self._answered()
                return value

    def _answered(self) -> None:
        if self._failing_since is not None:
            self._say(f"{self._servers} answers again after {time.monotonic() - self._failing_since:.0f} s")
        self._failing_since, self._tries, self._overloaded = None, 0, 0

    def _wait(self, error: PolyheadClientError, where: str = "") -> None:
        """Waits until the server answers its canary, or raises if that takes too long or does not help."""
        wait_s, now = self.options.wait_s, time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            if wait_s:
                self._say(f"waiting up to {wait_s:g} s for {self._servers} ({error})")
        is_overloaded = isinstance(error, ServerOverloadedError)
        self._tries += 1
        self._overloaded += is_overloaded
        failed = self._tries - self._overloaded
        left_s = wait_s - (now - self._failing_since)
        if left_s <= 0 or failed > TRIES:
            seconds = now - self._failing_since
            raise ScoringError(f"{error}; gave up after {self._tries} tries in {seconds:.0f} s{where}")
        time.sleep(min(OVERLOADED_PAUSE_S if is_overloaded else 0.1 * 2**failed, LONGEST_PAUSE_S, left_s))
        try:
            self.client.wait_until_ready(left_s)
        except NotReadyError as late:
            raise ScoringError(str(late)) from error


def heads_of(schema: Any) -> list[dict[str, Any]]:
    """The heads of what `Client.schema` gives, as JSON."""
    heads: list[dict[str, Any]] = json.loads(json.dumps([dataclasses.asdict(head) for head in schema.heads]))
    return heads


def _check_key(error: RequestRejectedError) -> None:
    """A refused key is not the fault of a text."""
    if error.status in KEY_REFUSED:
        raise error
