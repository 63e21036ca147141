"""A running tritonserver over gRPC: which version answers, what it answers, and loading another version.

Over HTTP, a load would freeze all connections of the HTTP thread that runs it. Needs the extra ``deploy``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from polyhead.decode import Scores
from polyhead.errors import PolyheadError
from polyhead_serving.canary import PROBE_ID
from polyhead_serving.ports import AddressError, check_listener
from polyhead_serving.triton import ADMIN_HEADER, CLOSED_RULE, InstallError

TEXTS_PER_REQUEST = 16
REQUEST_TIMEOUT_S = 30.0
RETRY_S = 0.5
VERSION_WITHIN_S = 30.0


class ServerError(PolyheadError):
    """A running server cannot be reached, refuses a call, or answers with an error."""


@dataclass(frozen=True)
class LiveAnswers:
    """The answers of one version.

    Attributes:
        scores: ``(texts, width)``.
        tokens: per text, the number of tokens read and whether the text was truncated.
        answers: per text, the decoded answer.
    """

    version: int
    scores: Scores
    tokens: list[tuple[int, bool]]
    answers: list[dict[str, Any]]


class LiveServer:
    """One model of a running server.

    Args:
        address: ``host:port`` of the server's gRPC port.
        model: the model's name.
        key: the server's POLYHEAD_ADMIN_KEY.
        repository: its owner, besides this user and root, may run the server; to others the key is not sent.
    """

    def __init__(self, address: str, model: str, key: str, repository: Path) -> None:
        try:
            import tritonclient.grpc as module
        except ImportError as error:
            raise InstallError(
                f"tritonclient[grpc]: cannot be imported ({error}); pip install 'tritonclient[grpc]'"
            ) from error
        self._module = module
        self._address = address
        self._model = model
        self._repository = repository
        self._headers = {f"triton-grpc-protocol-{ADMIN_HEADER}": key}
        self._client = module.InferenceServerClient(address)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def check_key(self) -> None:
        """Raises ServerError if the server cannot be reached or does not accept the key."""
        self._call(self._client.get_model_repository_index, headers=self._headers)

    def version(self) -> int:
        """The version that answers now. While the server is too busy, repeats the request for half a minute."""
        deadline = time.monotonic() + VERSION_WITHIN_S
        return int(self._infer(["version"], ["SCHEMA"], deadline).get_response().model_version)

    def schema(self) -> bytes:
        """The SCHEMA of the version that answers now, as callers see it."""
        deadline = time.monotonic() + VERSION_WITHIN_S
        return bytes(self._infer(["schema"], ["SCHEMA"], deadline).as_numpy("SCHEMA")[0, 0])

    def load(self, timeout_s: float, config: str | None = None) -> None:
        """Loads the version that config.pbtxt names. The current version serves until the new one is ready.

        Args:
            config: the text of another config.pbtxt, which only this load uses: a restart reads the file.

        Raises:
            ServerError: the load failed, or took too long; in that case the server may still be loading.
        """
        options = {} if config is None else {"config": self._config_json(config)}
        self._call(self._client.load_model, self._model, headers=self._headers, client_timeout=timeout_s, **options)

    def answers(self, texts: Sequence[str], within_s: float) -> LiveAnswers:
        """Asks for all texts. While the server is too busy, repeats the request until the time is over.

        Raises:
            ServerError: a request failed, or more than one version answered.
        """
        deadline = time.monotonic() + within_s
        results = []
        for start in range(0, len(texts), TEXTS_PER_REQUEST):
            part = texts[start : start + TEXTS_PER_REQUEST]
            results.append(self._infer(part, ["SCORES", "PREDICTION"], deadline))
        versions = {int(result.get_response().model_version) for result in results}
        if len(versions) != 1:
            raise ServerError(f"{self._model}: versions {sorted(versions)} answer at the same time")
        rows = [orjson.loads(row) for result in results for row in result.as_numpy("PREDICTION")[:, 0]]
        if wrong := next((row["error"] for row in rows if "error" in row), None):
            raise ServerError(f"{self._model}: a golden text is refused: {wrong}")
        return LiveAnswers(
            version=versions.pop(),
            scores=np.concatenate([result.as_numpy("SCORES") for result in results]),
            tokens=[(row["token_count"], row["truncated"]) for row in rows],
            answers=rows,
        )

    def _config_json(self, text: str) -> str:
        from google.protobuf.json_format import MessageToJson
        from google.protobuf.text_format import Parse, ParseError

        try:
            config = Parse(text, self._module.model_config_pb2.ModelConfig())
        except ParseError as error:
            raise ServerError(f"{self._model}: config.pbtxt is malformed ({' '.join(str(error).split())})") from error
        return str(MessageToJson(config, preserving_proto_field_name=True))

    def _infer(self, texts: Sequence[str], outputs: Sequence[str], deadline: float | None = None) -> Any:
        tensor = self._module.InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
        wanted = [self._module.InferRequestedOutput(name) for name in outputs]
        while True:
            try:
                return self._call(
                    self._client.infer,
                    self._model,
                    [tensor],
                    outputs=wanted,
                    request_id=PROBE_ID,
                    client_timeout=REQUEST_TIMEOUT_S,
                )
            except _BusyError:
                if deadline is None or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def _call(self, method: Any, *arguments: Any, **options: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        options.setdefault("client_timeout", REQUEST_TIMEOUT_S)
        if "headers" in options:
            try:
                check_listener(self._address, self._repository)
            except AddressError as error:
                raise ServerError(str(error)) from error
        try:
            return method(*arguments, **options)
        except InferenceServerException as error:
            message, status = " ".join(str(error.message()).split()), str(error.status())
            if CLOSED_RULE.partition("=")[0] in message:
                message = "its admin APIs are closed; start it with POLYHEAD_ADMIN_KEY, and see its log"
            elif "restricted" in message:
                message = "it does not accept this POLYHEAD_ADMIN_KEY"
            elif "explicit model load" in message:
                message = "it loads no versions while it runs; start polyhead-serve with --control explicit"
            elif "DEADLINE" in status or "Deadline" in message:
                message = f"no answer within {options['client_timeout']:g} s"
            kind = _BusyError if "UNAVAILABLE" in status and "connect" not in message else ServerError
            raise kind(f"server {self._address}: {message}") from error


class _BusyError(ServerError):
    """The server is too busy now, but may answer later."""
