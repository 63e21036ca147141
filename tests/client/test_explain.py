"""Explanations of models whose decisive words are planted, so that every effect is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from polyhead_client import (
    BadResponseError,
    Explanation,
    Prediction,
    RequestTimeoutError,
    ServerFailedError,
    TextError,
    UnknownNameError,
    UsageError,
)
from polyhead_client.testing import Failure, FakeServer
from tests.client.surface import Ask

TREE: tuple[dict[str, Any], ...] = (
    {"name": "area", "kind": "single_label", "labels": ["sport", "arts"]},
    {"name": "kind", "kind": "single_label", "labels": ["football", "opera"], "parent": "area",
     "parent_of": {"football": "sport", "opera": "arts"}},
)  # fmt: skip


def planted(points: dict[str, float], base: float = 0.125) -> Callable[[str], dict[str, Any]]:
    """A model whose score for sport is a base plus the points of the words that occur, each at every place."""

    def answer(text: str) -> dict[str, Any]:
        score = base + sum(text.casefold().count(word) * value for word, value in points.items())
        return {"topic": {"sport": score, "news": 0.5}, "mood": {"happy": score, "sad": 0.25}, "stars": 10 * score}

    return answer


def effects(explanation: Explanation, head: str = "topic") -> dict[str, float | None]:
    """The effect of each word; a word that occurs twice has its last one."""
    return {word.text: word.effect for word in explanation[head].words}


def test_each_word_has_its_effect(ask: Ask) -> None:
    """Without the planted words the score is lower or higher by their points; all other words move nothing."""
    server = FakeServer(planted({"goal": 0.5, "striker": 0.125, "rain": -0.0625}))
    with ask(server) as client:
        explanation = client.explain("A goal by the striker, despite rain.")
    assert explanation["topic"].label == "sport"
    assert explanation["topic"].score == 0.125 + 0.5 + 0.125 - 0.0625
    assert effects(explanation) == {
        "A": 0, "goal": 0.5, "by": 0, "the": 0, "striker": 0.125, ",": 0, "despite": 0, "rain": -0.0625, ".": 0,
    }  # fmt: skip
    assert effects(explanation, "stars") == {word: 10 * (effect or 0) for word, effect in effects(explanation).items()}
    assert [word.text for word in explanation["topic"].strongest(3)] == ["goal", "striker", "rain"]
    assert explanation["topic"].strongest()[0].sentence == "without 'goal' the score would be 0.5 lower"
    assert explanation["topic"].strongest()[2].sentence == "without 'rain' the score would be 0.062 higher"
    assert explanation["topic"].strongest()[3].sentence == "without 'A' the score would be the same"


def test_it_says_what_it_cost(ask: Ask) -> None:
    """The texts that are scored are counted, and they go out as one list in the client's batches."""
    server = FakeServer(planted({}))
    with ask(server, batch_size=4) as client:
        explanation = client.explain("one two three four five six")
    asked = [one for one in server.requests if one.outputs != ["SCHEMA"]]
    assert explanation.texts == sum(len(one.texts) for one in asked) == 1 + 1 + 6 + 1
    assert [len(one.texts) for one in asked if one.outputs == ["SCORES"]] == [4, 4]


def test_what_is_explained(ask: Ask) -> None:
    """By default each head's answer: the best label, all labels that are chosen, the number."""
    server = FakeServer(planted({"goal": 0.5}))
    with ask(server) as client:
        everything = client.explain("a goal")
        mood = client.explain("a goal", "mood", "sad")
        news = client.explain("a goal", label="news")
        stars = client.explain("a goal", "stars")
        nothing = client.explain("a vote", "mood")
    assert [(one.head, one.label) for one in everything] == [("topic", "sport"), ("mood", "happy"), ("stars", None)]
    assert [(one.head, one.label, one.score) for one in mood] == [("mood", "sad", 0.25)]
    assert [(one.head, one.label) for one in news] == [("topic", "news")]
    assert effects(stars, "stars") == {"a": 0, "goal": 5}
    # 0.125 is 0.375 below its threshold of 0.5, and 0.25 is 0.15 below its threshold of 0.4.
    assert [(one.head, one.label) for one in nothing] == [("mood", "sad")]


