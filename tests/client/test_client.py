"""What both clients do with texts, options and answers; a fake replaces the network."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyhead_client import (
    AsyncClient,
    BadResponseError,
    Client,
    MultiLabel,
    NotReadyError,
    Regression,
    SingleLabel,
    TextError,
    Tls,
    UnknownNameError,
    UsageError,
)
from polyhead_client.request import PROBE, REQUEST_ID
from polyhead_client.testing import Failure, FakeServer
from polyhead_serving.canary import PROBE_ID
from tests.client.fake_triton import ANSWER, SAID, SCORES
from tests.client.surface import Ask


def numbered(text: str) -> dict[str, Any]:
    """An answer that shows which text it belongs to."""
    return {**ANSWER, "token_count": int(text)}


def test_str_gives_one_prediction(ask: Ask, server: FakeServer) -> None:
    """A str gives a Prediction with one typed answer per head."""
    with ask(server) as client:
        prediction = client.classify("a goal in the last minute")
    topic, mood, stars = prediction["topic"], prediction["mood"], prediction["stars"]
    assert isinstance(topic, SingleLabel)
    assert (topic.label, topic.score) == ("sport", 0.7)
    assert isinstance(mood, MultiLabel)
    assert mood.names == ("happy",)
    assert mood.labels[0].threshold == 0.5
    assert stars == Regression(3.25)
    assert (prediction.token_count, prediction.truncated, prediction.error) == (6, False, None)


def test_long_lists_are_split_and_stay_in_order(ask: Ask, server: FakeServer) -> None:
    """A list longer than batch_size goes out in several requests and comes back in its order."""
    server.answer = numbered
    with ask(server, batch_size=3) as client:
        predictions = client.classify([str(number) for number in range(8)])
    assert [prediction.token_count for prediction in predictions] == list(range(8))
    assert sorted(len(asked.texts) for asked in server.requests) == [2, 3, 3]  # several are under way at a time


def test_lists_are_split_by_bytes(ask: Ask, server: FakeServer) -> None:
    """A request stays below its limit of bytes, and a text that is larger is refused with its position."""
    with ask(server, max_request_bytes=2**16) as client:
        client.classify(["ä" * 10_000] * 7)
        with pytest.raises(UsageError, match="text 1 has 70,000 bytes"):
            client.classify(["a", "b" * 70_000])
    assert sorted(len(asked.texts) for asked in server.requests) == [1, 3, 3]


def test_refused_batches_are_split(ask: Ask, server: FakeServer) -> None:
    """If the server refuses a batch as too long, all texts are still answered in order."""
    server.answer, server.max_batch_size = numbered, 10
    with ask(server) as client:
        predictions = client.classify([str(number) for number in range(100)])
        assert len(list(client.stream(["1"] * 30))) == 30
    assert [prediction.token_count for prediction in predictions] == list(range(100))
    assert sum(len(asked.texts) > 10 for asked in server.requests) == 1  # it is told once


def test_empty_list_asks_nothing(ask: Ask, server: FakeServer) -> None:
    """An empty list gives an empty list without a request."""
    with ask(server) as client:
        assert client.classify([]) == []
        assert list(client.stream([])) == []
    assert server.requests == []


def test_texts_arrive_as_they_are(ask: Ask, server: FakeServer) -> None:
    """NUL, trailing NUL, emoji, an empty text and line ends reach the server unchanged."""
    texts = ["a\0", "\0", "", "naïve 🦜", "a\r\nb ", "<|endoftext|>"]
    with ask(server) as client:
        client.classify(texts)
    assert server.requests[0].texts == texts


def test_options_travel_as_parameters(ask: Ask, server: FakeServer) -> None:
    """Options are sent as request parameters of the right type, and only if given."""
    with ask(server, model="other/model", version="7") as client:
        client.classify("text", top_k=2, threshold=1)
        client.classify("text")
    first, second = server.requests
    assert (first.model, first.version) == ("other/model", "7")
    assert first.parameters == {"top_k": 2, "threshold": 1.0}
    assert isinstance(first.parameters["threshold"], float)
    assert second.parameters == {}
    assert second.outputs == ["PREDICTION"]


def test_headers(ask: Ask, server: FakeServer) -> None:
    """The API key, headers and user agent are sent with every request, and repr does not show the key."""
    with ask(server, api_key="s3cret", headers={"X-Team": "search"}, user_agent="crawler/2") as client:
        client.classify("text")
    sent = server.requests[0].headers
    assert sent["authorization"] == "Bearer s3cret"
    assert sent["x-team"] == "search"
    assert sent["user-agent"].startswith("crawler/2 polyhead-client")
    assert "s3cret" not in repr(Client(api_key="s3cret"))


def test_bad_text_has_its_own_error(ask: Ask, server: FakeServer) -> None:
    """A text without an answer has an error and the others have answers; raise_on_error raises its position."""
    with ask(server) as client:
        good, blank = client.classify(["text", " "])
        with pytest.raises(TextError, match="text 1 has no answer: the text is empty or blank") as caught:
            client.classify(["text", " "], raise_on_error=True)
    assert blank.error == "the text is empty or blank"
    assert not blank.heads
    assert good.error is None
    assert (caught.value.position, caught.value.reason) == (1, blank.error)
    with pytest.raises(KeyError, match="empty or blank"):
        blank["topic"]


def test_unknown_names_say_which_there_are(ask: Ask, server: FakeServer) -> None:
    """For an unknown head or label the error lists those that exist."""
    with ask(server) as client:
        prediction, schema = client.classify("text"), client.schema()
    with pytest.raises(UnknownNameError, match=r"no head 'tonic'; the heads are \['topic', 'mood', 'stars'\]"):
        prediction["tonic"]
    with pytest.raises(UnknownNameError, match="no head 'tonic'"):
        schema["tonic"]
    with pytest.raises(UnknownNameError, match=r"head 'topic' has no label 'spurt'; its labels are .*'sport'"):
        schema.column("topic", "spurt")
    assert schema.column("topic", "sport") == 1
    assert schema.column("stars") == 5


def test_scores(ask: Ask, server: FakeServer) -> None:
    """scores() gives float32 (n, width) with NaN for a text without an answer, also when split or empty."""
    with ask(server, batch_size=2) as client:
        scores = client.scores(["a", "b", ""])
        none = client.scores([])
    assert scores.dtype == np.float32
    assert scores.shape == (3, 6)
    np.testing.assert_array_equal(scores[:2], np.array([SCORES, SCORES], dtype=np.float32))
    assert np.isnan(scores[2]).all()
    assert none.shape == (0, 6)
    assert none.dtype == np.float32


def test_schema(ask: Ask, server: FakeServer) -> None:
    """schema() gives the heads of the model that answers."""
    with ask(server) as client:
        schema = client.schema()
    assert (schema.max_length, schema.width) == (16, 6)
    assert schema.column_names()[2:] == ["topic/science", "mood/happy", "mood/sad", "stars/value"]
    assert schema.columns["mood"] == slice(3, 5)
    assert schema["mood"].thresholds == (0.5, 0.4)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([b"bytes"], "text 0 must be a str, got bytes"),
        (["good", None], "text 1 is missing .None."),
        (["a\ud800b"], "lone surrogate .U.D800. at character 1"),
        ({"a", "b"}, "texts must be a list of str, got set"),
        (b"text", "texts must be a list of str, got bytes"),
        (pd.Series(["a", None, "b"]), "text 1 is missing"),
        (pd.Series(["a", "b", pd.NA], dtype="string"), "text 2 is missing"),
        (pd.DataFrame({"text": ["a"]}), "got DataFrame"),
        (pa.array(["a", None]), "text 1 is missing"),
        (pa.table({"text": ["a"]}), "got Table"),
        (pa.array([1, 2]), "text 0 must be a str, got int"),
        (np.array([["a"]]), "got ndarray"),
    ],
)
def test_unsendable_texts_are_refused(ask: Ask, server: FakeServer, texts: object, words: str) -> None:
    """A value that is not a text is refused with its position, before anything is sent."""
    with ask(server) as client, pytest.raises(UsageError, match=words):
        client.classify(texts)
    assert all(asked.outputs == ["SCHEMA"] for asked in server.requests)  # a table may have the model's fields


@pytest.mark.parametrize(
    "texts",
    [
        ("1", "2", "3"),
        pd.Series(["1", "2", "3"], index=[7, 8, 9]),
        pd.Series(["1", "2", "3"], dtype="category"),
        pa.array(["1", "2", "3"]),
        pa.chunked_array([["1"], ["2", "3"]]),
        np.array(["1", "2", "3"]),
        np.array(["1", "2", "3"], dtype=object),
    ],
)
def test_columns_are_lists_of_texts(ask: Ask, server: FakeServer, texts: Any) -> None:
    """classify, scores and stream accept columns of pandas, Arrow and NumPy like lists."""
    server.answer = numbered
    with ask(server) as client:
        assert [prediction.token_count for prediction in client.classify(texts)] == [1, 2, 3]
        assert [prediction.token_count for prediction in client.stream(texts)] == [1, 2, 3]
        server.answer = lambda text: SAID
        assert client.scores(texts).shape == (3, 6)


def test_numpy_scalars_are_numbers(ask: Ask, server: FakeServer) -> None:
    """NumPy's whole and real numbers and strings work like Python's."""
    with ask(server, timeout_s=np.float32(5), batch_size=np.int64(2), max_connections=np.int32(3)) as client:
        options = {"top_k": np.int64(3), "threshold": np.float32(0.5), "timeout_s": np.float64(2)}
        assert client.classify(np.str_("text"), **options).error is None
        assert len(client.classify([np.str_("a"), "b", "c"], **options)) == 3
        assert len(list(client.stream(["a"], concurrency=np.int8(2), batch_size=np.uint8(1), **options))) == 1
    assert server.requests[0].parameters == {"top_k": 3, "threshold": 0.5}


def test_private_texts_are_marked(ask: Ask, server: FakeServer) -> None:
    """Every call that sends texts can mark them; a call that does not sends nothing that older servers do not know."""
    with ask(server) as client:
        client.classify("a", private=True)
        client.classify_json(["a"], private=True)
        list(client.stream(["a"], private=True))
        client.scores(["a"], private=True)
        client.classify("a")
        client.scores(["a"])
    assert [asked.parameters for asked in server.requests] == [{"private": True}] * 4 + [{}] * 2


def test_checks_and_explanations_have_the_id_of_probes(ask: Ask, server: FakeServer) -> None:
    """The server's answer log leaves out the requests with this id; those of a person have none."""
    assert PROBE == {REQUEST_ID: PROBE_ID}
    with ask(server) as client:
        client.classify("a goal")
        client.is_ready()
        client.explain("a goal")
    first, *others = [asked.request_id for asked in server.requests]
    assert first == ""
    assert len(others) > 3
    assert set(others) == {PROBE_ID}


