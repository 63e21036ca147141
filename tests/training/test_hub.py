"""Without a network, a name of the hub is one line within seconds; what is on this machine is still used."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants
from transformers import GPT2LMHeadModel

from polyhead_training.data.sources import open_hub
from polyhead_training.errors import ConfigError, DataError
from polyhead_training.model import hub
from polyhead_training.model.hub import check_pretrained, hub_access, why_unreachable
from tests.tiny import tiny_config, tiny_tokenizer
from tests.training.tiny_run import run, trained, write_run


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """A port may have been that of an earlier test."""
    hub._remembered.clear()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's address is a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    return address


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The hub's address is a server that knows nothing; gives what it was asked for so far."""
    asked: list[str] = []

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Nothing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()
        thread.join()


def test_a_hub_that_answers_is_reachable(answering: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers; then names are left to the hub's own libraries. It is asked again only after a minute."""
    assert why_unreachable() is None
    assert check_pretrained("gpt2") is False
    with hub_access("owner/name") as unreachable:
        assert unreachable is None
        assert not constants.HF_HUB_OFFLINE
    assert len(answering) == 1
    monkeypatch.setattr(hub, "REMEMBERED_S", 0.0)
    assert why_unreachable() is None
    assert len(answering) == 2


def test_pretrained_weights_without_a_network_are_one_line(tmp_path: Path, closed: str) -> None:
    """It says that the hub cannot be reached, and that a folder does."""
    config = write_run(tmp_path, model='pretrained = "gpt2"')
    result = run(config)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "model.pretrained 'gpt2': there is no such folder in" in result.stderr
    assert f"the Hugging Face hub ({closed}) cannot be reached (" in result.stderr
    assert "hf download gpt2 --local-dir gpt2" in result.stderr
    assert result.stdout == ""


def test_a_data_set_without_a_network_is_one_line(tmp_path: Path, closed: str) -> None:
    """It says what to do, and the libraries may ask the hub again afterwards."""
    with pytest.raises(DataError, match=r"cannot be reached .* not in the cache .* name them in train") as caught:
        open_hub("owner/name", None)
    assert str(caught.value).startswith("hub data set 'owner/name': cannot be loaded: ")
    assert "\n" not in str(caught.value)
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
    config = write_run(tmp_path)
    text = config.read_text(encoding="utf-8").replace("train = ", 'hub = "owner/name"\n# ').replace("validation", "# ")
    config.write_text(text, encoding="utf-8")
    result = run(config)
    assert (result.exit_code, result.stdout) == (2, "")  # not even "reading data", before which torch is imported
    assert result.stderr.count("\n") == 1


def test_a_silent_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and never answers; a look-up of its name that never ends is the same."""
    monkeypatch.setattr(hub, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "cannot be reached" in (why_unreachable() or "")


def test_offline_by_a_variable_asks_nobody(monkeypatch: pytest.MonkeyPatch, answering: list[str]) -> None:
    """HF_HUB_OFFLINE is obeyed."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="the hub is switched off by HF_HUB_OFFLINE"):
        check_pretrained("gpt2")
    assert answering == []


def test_a_folder_needs_no_network(tmp_path: Path, closed: str) -> None:
    """A language model and its tokenizer, trained on without asking the hub."""
    GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save(str(tmp_path / "gpt2" / "tokenizer.json"))
    trained(write_run(tmp_path, model=f'pretrained = "{tmp_path}/gpt2"'))


def test_cached_weights_are_used(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were downloaded before are loaded, and only this machine is asked for them."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    snapshot = cache / "models--owner--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "models--owner--tiny" / "refs").mkdir()
    (cache / "models--owner--tiny" / "refs" / "main").write_text("abc", encoding="utf-8")
    GPT2LMHeadModel(tiny_config()).save_pretrained(snapshot)
    assert check_pretrained("owner/tiny") is True
    with pytest.raises(ConfigError, match="there is no such folder"):
        check_pretrained("owner/other")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ({}, "has no config.json; model.safetensors and a tokenizer are needed too"),
        ({"adapter_config.json": {}}, "it holds adapters, which must be merged into their model first"),
        ({"config.json": {}}, "has no model.safetensors"),
        ({"config.json": {}, "pytorch_model.bin": {}}, "is a pickle, which is not read"),
        ({"config.json": {"model_type": "bert"}, "model.safetensors": {}}, "is a model of type 'bert'"),
        ({"config.json": [], "model.safetensors": {}}, None),
    ],
)
def test_folders_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, object] | None, message: str | None
) -> None:
    """What is missing or wrong is said before any row is read; a path is never taken for a name of the hub."""
    monkeypatch.setattr(hub, "why_unreachable", lambda: pytest.fail("the hub was asked"))
    folder = tmp_path / "weights"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    if message is None:
        assert check_pretrained(str(folder)) is True
        return
    with pytest.raises(ConfigError, match=message):
        check_pretrained(str(folder))
