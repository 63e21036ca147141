"""The client against a fake Triton; the code between is tritonclient's own."""

from __future__ import annotations

import math
import socket

import numpy as np
import pytest

from polyhead_client import (
    BadResponseError,
    Client,
    MultiLabel,
    NotReadyError,
    Regression,
    RequestTimeoutError,
    ServerUnreachableError,
    SingleLabel,
    UsageError,
)
from tests.client.fake_triton import ANSWER, SCORES, FakeTriton


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_str_gives_one_prediction(fake: FakeTriton) -> None:
    """A str gives a Prediction with a typed answer a head."""
    with Client(fake.url) as client:
        prediction = client.classify("a goal in the last minute")
    topic, mood, stars = prediction["topic"], prediction["mood"], prediction["stars"]
    assert isinstance(topic, SingleLabel)
    assert (topic.label, topic.score) == ("sport", 0.7)
    assert isinstance(mood, MultiLabel)
    assert mood.names == ("happy",)
    assert mood.labels[0].threshold == 0.5
    assert stars == Regression(3.25)
    assert (prediction.token_count, prediction.truncated, prediction.error) == (4, False, None)


def test_long_lists_are_split_and_stay_in_order(fake: FakeTriton) -> None:
    """A list longer than batch_size goes out in several requests and comes back in its order."""
    fake.answer = lambda text: {**ANSWER, "token_count": int(text)}
    with Client(fake.url, batch_size=3) as client:
        predictions = client.classify([str(number) for number in range(8)])
    assert [prediction.token_count for prediction in predictions] == list(range(8))
    assert [len(request["texts"]) for request in fake.requests] == [3, 3, 2]


def test_empty_list_asks_nothing(fake: FakeTriton) -> None:
    """An empty list gives an empty list without a request."""
    with Client(fake.url) as client:
        assert client.classify([]) == []
    assert fake.requests == []


def test_texts_arrive_as_they_are(fake: FakeTriton) -> None:
    """NUL, trailing NUL, emoji, an empty text and line ends reach the server unchanged."""
    texts = ["a\0", "\0", "", "naïve 🦜", "a\r\nb ", "<|endoftext|>"]
    with Client(fake.url) as client:
        client.classify(texts)
    assert fake.requests[0]["texts"] == texts


def test_options_travel_as_parameters(fake: FakeTriton) -> None:
    """Options are sent as request parameters of the right type, and only if given."""
    with Client(fake.url, model="other", version="7") as client:
        client.classify("text", top_k=2, threshold=1)
        client.classify("text")
    assert fake.requests[0]["path"] == "/v2/models/other/versions/7/infer"
    assert fake.requests[0]["parameters"] == {"top_k": 2, "threshold": 1.0}
    assert isinstance(fake.requests[0]["parameters"]["threshold"], float)
    assert fake.requests[1]["parameters"] == {}
    assert fake.requests[1]["outputs"] == ["PREDICTION"]


def test_bad_text_spoils_only_itself(fake: FakeTriton) -> None:
    """A text without an answer carries its error, its neighbours their answers."""
    with Client(fake.url) as client:
        blank, good = client.classify([" ", "text"])
    assert blank.error == "the text is empty or blank"
    assert not blank.heads
    assert good.error is None
    with pytest.raises(KeyError, match="empty or blank"):
        blank["topic"]


def test_scores(fake: FakeTriton) -> None:
    """scores() gives float32 (n, width) with NaN for a text without an answer, also when split or empty."""
    with Client(fake.url, batch_size=2) as client:
        scores = client.scores(["a", "b", ""])
        none = client.scores([])
    assert scores.dtype == np.float32
    assert scores.shape == (3, 6)
    np.testing.assert_array_equal(scores[:2], np.array([SCORES, SCORES], dtype=np.float32))
    assert np.isnan(scores[2]).all()
    assert none.shape == (0, 6)
    assert none.dtype == np.float32


def test_schema(fake: FakeTriton) -> None:
    """schema() gives the heads of the model that answers."""
    with Client(fake.url) as client:
        schema = client.schema()
    assert (schema.max_length, schema.width) == (16, 6)
    assert schema.column_names()[2:] == ["topic/science", "mood/happy", "mood/sad", "stars/value"]
    assert schema.columns["mood"] == slice(3, 5)
    assert schema.heads[1].thresholds == (0.5, 0.4)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([b"bytes"], "text 0 must be a str, got bytes"),
        (["good", None], "text 1 must be a str, got NoneType"),
        (["a\ud800b"], "lone surrogate .U.D800. at character 1"),
        ({"a", "b"}, "texts must be a list of str, got set"),
        (b"text", "texts must be a list of str, got bytes"),
    ],
)
def test_unsendable_texts_are_refused(fake: FakeTriton, texts: object, words: str) -> None:
    """What is no text is refused before anything is sent, with its position."""
    with Client(fake.url) as client, pytest.raises(UsageError, match=words):
        client.classify(texts)  # type: ignore[call-overload]
    assert fake.requests == []


