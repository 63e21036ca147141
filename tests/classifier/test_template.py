"""The text template: how it is parsed, what it renders, and which elements of TEXT it reads."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.checkpoint import read_checkpoint
from polyhead.encode import read_text
from polyhead.errors import TemplateError
from polyhead.export import export_checkpoint
from polyhead.predictor import Predictor
from polyhead.template import LONG_OBJECT, FieldError, Template, fields_json
from tests.tiny import TEXTS, write_tiny_checkpoint

REVIEW = "[[{Title}. ]]{Review Text}"
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose model declares fields."""
    path = tmp_path_factory.mktemp("template") / "checkpoint"
    write_tiny_checkpoint(path, text_template=REVIEW)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    """Its predictor."""
    return Predictor.load(checkpoint)


@pytest.mark.parametrize(
    ("template", "fields", "text"),
    [
        ("{a}. {b}", {"a": "x", "b": "y"}, "x. y"),
        ("{a}. {b}", {"a": None, "b": "y"}, ". y"),
        ("[[{a}. ]]{b}", {"a": " ", "b": "y"}, "y"),
        ("[[{a}. ]]{b}", {"b": "y"}, "y"),
        ("[[{a}. ]]{b}", {"a": math.nan, "b": "y"}, "y"),
        ("{b}[[ ({a}, {c})]]", {"a": "", "b": "y", "c": 0}, "y (, 0)"),
        ("{b}[[ ({a}, {c})]]", {"a": "", "b": "y"}, "y"),
        ("{{{a}}} {{}}", {"a": "x"}, "{x} {}"),
        ("[[[{a}] ]]{b}", {"a": "x", "b": "y"}, "[x] y"),
        ("[[[{a}]]]{b}", {"a": "x", "b": "y"}, "[x]y"),
        ("[[[[{a}]]]]", {"a": "x"}, "[[x]]"),
        ("[{a}]", {"a": "x"}, "[x]"),
        ("{a}{a}", {"a": "{b} [[c]]"}, "{b} [[c]]{b} [[c]]"),
        ("{a} {b}", {"a": 3.0, "b": True}, "3 true"),
        ("{a} {b}", {"a": 0.5, "b": date(2024, 2, 1)}, "0.5 2024-02-01"),
        ("text: {a}", {"a": None}, ""),
        ("text: {a}", {"a": " \n"}, ""),
    ],
)
def test_rendering(template: str, fields: dict[str, Any], text: str) -> None:
    """Fields stand in their places, an optional part goes with its fields, and literals alone are no text."""
    assert Template(template).render(fields) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a", "character 1: expected '}'"),
        ("x {a} }", "character 7: '}' without '{'"),
        ("x {}", "character 3: braces must hold a column's name and nothing else"),
        ("{a:>3}", "character 1: braces must hold"),
        ("{a!r}", "character 1: braces must hold"),
        ("{{a}}", "names no field"),
        ("", "names no field"),
        ("{a} [[{b}", "character 5: '[[' is not closed"),
        ("{a}]]", "character 4: ']]' without '[['"),
        ("{a}[[, ]]", "character 4: an optional part must name a field"),
        ("[[{a} [[{b}]] ]]", "character 7: an optional part cannot hold another"),
        ("{b}" * 4 + "{a}" * 5, "names the field 'a' 5 times; at most 4 times"),
    ],
)
def test_a_malformed_template_names_the_character(template: str, message: str) -> None:
    """The position is counted from 1."""
    with pytest.raises(TemplateError) as error:
        Template(template)
    assert message in str(error.value)


@given(st.text("{}[]a !:", max_size=12))
def test_any_template_is_parsed_or_refused(source: str) -> None:
    """No other error comes out, and what is parsed also renders."""
    try:
        template = Template(source)
    except TemplateError:
        return
    template.render(dict.fromkeys(template.fields, "x"))


@given(st.dictionaries(st.sampled_from(["Title", "Review Text", "more"]), VALUES))
def test_serving_renders_what_training_renders(fields: dict[str, Any]) -> None:
    """A row of training, its JSON object, and the object that `fields_json` makes of the row give the same text."""
    template = Template(REVIEW)
    rendered = template.render(fields)
    sent = {name: value for name, value in fields.items() if name in template.fields}
    assert template.read(fields_json(fields, template.fields)).text == rendered
    if sent:
        assert template.read(json.dumps(sent).encode()).text == rendered


@pytest.mark.parametrize(
    ("element", "text"),
    [
        ('{"Title": "Good", "Review Text": "It fits"}', "Good. It fits"),
        (' \n{"Review Text": "It fits"} ', "It fits"),
        ('{"Title": null, "Review Text": NaN}', ""),
        ('{"Title": 5}', "5. "),
    ],
)
def test_an_object_of_the_fields_is_rendered(element: str, text: str) -> None:
    """As a string and as bytes; a missing field is empty."""
    for sent in (element, element.encode()):
        read = Template(REVIEW).read(sent)
        assert (read.text, read.is_plain, read.error) == (text, False, None)