def test_taxonomy(ask: Ask) -> None:
    """Each level of a taxonomy is explained by its own score."""

    def answer(text: str) -> dict[str, Any]:
        goal, cup = "goal" in text, "cup" in text
        return {"area": {"sport": 0.5 + 0.25 * goal + 0.125 * cup, "arts": 0.125}, "kind": {"football": 0.5 * goal}}

    with ask(FakeServer(answer, heads=TREE)) as client:
        explanation = client.explain("a goal in the cup")
    assert effects(explanation, "area") == {"a": 0, "goal": 0.25, "in": 0, "the": 0, "cup": 0.125}
    assert effects(explanation, "kind") == {"a": 0, "goal": 0.5, "in": 0, "the": 0, "cup": 0}


def test_repeated_words(ask: Ask) -> None:
    """A word at several places is also left out at all of them, because the others may say the same."""

    def answer(text: str) -> dict[str, Any]:
        return {"topic": {"sport": 0.75 if "goal" in text.casefold() else 0.25}}

    with ask(FakeServer(answer)) as client:
        reason = client.explain("Goal! A goal, the last goal.", "topic")["topic"]
    words = reason.words
    assert [piece.text for piece in reason.pieces() if piece.weight == 1] == ["Goal", "goal", "goal"]
    goals = [word for word in words if word.text.casefold() == "goal"]
    assert [(word.effect, word.places, word.effect_everywhere) for word in goals] == [(0, 3, 0.5)] * 3
    assert [word.largest for word in goals] == [0.5] * 3
    assert goals[0].sentence == (
        "without 'Goal' the score would be the same; without all 3 of them the score would be 0.5 lower"
    )
    assert [word.strength for word in words if word not in goals] == [0, 0, 0, 0, 0, 0]


def test_one_word(ask: Ask) -> None:
    """Nothing is left of a text of one word, so there is no score without it, and the explanation says so."""
    with ask(FakeServer(planted({"goal": 0.5}))) as client:
        for text in ("goal", "  goal\n", "goal goal"):
            words = client.explain(text, "topic")["topic"].words
            assert words[0].text == "goal"
            if len(words) == 1:
                assert words[0].effect is None
                assert words[0].sentence == "without 'goal' there is no score"
            else:
                assert (words[0].effect, words[0].effect_everywhere) == (0.5, None)


def test_a_very_long_word(ask: Ask) -> None:
    """A message names the beginning of a long word only."""
    with ask(FakeServer(planted({"goal": 0.125}))) as client:
        words = client.explain("x" * 100_000 + " goal", "topic")["topic"].words
    assert words[0].sentence == f"without '{'x' * 59}…' the score would be the same"
    assert words[0].end == 100_000


def test_fields(ask: Ask) -> None:
    """Words of each field are left out in it; an empty field takes its part of the template with it."""
    server = FakeServer(
        planted({"great": 0.5, "by ": 0.125, "34": 0.25}), text_template="[[{Title} by ]]{Body}[[ ({Age})]]"
    )
    row = {"Body": "It fits.", "Title": "great", "Age": 34}
    with ask(server) as client:
        explanation = client.explain(row, "topic")
        again = client.explain(json.dumps(row), "topic")
        plain = client.explain("great by ", "topic")
        with pytest.raises(UsageError, match="unknown field 'Colour'"):
            client.explain({"Colour": "red"})
        with pytest.raises(TextError, match="empty or blank"):
            client.explain({"Body": " "})
    # Without the title, "by" is gone too.
    assert [(word.field, word.text, word.effect) for word in explanation["topic"].words] == [
        ("Title", "great", 0.625), ("Body", "It", 0), ("Body", "fits", 0), ("Body", ".", 0), ("Age", "34", 0.25),
    ]  # fmt: skip
    assert again["topic"].words == explanation["topic"].words
    assert effects(plain) == {"great": 0.5, "by": 0.125}
    with ask(FakeServer()) as client, pytest.raises(UsageError, match="declares none"):
        client.explain({"Body": "text"})