@pytest.mark.parametrize(
    "option", [{"top_k": 0}, {"top_k": True}, {"top_k": 1.5}, {"threshold": 1.1}, {"threshold": math.nan}]
)
def test_bad_options_are_refused(fake: FakeTriton, option: dict[str, float]) -> None:
    """Options out of range are refused before anything is sent."""
    with Client(fake.url) as client, pytest.raises(UsageError, match=next(iter(option))):
        client.classify("text", **option)  # type: ignore[arg-type]
    assert fake.requests == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": ""}, "url must be"),
        ({"url": "ftp://host"}, "url must be"),
        ({"url": "localhost:http"}, "port"),
        ({"url": "::1"}, "brackets"),
        ({"protocol": "soap"}, "protocol"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
        ({"batch_size": 0}, "batch_size"),
        ({"version": 1}, "version"),
        ({"model": ""}, "model"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], words: str) -> None:
    """Each argument of the client is checked by name."""
    with pytest.raises(UsageError, match=words):
        Client(**arguments)  # type: ignore[arg-type]


def test_url_with_scheme(fake: FakeTriton) -> None:
    """A URL may have http:// before and a slash behind it."""
    with Client(f"http://{fake.url}/") as client:
        assert client.is_ready()


def test_late_answer_is_never_read_as_the_next(fake: FakeTriton) -> None:
    """After a timeout the next request gets its own answer, not the late one."""
    fake.answer = lambda text: {**ANSWER, "token_count": len(text)}
    with Client(fake.url, timeout_s=0.6) as client:
        client.classify("warm")
        fake.delay_s = 1.0
        with pytest.raises(RequestTimeoutError, match=r"within 0\.6 s"):
            client.classify("slow")
        fake.delay_s = 0.0
        assert client.classify("the second").token_count == len("the second")


def test_idle_connection_that_was_closed_is_reopened(fake: FakeTriton) -> None:
    """A connection that the server closed meanwhile costs the caller nothing."""
    fake.close_after = True
    with Client(fake.url) as client:
        for _ in range(3):
            assert client.classify("text").error is None


def test_nobody_listens() -> None:
    """Without a server the error is a ConnectionError that names the address, and the client is not ready."""
    url = f"127.0.0.1:{free_port()}"
    with Client(url, timeout_s=2) as client:
        with pytest.raises(ServerUnreachableError, match=url) as caught:
            client.classify("text")
        assert caught.value.url == url
        assert caught.value.model == "gpt2_classifier"
        assert isinstance(caught.value, ConnectionError)
        assert not client.is_ready()
        with pytest.raises(NotReadyError, match="no connection"):
            client.wait_until_ready(0.3)


def test_ready_means_a_good_canary(fake: FakeTriton) -> None:
    """A model that fails, hangs or has no answer for the canary is not ready."""
    with Client(fake.url, timeout_s=2) as client:
        client.wait_until_ready(10)
        fake.failure = (500, "Stub process 'gpt2_classifier_0_0' is not healthy.")
        assert not client.is_ready()
        fake.failure, fake.answer = None, lambda text: {"error": "no"}
        with pytest.raises(NotReadyError, match="no answer: no"):
            client.wait_until_ready(1)
        fake.delay_s = 1.0
        with pytest.raises(NotReadyError):
            client.wait_until_ready(0.2)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b"{}", b'{"outputs": []}', b""])
def test_other_servers_are_recognised(fake: FakeTriton, body: bytes) -> None:
    """Whatever answers in Triton's place gives a BadResponseError and no traceback from below."""
    fake.raw_body = body
    with Client(fake.url) as client, pytest.raises(BadResponseError):
        client.classify("text")


def test_closed_client_refuses(fake: FakeTriton) -> None:
    """A closed client says so; closing twice is fine."""
    client = Client(fake.url)
    client.close()
    client.close()
    with pytest.raises(UsageError, match="closed"):
        client.classify("text")


def test_broken_answer_says_where_it_came_from(fake: FakeTriton) -> None:
    """An answer against the contract carries the server and the model, not only the place in the answer."""
    fake.answer = lambda text: {"heads": {}}
    with Client(fake.url) as client, pytest.raises(BadResponseError, match="missing field 'token_count'") as caught:
        client.classify("text")
    assert caught.value.url == fake.url
    assert caught.value.model == "gpt2_classifier"
