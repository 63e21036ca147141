"""The page of ``polyhead-client ui`` in a real browser: on a real tritonserver, and on a fake one that misbehaves."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtest.local_server import LocalServer
from polyhead.decode import DecodeOptions, decode
from polyhead.predictor import Predictor
from polyhead_client.schema import HeadKind
from polyhead_client.testing import Failure, FakeServer
from tests.e2e.page_browser import PageBrowser
from tests.tiny import MAX_LENGTH, SCHEMA, TEXTS

DESKTOP, PHONE = 1280, 390
KEY = "not-a-real-key"
EVIL = "<img src=x onerror=window.hacked=1>"
TEMPLATE = "${window.hacked=2}"  # Gradio compiles templates of this form
FIELDS = ("Title", f"Body {EVIL}")
HEADS: tuple[dict[str, Any], ...] = (
    {"name": "section", "kind": HeadKind.SINGLE_LABEL, "labels": ["computers", EVIL, TEMPLATE], "reject_below": 0.5},
    {"name": f"group {EVIL}", "kind": HeadKind.SINGLE_LABEL, "labels": ["laptops", "x", "y"], "parent": "section",
     "parent_of": {"laptops": "computers", "x": EVIL, "y": TEMPLATE}},
    {"name": "mood", "kind": HeadKind.MULTI_LABEL, "labels": ["happy", "sad", EVIL], "thresholds": [0.5, 0.25, 0.5]},
    {"name": "stars", "kind": HeadKind.REGRESSION, "target_scale": [3.0, 1.0]},
)  # fmt: skip


def said(text: str) -> dict[str, Any]:
    """What the fake says: a laptop is certain, anything else is not."""
    laptop = 0.25 * ("laptop" in text)
    return {
        "section": {"computers": 0.375 + laptop, EVIL: 0.375 - laptop, TEMPLATE: 0.25},
        HEADS[1]["name"]: {"laptops": 0.75, "x": 0.125, "y": 0.125},
        "mood": {"happy": 0.75, "sad": 0.375, EVIL: 0.125},
        "stars": 4.0,
    }


@contextmanager
def page(folder: Path, *options: str, **environment: str) -> Iterator[str]:
    """The address of a page that runs while the block does. It ends without a word, and leaves no file behind."""
    command = [sys.executable, "-m", "polyhead_client.cli", "ui", "--port", "0", *options]
    settings = {**os.environ, **environment, "TMPDIR": str(folder)}
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Open http://127.0.0.1:"), (folder / "stderr").read_text()
        yield line.split()[1]
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 143
        process.stdout.close()
    assert (folder / "stderr").read_text() == ""
    assert [file.name for file in folder.iterdir()] == ["stderr"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageBrowser]:
    """One browser for all pages."""
    with PageBrowser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def real(served: LocalServer, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that asks a real tritonserver, with a key."""
    folder = tmp_path_factory.mktemp("page")
    golden = repository / "gpt2_classifier" / "1" / "checkpoint"
    with page(folder, "--server", served.url("http"), "--golden", str(golden), POLYHEAD_CLIENT_API_KEY=KEY) as address:
        yield address


@pytest.fixture(scope="module")
def fakes() -> tuple[FakeServer, FakeServer]:
    """Two servers whose second answers 'sad' instead of 'happy', and has 2 stars less."""
    other = {"mood": {"happy": 0.125, "sad": 0.75}, "stars": 2.0}
    text_template = f"[[{{{FIELDS[0]}}}. ]]{{{FIELDS[1]}}}"
    settings: dict[str, Any] = {"heads": HEADS, "max_length": 8, "text_template": text_template}
    return FakeServer(said, **settings), FakeServer(lambda text: said(text) | other, **settings)