LONG = " ".join(f"Sentence {number} says nothing new at all." for number in range(60))  # 480 words


@pytest.mark.parametrize(("most_texts", "found"), [(64, 1), (128, 2), (300, 2)])
def test_long_texts(ask: Ask, most_texts: int, found: int) -> None:
    """A long text loses sentences first and then the words of the strongest ones, within the texts that are allowed."""
    text = LONG.replace("Sentence 41", "The goal 41").replace("Sentence 7 ", "The rain 7 ")
    server = FakeServer(planted({"goal": 0.5, "rain": -0.0625}), max_length=1000)
    with ask(server) as client:
        explanation = client.explain(text, "topic", most_texts=most_texts)
    reason = explanation["topic"]
    assert explanation.texts <= most_texts
    assert explanation.texts == sum(len(one.texts) for one in server.requests if one.outputs != ["SCHEMA"])
    strong = {one.text: one.effect for one in reason.sentences if one.effect}
    assert sorted(strong.values()) == [-0.0625, 0.5]
    assert any("goal 41" in one for one in strong)
    words = [(word.text, word.effect) for word in reason.strongest(500)]
    assert words[:found] == [("goal", 0.5), ("rain", -0.0625)][:found]
    assert all(effect == 0 for _, effect in words[found:])
    assert "only the words of its strongest sentences" in " ".join(explanation.notes())
    assert "".join(piece.text for piece in reason.pieces()) == text
    # The sentences together are the whole text.
    assert "".join(one.text for one in reason.sentences).replace(" ", "") == text.replace(" ", "")


def test_too_few_texts_for_words(ask: Ask) -> None:
    """If no sentence's words fit into the texts that are allowed, the sentences are explained and a note says so."""
    text = f"{LONG} goal. {LONG} {LONG} {LONG}"
    with ask(FakeServer(planted({"goal": 0.5}), max_length=10_000)) as client:
        explanation = client.explain(text, "topic", most_texts=64)
    assert explanation["topic"].words == ()
    assert [one.effect for one in explanation["topic"].sentences if one.effect] == [0.5]
    assert "allow more texts with most_texts" in " ".join(explanation.notes())


def test_notes_about_rounding() -> None:
    """A server that rounds is named in the notes, one that computes in fp32 is not."""
    prediction = Prediction(token_count=2)
    assert "effects below 0.03 may be rounding" in " ".join(Explanation(prediction, (), 5, 0.03).notes())
    assert Explanation(prediction, (), 5, 0.0001).notes() == Explanation(prediction, (), 5).notes()


def test_truncated_texts(ask: Ask) -> None:
    """Words that the model does not read are not left out; the explanation names them and says why."""

    def answer(text: str) -> dict[str, Any]:
        return planted({"goal": 0.5})(" ".join(text.split()[:20]))

    text = " ".join(["a", "goal", *(f"word{number}" for number in range(400)), "goal"])
    server = FakeServer(answer, max_length=20)
    with ask(server) as client:
        explanation = client.explain(text, "topic")
    reason = explanation["topic"]
    assert explanation.prediction.truncated
    assert "reads only 20 tokens" in " ".join(explanation.notes())
    (unread,) = reason.unread
    assert text.endswith(unread.text)
    # The fake reads 20 words. The end is found within a 16th of 25 to 50 words.
    assert 20 < len(reason.words) <= 24
    assert [word.text for word in reason.words if word.effect] == ["goal"]
    assert explanation.texts == sum(len(one.texts) for one in server.requests if one.outputs != ["SCHEMA"]) < 70
    assert "".join(piece.text for piece in reason.pieces()) == text


