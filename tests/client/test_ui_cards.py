"""What the page shows of an answer: sentences, bars, scales and reasons, of a fake server's answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest

from polyhead_client.schema import HeadKind
from polyhead_client.testing import Failure, FakeServer
from polyhead_client.ui.asking import Side, SideAnswer, as_sentence, ask
from polyhead_client.ui.cards import explanation_cards, head_html, summary_html

EVIL = "<b>&{{x}}"
HEADS: tuple[dict[str, Any], ...] = (
    {
        "name": "topic",
        "kind": HeadKind.SINGLE_LABEL,
        "labels": [f"label {n}" for n in range(300)],
        "reject_below": 0.25,
    },
    {"name": EVIL, "kind": HeadKind.MULTI_LABEL, "labels": ["happy", EVIL], "thresholds": [0.5, 0.25]},
    {"name": "stars", "kind": HeadKind.REGRESSION, "target_scale": [3.0, 0.5]},
)


def said(text: str) -> dict[str, Any]:
    """A goal raises label 0 from 0.2 to 0.7; the other labels have little."""
    return {
        "topic": {"label 0": 0.2 + 0.5 * ("goal" in text), "label 1": 0.0004, "label 2": 0.9996 * ("sure" in text)},
        EVIL: {"happy": 0.25, EVIL: 0.125},
        "stars": 4.5,
    }


@pytest.fixture
def fake() -> FakeServer:
    """Reads at most 8 words."""
    return FakeServer(said, heads=HEADS, max_length=8)


@pytest.fixture
def side(fake: FakeServer) -> Iterator[Side]:
    """Asks the fake without a network."""
    with fake.client() as client:
        yield Side(EVIL, client)


def seen(html: str) -> str:
    """What a person reads: the HTML without its tags, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def card(answer: SideAnswer, head: str, **bounds: float) -> str:
    """The card of a head."""
    return head_html(head, [answer], bounds)


def test_summary(side: Side) -> None:
    """It says how many tokens were read and whether the rest was cut off."""
    short, long = (seen(summary_html([ask(side, text)], {})) for text in ("a goal", "one " * 20))
    assert "The model read 2 tokens; it reads at most 8." in short
    assert "cut off" not in short
    assert "The model read 8 tokens; it reads at most 8. The text is longer: its end was cut off" in long
    assert re.search(r"Answered in \d+ ms , measured here", short)
    assert short.startswith(EVIL)


def test_a_long_head_folds_its_low_labels(side: Side) -> None:
    """8 bars are open, 192 folded, 100 left out; a tiny score is not shown as 0, a huge one not as 1."""
    html = card(ask(side, "a goal"), "topic")
    assert html.count("<li") == 200
    assert html.partition("<details>")[0].count("<li") == 8
    assert "192 more labels; 100 with lower scores are left out" in html
    assert "✓ answered: label 0 0.700" in seen(html)
    assert "label 1 <0.001" in seen(html)
    assert "label 2 >0.999" in seen(card(ask(side, "sure"), "topic"))


def test_rejected_answers(side: Side) -> None:
    """The card says what was compared with which bound, and whose bound it is."""
    answer = ask(side, "nothing")
    own = "no label Rejected: the best label is label 0, and its score 0.2 is below 0.25, the model's own bound."
    assert own in seen(card(answer, "topic"))
    assert "is below 0.3." in seen(card(answer, "topic", topic=0.3))
    assert "Rejected" not in card(answer, "topic", topic=0.1)


def test_bars_and_marks(side: Side) -> None:
    """A bar is as long as its score, and its mark is at the threshold; no name becomes markup."""
    html = head_html(EVIL, [ask(side, "a goal")], {})
    assert re.findall(r"width:([\d.]+)%", html) == ["25.0", "12.5"]
    assert re.findall(r"left:([\d.]+)%", html) == ["50.0", "25.0"]
    assert "No score reaches its threshold." in html
    assert "<b>&" not in html
    assert re.findall(r"left:([\d.]+)%", head_html(EVIL, [ask(side, "a goal")], {EVIL: 0.1})) == ["10.0", "10.0"]


def test_a_numbers_scale(side: Side) -> None:
    """4.5 is 3 spreads above the mean, so at the end of the scale; the band is one spread to both sides."""
    html = card(ask(side, "a goal"), "stars")
    assert re.findall(r"left:([\d.]+)%", html) == ["33.3", "100.0"]
    assert "The grey part is 2.5 to 3.5, where most of its training values were (mean 3)." in seen(html)


def test_reasons(side: Side) -> None:
    """The strongest words stand in sentences, and what the model did not read is marked."""
    explanation = side.client.explain(f"a <i>goal</i> {'one two ' * 30}", "topic")
    html = explanation_cards("Why", explanation)
    assert "Without 'goal' the score would be 0.5 lower." in seen(html)
    assert 'title="the model does not read this"' in html
    assert "<i>" not in html


def test_an_error_is_a_sentence(side: Side, fake: FakeServer) -> None:
    """It begins with a capital and ends with a full stop."""
    fake.failure = Failure(500, "the engine is on fire")
    answer = ask(side, "a goal")
    assert answer.error == as_sentence(ValueError(answer.error))
    assert "failed on the request (the engine is on fire); see the server's log." in seen(summary_html([answer], {}))
    fake.failure = None
    assert ask(side, " ").error == "This text has no answer: the text is empty or blank."
    assert ask(side, "a goal").error is None