@pytest.fixture(scope="module")
def pair(fakes: tuple[FakeServer, FakeServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that asks both fakes."""
    with (
        fakes[0].serve() as first,
        fakes[1].serve() as second,
        page(
            tmp_path_factory.mktemp("page"), "--server", first, "--compare-server", second, "--api-key", KEY
        ) as address,
    ):
        yield address


@pytest.fixture(autouse=True)
def _stays_at_home(browser: PageBrowser) -> Iterator[None]:
    """After each test: the page asked nobody but itself, had no error in its scripts, and ran no script of a text."""
    browser.asked.clear()
    browser.said.clear()
    yield
    addresses = {
        address for address in browser.asked if not address.startswith(("http://127.0.0.1:", "data:", "blob:"))
    }
    assert addresses == set()
    assert browser.said == []
    assert browser.evaluate("window.hacked ?? null") is None


ASKED = "document.querySelector('#ph-summary .ph-sides')?.dataset.asked ?? ''"


def classify(browser: PageBrowser, *texts: str) -> None:
    """Writes a text, or its fields, and clicks."""
    for number, text in enumerate(texts):
        browser.write(f"#ph-field-{number} textarea", text)
    asked = browser.evaluate(ASKED)
    browser.click("#ph-classify")
    browser.wait_for(f"({ASKED}) !== {json.dumps(asked)}")


def fits(browser: PageBrowser) -> bool:
    """Whether nothing makes the page wider than the window."""
    return bool(browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def bars(browser: PageBrowser, head: int) -> list[list[Any]]:
    """Label, score and whether it is answered, of each bar of a head, also of those that are folded away."""
    found: list[list[Any]] = browser.evaluate(
        f"[...document.querySelectorAll('#ph-head-{head} li')].map(bar => [bar.querySelector('.ph-label').lastChild"
        ".textContent, bar.querySelector('.ph-score').firstChild.textContent, bar.className === 'ph-chosen'])"
    )
    return found


def shown(score: float) -> str:
    """A score as the page writes it."""
    return f"{score:.3f}"


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_has_the_servers_answers(browser: PageBrowser, real: str, predictor: Predictor, width: int) -> None:
    """Labels, scores, number, tokens and truncation are the predictor's; nothing leaves the window."""
    browser.visit(real, width)
    assert fits(browser)
    for text in (TEXTS[1], TEXTS[-1]):
        classify(browser, text)
        (answer,) = predictor.predict([text])
        scores = predictor.score(predictor.encode([text]))[0]
        for number, head in enumerate(SCHEMA):
            said = answer["heads"][head.name]
            card = browser.text(f"#ph-head-{number}")
            if head.kind == HeadKind.REGRESSION:
                assert f"{said['value']:.4g}" in card
                continue
            expected = dict(zip(head.labels, map(shown, scores[SCHEMA.columns[head.name]].tolist()), strict=True))
            found = bars(browser, number)
            assert {label: score for label, score, _ in found} == expected
            assert [label for label, _, is_chosen in found if is_chosen] == said["labels"]
            assert (
                list(expected.values()) != [score for _, score, _ in found]
                or len(expected) < 2
                or sorted(expected.values(), reverse=True) == list(expected.values())
            )  # the highest score stands first
        summary = browser.text("#ph-summary")
        assert f"read {answer['token_count']} tokens; it reads at most {MAX_LENGTH}" in summary
        assert ("its end was cut off" in summary) == answer["truncated"]
        assert " ms" in summary
        assert fits(browser)


def test_everything_works_by_keyboard(browser: PageBrowser, real: str, predictor: Predictor) -> None:
    """Tab, Enter and arrow keys choose an example, write, classify, move a threshold, put it back, and explain."""
    golden = predictor.checkpoint.golden()
    browser.visit(real, DESKTOP)
    browser.tab_to("#ph-example input")
    for option in (0, 1):
        browser.press("ArrowDown")
        browser.wait_for(f"document.querySelector('[role=option].active')?.dataset.index === '{option}'")
    browser.press("Enter")
    second = json.dumps(golden[1].text)
    browser.wait_for(f"document.querySelector('#ph-field-0 textarea').value === {second}")
    browser.tab_to("#ph-field-0 textarea")
    browser.type(TEXTS[0])
    browser.tab_to("#ph-classify")
    browser.press("Enter")
    browser.wait_for(ASKED)
    browser.wait_for("document.querySelector('#ph-slider-1')?.checkVisibility()")
    own = bars(browser, 1)
    browser.tab_to("#ph-slider-1 input[type=range]")
    browser.press("Home")
    browser.wait_for("document.querySelectorAll('#ph-head-1 .ph-chosen').length === 4")
    browser.press("ArrowRight", 3)
    browser.wait_for("document.querySelector('#ph-head-1').innerText.includes('threshold 0.015')")
    browser.tab_to("#ph-reset")
    browser.press("Enter")
    browser.wait_for(f"document.querySelectorAll('#ph-head-1 .ph-chosen').length === {sum(one[2] for one in own)}")
    assert bars(browser, 1) == own
    browser.evaluate("document.querySelector('#ph-classify').focus()")
    browser.tab_to("#ph-explain")
    browser.press("Enter")
    browser.wait_for("document.querySelector('#ph-reasons').innerText.includes('texts were scored')")
    assert "Without '" in browser.text("#ph-reasons")


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
def test_a_threshold_shows_what_the_server_would_answer(
    browser: PageBrowser, real: str, predictor: Predictor, threshold: float
) -> None:
    """The page computes it; the predictor, asked with this threshold and bound, says the same."""
    browser.visit(real, DESKTOP)
    classify(browser, TEXTS[2])
    scores = predictor.score(predictor.encode([TEXTS[2]]))[0]
    answer = decode(scores, SCHEMA, DecodeOptions(threshold=threshold, reject_below=threshold))
    for number in (0, 1):
        browser.write(f"#ph-slider-{number} input[type=number]", str(threshold))
        browser.press("Enter")
    topic = [] if answer["topic"]["label"] is None else [answer["topic"]["label"]]
    expected = json.dumps([topic, answer["mood"]["labels"]], separators=(",", ":"))
    browser.wait_for(
        "JSON.stringify([0, 1].map(head => [...document.querySelectorAll(`#ph-head-${head} .ph-chosen .ph-label`)]"
        f".map(label => label.lastChild.textContent))) === {json.dumps(expected)}"
    )
    if not topic:
        assert "Rejected: the best label is" in browser.text("#ph-head-0")


def test_the_key_stays_in_the_program(browser: PageBrowser, real: str) -> None:
    """Neither the page nor its configuration holds the key of the server; the page names no function for others."""
    browser.visit(real, DESKTOP)
    assert KEY not in browser.evaluate("document.documentElement.outerHTML")
    for place in ("config", "gradio_api/info"):
        body = browser.evaluate(f"fetch('/{place}').then(answer => answer.text())")
        assert KEY not in body
    assert json.loads(body) == {"named_endpoints": {}, "unnamed_endpoints": {}}


def status(address: str, **headers: str) -> tuple[int, str]:
    """Status and policy of an answer."""
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, str(error.headers["Content-Security-Policy"])


def test_what_a_browser_may_do(real: str, browser: PageBrowser) -> None:
    """Nothing may be loaded from elsewhere; other host names, foreign pages and files of this machine are refused."""
    code, policy = status(real)
    assert code == 200
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert status(real, Host="evil.example:80")[0] == 400
    assert [status(real, Origin=origin)[0] for origin in ("https://evil.example", "null")] == [400, 400]
    assert status(real, Origin=real.rstrip("/"))[0] == 200
    assert status(f"{real}gradio_api/file=/etc/passwd")[0] in (403, 404)
    assert [status(f"{real}{path}")[0] for path in ("docs", "redoc", "openapi.json")] == [404] * 3
    browser.visit(real, DESKTOP)


def test_texts_labels_and_fields_are_no_markup(browser: PageBrowser, pair: str) -> None:
    """Markup and templates are shown as they are written: in fields, labels, heads, reasons and tables."""
    browser.visit(pair, DESKTOP)
    assert FIELDS[1] in browser.text("body")
    classify(browser, EVIL, f"{TEMPLATE} {EVIL} laptop")
    for place in ("#ph-head-0", "#ph-head-1", "#ph-head-2"):
        assert EVIL in browser.text(place)
    assert TEMPLATE in browser.text("#ph-head-0")
    browser.click("#ph-explain")
    browser.wait_for("document.querySelector('#ph-reasons').innerText.includes('Why')")
    assert EVIL in browser.text("#ph-reasons")
    assert browser.evaluate("document.querySelectorAll('#ph-reasons img, .ph-head img, #ph-summary img').length") == 0


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_paths_and_differences(browser: PageBrowser, pair: str, width: int) -> None:
    """Both models stand side by side, and what differs is named; a rejected level ends the path."""
    browser.visit(pair, width)
    classify(browser, "", "a laptop")
    summary = browser.text("#ph-summary")
    assert summary.count("computers › laptops") == 2
    assert "2 of 4 heads answer differently" in summary
    assert "mood: only the first answers happy" in summary
    assert "stars: 4 → 2 (-2)" in summary
    assert [browser.text(f"#ph-head-{number}").count("differs") for number in range(4)] == [0, 0, 1, 1]
    assert "Answered in" in summary
    assert "The model read 2 tokens; it reads at most 8." in summary
    assert fits(browser)
    classify(browser, "", "a text that is far longer than eight words are")
    summary = browser.text("#ph-summary")
    assert summary.count("no label › no label") == 2
    assert "its end was cut off" in summary
    assert "Rejected: the best label is computers, and its score 0.375 is below 0.5" in browser.text("#ph-head-0")
    assert "Rejected, because section has no label" in browser.text("#ph-head-1")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(500, "the engine is on fire"), "failed on the request (the engine is on fire); see the server's log."),
        (Failure(401, "wrong key"), "rejected the request: wrong key."),
        (Failure(body=b"<html>"), "gave no Triton response"),
    ],
)
def test_an_error_is_a_sentence_and_the_page_goes_on(
    browser: PageBrowser, pair: str, fakes: tuple[FakeServer, FakeServer], failure: Failure, words: str
) -> None:
    """The other side is still shown, and after the error the same page answers again."""
    browser.visit(pair, DESKTOP)
    fakes[0].failure = failure
    try:
        classify(browser, "", "a laptop")
        assert words in browser.text("#ph-summary .ph-error")
        assert "computers" in browser.text("#ph-summary")
        browser.click("#ph-explain")
        browser.wait_for("document.querySelector('#ph-reasons .ph-error')")
        assert words in browser.text("#ph-reasons")
    finally:
        fakes[0].failure = None
    classify(browser, "", "a laptop")
    assert browser.text(".ph-error") == ""
    classify(browser, "", " ")
    assert "This text has no answer: the text is empty or blank." in browser.text("#ph-summary")