@pytest.mark.parametrize(
    "option",
    [
        {"top_k": 0},
        {"top_k": np.True_},
        {"threshold": True},
        {"top_k": True},
        {"top_k": 1.5},
        {"threshold": 1.1},
        {"threshold": math.nan},
        {"reject_below": -0.1},
        {"reject_below": True},
        {"reject_below": "0.5"},
        {"private": 1},
    ],
)
def test_bad_options_are_refused(ask: Ask, server: FakeServer, option: dict[str, float]) -> None:
    """Options out of range are refused before anything is sent."""
    with ask(server) as client:
        for call in (client.classify, client.stream):
            with pytest.raises(UsageError, match=next(iter(option))):
                call(["text"], **option)
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"servers": ""}, "url must be"),
        ({"servers": []}, "servers must be"),
        ({"servers": {"a:1"}}, "servers must be"),
        ({"servers": ["a:1", "a:1"]}, "servers must differ"),
        ({"servers": [1]}, "must be a str"),
        ({"servers": "ftp://host"}, "url must be"),
        ({"servers": "http://user:word@host"}, "url must be"),
        ({"servers": "localhost:http"}, "port"),
        ({"servers": "::1"}, "brackets"),
        ({"protocol": "soap"}, "protocol"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
        ({"connect_timeout_s": -1}, "connect_timeout_s"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_request_bytes": 100}, "max_request_bytes"),
        ({"version": 1}, "version"),
        ({"model": ""}, "model"),
        ({"api_key": "line\nbreak"}, "api_key"),
        ({"headers": {"X-A": "b\r\nX-C: d"}}, "headers: 'X-A'"),
        ({"headers": {"a b": "c"}}, "headers: 'a b'"),
        ({"headers": {"Content-Length": "9"}}, "headers: 'Content-Length' is the transport's own"),
        ({"proxy": "socks5://proxy:1"}, "proxy must be"),
        ({"tls": Tls()}, "write the servers as 'https"),
        ({"servers": "https://host", "tls": Tls(ca_file="missing.pem")}, r"tls: .*missing\.pem"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], words: str) -> None:
    """Each argument of the client is checked by name."""
    with pytest.raises(UsageError, match=words):
        Client(**arguments)  # type: ignore[arg-type]


def test_ready_means_a_good_canary(ask: Ask, server: FakeServer) -> None:
    """A model that fails, hangs or has no answer to the canary is not ready, whatever Triton's endpoint says."""
    with ask(server, timeout_s=2) as client:
        client.wait_until_ready(10)
        assert client.is_ready()
        server.answer = lambda text: {"error": "no"}
        assert client.is_ready(canary=False)
        assert not client.is_ready()
        with pytest.raises(NotReadyError, match="no answer: no"):
            client.wait_until_ready(0.5)
        server.failure = Failure(500, "Stub process 'gpt2_classifier_0_0' is not healthy.")
        assert not client.is_ready()
        server.failure = Failure(400)
        assert not client.is_ready(canary=False)
        server.failure = Failure(hang_s=1.0)
        with pytest.raises(NotReadyError, match=r"within 0\.2 s"):
            client.wait_until_ready(0.2)


def test_one_ready_replica_is_enough(ask: Ask, server: FakeServer) -> None:
    """A client is ready when any of its replicas answers."""
    server.failures = [Failure(refused=True)]
    with ask(server, ["a:1", "b:1"]) as client:
        assert client.is_ready()


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"[]", b"{}", b'{"outputs": []}', b"", b"\xff\xfe", b"[" * 9999]
)
def test_other_servers_are_recognised(ask: Ask, server: FakeServer, body: bytes) -> None:
    """If another service answers instead of Triton, the error is a BadResponseError."""
    server.failure = Failure(body=body)
    with ask(server) as client:
        for call in (
            client.schema,
            lambda: client.classify("text"),
            lambda: client.scores(["text"]),
        ):
            with pytest.raises(BadResponseError):
                call()