@pytest.mark.parametrize(
    "element",
    [
        "Good. It fits", "{Title} is broken", '{"Title": "x"', '["Title"]', '"x"', "", b"\xff", b"{\xff", "{" * 9999,
        '{"Title": ' + "[" * 9999, "{" * 99999, '{"Title": "x" ' + " " * 99999, '{"Title": "x"} ' + "x" * 99999,
        '{"Title": 01' + " " * 99999 + "}", '{"Title": x' + " " * 99999 + "}", b'{"Title": "' + b"\xff" * 99999 + b'"}',
        '{"Title": ' + "9" * 99999 + "}",
        '\xa0{"Title": "x"}', '{"Title": "x"}\x0b', '{"Title": "x"}\x0c' + " " * 99999,
    ],
)  # fmt: skip
def test_anything_else_is_plain_text(element: str | bytes) -> None:
    """It is used as it is, and marked."""
    read = Template(REVIEW).read(element)
    assert (read.text, read.is_plain, read.error) == (element, True, None)


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ('{"title": "x"}', "unknown field 'title'; this model's fields are 'Title', 'Review Text'"),
        ('{"Title": "x", "Text": "y"}', "unknown field 'Text'"),
        ("{}", "the JSON object names no field; this model's fields are 'Title', 'Review Text'"),
        ('{"Title": "x", "Title": "y"}', "field 'Title' occurs twice"),
        ('{"Title": ["x"]}', "field 'Title' must be a text, a number, true, false or null, got a list"),
        ('{"Title": {"x": 1}}', "got an object"),
        ('{"Title": null, "Review Text": " "}', "the text is empty or blank"),
        (r'{"Title": "\ud800"}', "the text is not valid UTF-8"),
        ('{"Title": ' + "[" * 99999, "field 'Title' must be a text, a number, true, false or null, got a list"),
        ('{"Title": {"x": ' + "1" * 99999, "got an object"),
        ('{"Title": "x", "x": 1, ' + "," * 99999, "unknown field 'x'"),
        ('{"Title": 1, "Title": 1, ' + "," * 99999, "field 'Title' occurs twice"),
        ("{" + " " * 99999 + "}", "the JSON object names no field"),
    ],
)
def test_a_wrong_object_affects_only_itself(predictor: Predictor, element: str, message: str) -> None:
    """Its answer is an error that says what the model takes; the others are answered."""
    good = '{"Title": "Good", "Review Text": "It fits"}'
    first, wrong, last = predictor.predict([good, element, "Good. It fits"])
    assert list(wrong) == ["error"]
    assert message in wrong["error"]
    assert first == last
    assert [text.is_plain for text in predictor.encode([good, element, "Good. It fits"])] == [False, False, True]


def test_a_model_without_a_template_takes_texts_only(base_checkpoint: Path) -> None:
    """JSON is a text like any other and is not counted as plain."""
    predictor = Predictor.load(base_checkpoint)
    element = '{"Title": "Good"}'
    (encoded,) = predictor.encode([element])
    assert (encoded.error, encoded.is_plain) == (None, False)
    assert list(encoded.token_ids) == predictor._tokenizer.encode(element).ids


def test_rendered_texts_are_not_read_again(predictor: Predictor) -> None:
    """A text that evaluation has rendered stays as it is, even if it looks like an object."""
    (encoded,) = predictor.encode(['{"x": 1}'], are_rendered=True)
    assert (encoded.error, encoded.is_plain) == (None, False)


def test_the_schema_declares_the_fields(predictor: Predictor) -> None:
    """A caller finds the template and the names of its fields there."""
    served = json.loads(predictor.schema_json())
    assert (served["text_template"], served["fields"]) == (REVIEW, ["Title", "Review Text"])


def test_an_older_checkpoint_has_no_template(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint that lacks the field loads, and takes texts only."""
    write_tiny_checkpoint(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert config["polyhead"].pop("text_template") is None
    path.write_text(json.dumps(config), encoding="utf-8")
    assert read_checkpoint(tmp_path / "old").spec.template is None
    assert read_checkpoint(checkpoint).spec.text_template == REVIEW


def test_the_export_keeps_the_template(checkpoint: Path, tmp_path: Path) -> None:
    """The golden rows are rendered texts, and the served model renders fields."""
    folder = export_checkpoint(checkpoint, tmp_path / "repository", precision="fp32")
    assert read_checkpoint(folder / "checkpoint").spec.text_template == REVIEW


def test_a_field_that_is_no_value_is_named() -> None:
    """Training, scoring and serving refuse lists alike."""
    with pytest.raises(FieldError, match="field 'a' must be a text"):
        Template("{a}").render({"a": ["x"]})
    with pytest.raises(FieldError, match="field 'a' must be a text"):
        fields_json({"a": {"x": 1}}, ["a"])


def test_scores_are_those_of_the_rendered_text(predictor: Predictor) -> None:
    """Bit for bit, whichever way the text came."""
    sent = [json.dumps({"Review Text": text}) for text in TEXTS]
    by_fields, by_text = predictor.score(predictor.encode(sent)), predictor.score(predictor.encode(TEXTS))
    np.testing.assert_array_equal(by_fields, by_text)
    assert read_text(Template(REVIEW).read(sent[0]).text) == TEXTS[0]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["Title", "Review Text", "more"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800"),
    ),
    st.sampled_from([(",", ":"), (" ,\n", "\t: ")]),
    st.booleans(),
)
def test_long_objects_are_read_like_short_ones(
    fields: dict[str, Any], separators: tuple[str, str], ensure_ascii: bool
) -> None:
    """Whatever JSON writes of flat fields is read the same, also where Python writes NaN."""
    element = " " + json.dumps(fields, separators=separators, ensure_ascii=ensure_ascii) + "\n"
    long = element[:2] + " " * LONG_OBJECT + element[2:]
    assert Template(REVIEW).read(long) == Template(REVIEW).read(element)