def test_several_texts(browser: PageBrowser, pair: str, tmp_path: Path) -> None:
    """A file gives a table to save; a bad file gives a sentence, and the page goes on."""
    browser.visit(pair, PHONE)
    browser.evaluate(
        "[...document.querySelectorAll('button[role=tab]')].find(one => /Several/.test(one.innerText)).click()"
    )
    browser.wait_for("document.querySelector('#ph-file input[type=file]')")
    for name, content in (("bad.csv", "text,n\na\n"), ("good.csv", f'text,n\n"a laptop",1\n{EVIL},2\n" ",3\n')):
        (tmp_path / name).write_text(content, encoding="utf-8")
    browser.upload("#ph-file input[type=file]", tmp_path / "bad.csv")
    browser.wait_for("document.querySelector('#ph-file').innerText.includes('bad')")
    browser.click("#ph-classify-all")
    browser.wait_for("document.querySelector('#ph-table .ph-error')")
    assert browser.text("#ph-table") == "Line 2 of the file has 1 cells, its header 2."
    browser.click("#ph-file button[aria-label='Clear'], #ph-file button[aria-label='Remove this file']")
    browser.wait_for("document.querySelector('#ph-file input[type=file]')")
    browser.upload("#ph-file input[type=file]", tmp_path / "good.csv")
    browser.wait_for("document.querySelector('#ph-file').innerText.includes('good')")
    browser.click("#ph-classify-all")
    browser.wait_for("document.querySelector('#ph-table .ph-save')")
    assert "2 of 3 texts were answered" in browser.text("#ph-table")
    assert "2 texts were answered differently" in browser.text("#ph-table")
    for width in (PHONE, DESKTOP):
        browser.resize(width)
        assert fits(browser)
    link = browser.evaluate("document.querySelector('.ph-save').href")
    lines = base64.b64decode(link.partition(",")[2]).decode().splitlines()
    assert lines[0].startswith("text,section_label,section_score,group <img src=x onerror=window.hacked=1>_label,")
    assert lines[0].endswith("other_error,differs")
    assert lines[1].startswith(
        'a laptop,computers,0.625,laptops,0.75,"[""happy"", ""sad""]","[0.75, 0.375]",4,2,false,,'
    )
    assert lines[1].endswith('"mood, stars"')


def test_a_server_that_is_not_there(browser: PageBrowser, pair: str, fakes: tuple[FakeServer, FakeServer]) -> None:
    """The page says so in a sentence, and shows the model once it is loaded again; another model asks for this too."""
    fakes[0].failure = Failure(500, "no model is loaded")
    try:
        browser.visit(pair, PHONE)
        assert browser.text(".ph-error").endswith("Reload this page to try again.")
        fakes[0].failure = None
        browser.visit(pair, PHONE)
        classify(browser, "", "a laptop")
        assert browser.text("#ph-summary").count("computers › laptops") == 2
        fakes[0].heads = [HEADS[0], HEADS[3]]
        classify(browser, "", "a laptop")
        assert "The server has another model now" in browser.text("#ph-summary")
        browser.visit(pair, PHONE)
        classify(browser, "", "a laptop")
        assert "only the second model has this head" in browser.text("#ph-summary")
    finally:
        fakes[0].failure, fakes[0].heads = None, HEADS