def test_both_clients_have_the_same_surface() -> None:
    """Public methods of both clients have the same names, parameters and defaults."""

    def surface(kind: type) -> dict[str, list[tuple[str, object]]]:
        methods = {name: method for name, method in vars(kind).items() if not name.startswith("_")}
        return {
            name: [(one.name, one.default) for one in inspect.signature(method).parameters.values()]
            for name, method in methods.items()
        }

    assert surface(Client) == surface(AsyncClient)


def test_closed_client_refuses(server: FakeServer) -> None:
    """A closed client says so; closing twice is fine."""
    client = server.client()
    client.close()
    client.close()
    with pytest.raises(UsageError, match="closed"):
        client.classify("text")


def test_broken_answer_says_where_it_came_from(ask: Ask, server: FakeServer) -> None:
    """The error for an answer that breaks the contract names server, model and the place in the answer."""
    server.answer = lambda text: {"heads": {}}
    with (
        ask(server, "host:8000") as client,
        pytest.raises(BadResponseError, match=r"host:8000: .*missing field 'token_count'") as caught,
    ):
        client.classify("text")
    assert caught.value.replica == "host:8000"
    assert caught.value.model == "gpt2_classifier"
    assert caught.value.advice


def test_changed_width_is_an_error(ask: Ask, server: FakeServer) -> None:
    """If a model with other heads replaces the model between two batches, scores are not mixed."""
    heads = list(server.heads)

    def replace(text: str) -> dict[str, Any]:
        server.heads = heads[:1] if text == "b" else heads
        return SAID

    server.answer = replace
    with ask(server, batch_size=1) as client, pytest.raises(BadResponseError, match="the model was replaced"):
        client.scores(["a", "b"])


def test_a_request_replaces_reject_below(ask: Ask, server: FakeServer) -> None:
    """It travels as a float, in every call that has options; 0 rejects nothing, and without it the model decides."""
    server.heads = [{**server.heads[0], "reject_below": 0.75}, *server.heads[1:]]
    with ask(server) as client:
        models, off, more = (client.classify("a", reject_below=bound)["topic"] for bound in (None, 0, np.float32(0.7)))
        assert json.loads(client.classify_json(["a"], reject_below=1)[0])["heads"]["topic"]["label"] is None
        assert [one["topic"].label for one in client.stream(["a"], reject_below=0.0)] == ["sport"]
    assert (models.label, models.score, off.label, more.label) == (None, 0.7, "sport", "sport")
    sent = [asked.parameters.get("reject_below") for asked in server.requests]
    assert sent == [None, 0.0, float(np.float32(0.7)), 1.0, 0.0]
    assert all(isinstance(value, float) for value in sent[1:])