def test_truncated_fields(ask: Ask) -> None:
    """Fields after the end are unread too, and a template that ends with words does not end too early."""

    def answer(text: str) -> dict[str, Any]:
        return planted({"goal": 0.5, "cup": 0.25})(" ".join(text.split()[:10]))

    server = FakeServer(answer, max_length=10, text_template="{Title} {Body} and {More} is all that there is to say")
    row = {"Title": "one two three four five", "Body": "six seven eight nine goal cup twelve", "More": "cup " * 5}
    with ask(server) as client:
        explanation = client.explain(row, "topic")
    assert explanation.prediction.truncated
    assert effects(explanation)["goal"] == 0.5 - 0.25  # without it, the model reads the cup
    assert {part.field for part in explanation["topic"].unread} <= {"Body", "More"}
    assert [part.text for part in explanation["topic"].unread if part.field == "More"] == [("cup " * 5).strip()]


def test_errors(ask: Ask) -> None:
    """What cannot be explained is an error of the client, before or after the server was asked."""
    server = FakeServer(planted({}))
    with ask(server) as client:
        with pytest.raises(TextError, match="no answer to explain: the text is empty or blank") as caught:
            client.explain(" ")
        assert caught.value.reason == "the text is empty or blank"
        with pytest.raises(UnknownNameError, match="no head 'tonic'"):
            client.explain("text", "tonic")
        with pytest.raises(UnknownNameError, match="no label 'opera'"):
            client.explain("text", "topic", "opera")
        with pytest.raises(UnknownNameError, match="no label 'value'"):
            client.explain("text", "stars", "value")
        with pytest.raises(UnknownNameError, match="no head has label 'opera'"):
            client.explain("text", label="opera")
        with pytest.raises(UsageError, match="one at a time"):
            client.explain(["text"])
        with pytest.raises(UsageError, match="at least 64"):
            client.explain("text", most_texts=3)
        with pytest.raises(UsageError, match="lone surrogate"):
            client.explain("te\udcffxt")
        with pytest.raises(UnknownNameError, match="explained are"):
            client.explain("text", "topic")["mood"]
        with pytest.raises(UsageError, match="1,200,000 characters"):
            client.explain("text " * 240_000)
    both = [{"name": name, "kind": "single_label", "labels": ["yes", "no"]} for name in ("spam", "rude")]
    with ask(FakeServer(heads=both)) as client, pytest.raises(UsageError, match="name the head too"):
        client.explain("text", label="yes")


def test_a_word_without_which_there_is_no_answer(ask: Ask) -> None:
    """If the server has no answer to a text without a word, the word's effect is unknown, and the others are known."""

    def answer(text: str) -> dict[str, Any]:
        return planted({"goal": 0.5})(text) if "safe" in text else {"error": "the model's numbers overflow"}

    with ask(FakeServer(answer)) as client:
        assert effects(client.explain("a safe goal", "topic")) == {"a": 0, "safe": None, "goal": 0.5}


def test_a_server_that_fails(ask: Ask) -> None:
    """A failure or a deadline in the middle is its own error, without half of an explanation in it."""
    server = FakeServer(planted({}), failures=[Failure(), Failure(), Failure(), Failure(500, "out of memory")])
    with ask(server, batch_size=8) as client, pytest.raises(ServerFailedError) as failed:
        client.explain("word " * 60)
    assert "error.answers" not in str(failed.value)
    server = FakeServer(planted({}), failures=[Failure(), Failure(), Failure(hang_s=5)])
    with ask(server) as client, pytest.raises(RequestTimeoutError) as late:
        client.explain("word " * 60, timeout_s=0.3)
    assert "error.answers" not in str(late.value)
    assert not late.value.answers


