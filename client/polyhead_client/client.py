"""The client: texts in, typed predictions out.

Every failure closes the connection: a late answer to a request that timed out must never be read as
the answer to the next one.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from types import ModuleType, TracebackType
from typing import Any, Literal, TypeVar, overload

import numpy as np
from geventhttpclient.response import HTTPConnectionClosed
from numpy.typing import NDArray

from polyhead_client.errors import (
    TRANSPORT_ERRORS,
    BadResponseError,
    NotReadyError,
    PolyheadClientError,
    UsageError,
    from_transport,
)
from polyhead_client.prediction import Prediction
from polyhead_client.request import InferRequest, build_request, check_seconds
from polyhead_client.schema import Schema

CANARY = "canary"
T = TypeVar("T")


class Client:
    """Asks one model on one server. Use one client per thread: the connection below is not thread-safe.

    Args:
        url: ``host:port``, with or without ``http://`` or ``https://`` (``https`` encrypts, for gRPC too).
        model: the model's name on the server.
        protocol: ``http`` (Triton's port 8000) or ``grpc`` (8001; needs the extra ``polyhead-client[grpc]``).
        version: the model's version; the newest if empty.
        timeout_s: how long connecting, or waiting for the next bytes of an answer, may take; with gRPC the
            whole request.
        batch_size: texts a request, at most the server's ``max_batch_size`` (64); longer lists are split.

    Raises:
        UsageError: an argument is of the wrong type or out of range.
    """

    def __init__(
        self,
        url: str = "localhost:8000",
        model: str = "gpt2_classifier",
        protocol: Literal["http", "grpc"] = "http",
        version: str = "",
        timeout_s: float = 30.0,
        batch_size: int = 64,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if not isinstance(version, str):
            raise UsageError(f"version must be a str such as '1', got {version!r}")
        if not model:
            raise UsageError("model must name a model, got ''")
        self.url = url
        self.model = model
        self.protocol = protocol
        self.version = version
        self.timeout_s = check_seconds("timeout_s", timeout_s)
        self.batch_size = batch_size
        self._address, self._secure = _split_url(url)
        self._module = _import_protocol(protocol)
        self._connection: Any = None
        self._used = False  # whether the connection has answered before: it may have been closed since
        self._closed = False

    @overload
    def classify(self, texts: str, top_k: int | None = None, threshold: float | None = None) -> Prediction: ...
    @overload
    def classify(
        self, texts: list[str] | tuple[str, ...], top_k: int | None = None, threshold: float | None = None
    ) -> list[Prediction]: ...

    def classify(
        self,
        texts: str | list[str] | tuple[str, ...],
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Classifies a text, or several.

        Args:
            texts: a str, or a list or tuple of str.
            top_k: how many labels a single_label head names, and at most how many a multi_label head names.
            threshold: takes the place of the labels' own thresholds in multi_label heads.

        Returns:
            A prediction for a str; for a list a list, one a text and in its order. A text without an
            answer (an empty one, say) has `Prediction.error` set and spoils no other.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`.
        """
        if isinstance(texts, str):
            return self._read(Prediction.from_json, self.classify_json([texts], top_k, threshold)[0])
        answers = self.classify_json(texts, top_k, threshold)
        return [self._read(Prediction.from_json, answer) for answer in answers]

    def classify_json(
        self, texts: Sequence[str], top_k: int | None = None, threshold: float | None = None
    ) -> list[bytes]:
        """As `classify`, but the server's JSON as it came: for pipes and load tests."""
        answers: list[bytes] = []
        for batch in self._batches(texts):
            request = build_request(self._module, batch, ["PREDICTION"], top_k=top_k, threshold=threshold)
            column = self._output(self._infer(request), "PREDICTION", (len(batch), 1))
            answers += [row.encode() if isinstance(row, str) else bytes(row) for row in column[:, 0]]
        return answers

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """All heads' calibrated scores.

        Returns:
            float32 ``(n, schema().width)``, columns as in `Schema.column_names`; a row of NaN for a
            text without an answer.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`.
        """
        parts: list[NDArray[np.float32]] = []
        for batch in self._batches(texts):
            result = self._infer(build_request(self._module, batch, ["SCORES"]))
            parts.append(self._output(result, "SCORES", (len(batch), None)).astype(np.float32))
        if len({part.shape[1] for part in parts}) > 1:
            raise self._bad("SCORES changed its width between two batches, so the model was replaced; ask again")
        return np.concatenate(parts) if parts else np.empty((0, self.schema().width), dtype=np.float32)

    def schema(self) -> Schema:
        """The heads of the version that answers now."""
        result = self._infer(build_request(self._module, [CANARY], ["SCHEMA"]))
        return self._read(Schema.from_json, self._output(result, "SCHEMA", (1, 1))[0, 0])

    def is_ready(self) -> bool:
        """Whether the model answers a canary text now.

        Triton's own ready endpoints stay good when a model process has died or hangs, so they are not asked.
        """
        return self._why_not_ready() is None

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Asks again until the model answers a canary text.

        Raises:
            NotReadyError: it did not within `timeout_s`; the message has the last reason.
        """
        deadline = time.monotonic() + check_seconds("timeout_s", timeout_s)
        pause_s = 0.1
        while True:
            # A hanging server must not hold one try for longer than the caller waits in all.
            patience_s = min(self.timeout_s, max(deadline - time.monotonic(), 0.05))
            with Client(self.url, self.model, self.protocol, self.version, patience_s) as probe:
                reason = probe._why_not_ready()
            if reason is None:
                return
            if time.monotonic() + pause_s >= deadline:
                raise NotReadyError(
                    f"{self.url} was not ready within {timeout_s:g} s; the last try said: {reason}",
                    model=self.model,
                    url=self.url,
                    status=reason.status,
                ) from reason
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def close(self) -> None:
        """Closes the connection; the client cannot be used afterwards."""
        self._closed = True
        self._disconnect()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _why_not_ready(self) -> PolyheadClientError | None:
        try:
            prediction = self.classify(CANARY)
        except UsageError:
            raise
        except PolyheadClientError as error:
            return error
        if prediction.error is None:
            return None
        return self._bad(f"the canary text has no answer: {prediction.error}")

    def _batches(self, texts: Sequence[str]) -> list[Sequence[str]]:
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
            raise UsageError(f"texts must be a list of str, got {type(texts).__name__}")
        return [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]

    def _infer(self, request: InferRequest) -> Any:
        if self._closed:
            raise UsageError("this client is closed; make a new one", model=self.model, url=self.url)
        try:
            try:
                return self._send(request)
            except (HTTPConnectionClosed, ConnectionError):
                # The server or a proxy may have closed the idle connection. Classifying twice does no harm.
                if not self._used:
                    raise
                self._disconnect()
                return self._send(request)
        except TRANSPORT_ERRORS as error:
            self._disconnect()
            raise from_transport(
                error, model=self.model, url=self.url, protocol=self.protocol, timeout_s=self.timeout_s
            ) from error

    def _send(self, request: InferRequest) -> Any:
        if self._connection is None:
            self._connection = self._connect()
        # Only gRPC takes a deadline a call; over HTTP the sockets have it.
        deadline = {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        result = self._connection.infer(
            self.model,
            request.inputs,
            model_version=self.version,
            outputs=request.outputs,
            parameters=request.parameters,
            **deadline,
        )
        self._used = True
        return result

    def _connect(self) -> Any:
        if self.protocol == "grpc":
            return self._module.InferenceServerClient(self._address, ssl=self._secure)
        encryption: dict[str, Any] = {}
        if self._secure:
            gevent_ssl = importlib.import_module("gevent.ssl")
            encryption = {"ssl": True, "ssl_context_factory": gevent_ssl.create_default_context}
        return self._module.InferenceServerClient(
            self._address, connection_timeout=self.timeout_s, network_timeout=self.timeout_s, **encryption
        )

    def _disconnect(self) -> None:
        connection, self._connection, self._used = self._connection, None, False
        if connection is not None:
            connection.close()

    def _output(self, result: Any, name: str, shape: tuple[int, int | None]) -> NDArray[Any]:
        try:
            output: NDArray[Any] | None = result.as_numpy(name)
        except TRANSPORT_ERRORS as error:
            self._disconnect()
            raise self._bad(f"output {name} cannot be read: {error}") from error
        if output is None:
            raise self._bad(f"the answer lacks output {name}")
        if output.ndim != 2 or output.shape[0] != shape[0] or shape[1] not in (None, output.shape[1]):
            raise self._bad(f"output {name} has shape {list(output.shape)} for {shape[0]} texts")
        return output

    def _read(self, read: Callable[[bytes], T], data: bytes) -> T:
        try:
            return read(data)
        except BadResponseError as error:
            raise self._bad(str(error)) from error

    def _bad(self, message: str) -> BadResponseError:
        return BadResponseError(f"{self.url}: {message}", model=self.model, url=self.url)


def _split_url(url: str) -> tuple[str, bool]:
    if not isinstance(url, str):
        raise UsageError(f"url must be a str such as 'localhost:8000', got {type(url).__name__}")
    scheme, separator, address = url.partition("://")
    if not separator:
        scheme, address = "http", url
    address = address.rstrip("/")
    spaced = any(character.isspace() for character in address)
    if scheme not in ("http", "https", "grpc") or not address or spaced:
        raise UsageError(f"url must be 'host:port', 'http://host:port' or 'https://host:port', got {url!r}")
    host, colon, port = address.partition("/")[0].rpartition(":")
    if colon and not host.endswith("]") and ":" in host:
        raise UsageError(f"url: write an IPv6 address in brackets, such as '[::1]:8000', got {url!r}")
    if colon and not port.endswith("]") and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"url: the port must be 1 to 65535, got {url!r}")
    return address, scheme == "https"


def _import_protocol(protocol: str) -> ModuleType:
    if protocol not in ("http", "grpc"):
        raise UsageError(f"protocol must be 'http' or 'grpc', got {protocol!r}")
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    # tritonclient turns the missing package into a RuntimeError that names its own extra.
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"{protocol} is not installed: pip install 'polyhead-client[{protocol}]'") from error