@pytest.mark.parametrize("replaced", [2, 5, 8])
def test_a_model_that_is_replaced(ask: Ask, replaced: int) -> None:
    """Scores of two models are never mixed in one explanation, whenever the model is replaced."""
    asked = 0

    def answer(text: str) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return planted({}, base=0.125 if asked < replaced else 0.75)(text)

    with ask(FakeServer(answer)) as client, pytest.raises(BadResponseError, match="was the model replaced"):
        client.explain("one two three four five")


@pytest.mark.parametrize("change", [{"name": "theme"}, {"labels": ["goal"]}, {"kind": "regression", "labels": []}])
def test_a_model_with_other_heads(ask: Ask, change: dict[str, Any]) -> None:
    """A model that is replaced after the schema was read, with other heads or labels, is an error that says so."""
    heads = [{"name": "topic", "kind": "single_label", "labels": ["news", "sport"]}]
    server = FakeServer(heads=heads)

    def answer(text: str) -> dict[str, Any]:
        server.heads = [heads[0] | change]
        return {}

    server.answer = answer
    with ask(server) as client, pytest.raises(BadResponseError, match="other heads or labels than the schema"):
        client.explain("a goal")


def test_cancel() -> None:
    """A cancelled explanation ends at once, and its client goes on."""

    async def run() -> None:
        server = FakeServer(planted({"goal": 0.5}), failures=[Failure(), Failure(), Failure(hang_s=30)])
        async with server.async_client() as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.explain("a goal")
            assert effects(await client.explain("a goal", "topic")) == {"a": 0, "goal": 0.5}

    asyncio.run(run())


def test_html(ask: Ask) -> None:
    """A notebook shows each word with its effect. Nothing of the text, its fields or labels becomes markup."""
    heads = [{"name": "<i>topic", "kind": "single_label", "labels": ["<b>", "&"]}]
    template = "{<u>Title} {Body}"
    text = '<script>alert("x")</script> goal\u202e\x1b[31m \x00'
    server = FakeServer(
        lambda text: {"<i>topic": {"<b>": 0.5 + 0.25 * ("goal" in text)}}, heads, text_template=template
    )
    with ask(server) as client:
        html = client.explain({"<u>Title": text, "Body": "'\" onmouseover='x'"})._repr_html_()
    for markup in ("<script", "<i>", "<u>", "\x1b", "\x00", "' onmouseover"):
        assert markup not in html
    assert "&lt;script" not in html  # "<" and "script" are parts of their own
    assert '<span style="background:rgba(64,132,244,0.65)" title="without &#x27;goal\\u202e' in html
    assert html.count("<div") == html.count("</div>")
    assert html.count("<span") == html.count("</span>")


def test_json(ask: Ask) -> None:
    """to_json has all that a program needs, ready for json.dumps."""
    with ask(FakeServer(planted({"goal": 0.5}))) as client:
        explanation = client.explain("a goal", "topic")
    found = json.loads(json.dumps(explanation.to_json()))
    assert found["texts"] == 5
    (reason,) = found["reasons"]
    assert (reason["head"], reason["label"], reason["score"]) == ("topic", "sport", 0.625)
    assert reason["words"][1] == {
        "text": "goal", "start": 2, "end": 6, "field": None, "effect": 0.5, "places": 1, "effect_everywhere": None,
    }  # fmt: skip


def test_a_rejected_answer_is_explained(ask: Ask) -> None:
    """By the score of its best label, which the bound rejected."""
    heads = ({"name": "topic", "kind": "single_label", "labels": ["sport", "news"], "reject_below": 0.9},)
    with ask(FakeServer(lambda text: {"topic": {"sport": 0.25 + 0.5 * ("goal" in text)}}, heads=heads)) as client:
        explanation = client.explain("a goal")
    assert explanation.prediction["topic"].label is None
    assert (explanation["topic"].label, explanation["topic"].score) == ("sport", 0.75)
    assert effects(explanation) == {"a": 0, "goal": 0.5}
