"""Golden rows prove what a caller sees: names, thresholds, temperatures, taxonomy and template, not scores alone."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polyhead.checkpoint import read_checkpoint
from polyhead.errors import CheckpointError, PolyheadError, ToleranceError
from polyhead.export import export_checkpoint
from polyhead.gate import check_answers
from polyhead.golden import difference
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from polyhead_training.fitting.checkpoint_writing import golden_rows
from tests.tiny import MAX_LENGTH, TEXTS, tiny_model, tiny_spec, tiny_tokenizer, write_tiny_checkpoint

TEMPLATE = "[[{title}. ]]{body}"
SCHEMA = Schema(
    [
        Head(name="area", kind="single_label", labels=("a", "b"), temperature=1.5, reject_below=0.52),
        Head(
            name="field",
            kind="single_label",
            labels=("a1", "a2", "b1"),
            parent="area",
            parent_of={"a1": "a", "a2": "a", "b1": "b"},
            reject_by="certainty",
        ),
        Head(name="mood", kind="multi_label", labels=("happy", "sad"), thresholds=(0.3, 0.6), weight=0.5),
        Head(name="stars", kind="regression", y_range=(1.0, 5.0)),
        Head(name="price", kind="regression", target_scale=(98_000.0, 27_000.0)),
    ]
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a taxonomy, thresholds, a range and a template; not to be changed."""
    path = tmp_path_factory.mktemp("sound") / "checkpoint"
    fields = [json.dumps({"title": "News" if place % 2 else None, "body": text}) for place, text in enumerate(TEXTS)]
    write_tiny_checkpoint(path, schema=SCHEMA, text_template=TEMPLATE, template_fields=fields)
    return path


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def config_of(path: Path) -> Any:
    """The content of config.json."""
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[Any]:
    """The lines of golden.jsonl."""
    return [json.loads(line) for line in (path / "golden.jsonl").read_text(encoding="utf-8").splitlines()]


def write_config(path: Path, config: Any) -> None:
    """Replaces config.json."""
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_rows(path: Path, rows: list[Any]) -> None:
    """Replaces golden.jsonl."""
    (path / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of everything in a JSON value that is no list and no object."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*place, key))
    else:
        yield place


def other_value(value: Any) -> Any:
    """A value of the same type, near the given one, so that a schema may take it."""
    match value:
        case bool():
            return not value
        case int():
            return value - 1
        case float():
            return value * 0.99
        case str():
            return value + "x"
        case _:
            return 0.5


SECTION = {"format": 4} | tiny_spec(text_template=TEMPLATE).model_dump(mode="json") | {"heads": SCHEMA.to_json()}


def test_the_places_are_those_of_the_section(sound: Path) -> None:
    """The section that the next test edits is the one that a checkpoint has."""
    assert config_of(sound)["polyhead"] == SECTION
    assert Predictor.load(sound).check_golden() < 1e-5


@pytest.mark.parametrize("place", list(leaves(SECTION)), ids=lambda place: ".".join(map(str, place)))
def test_no_field_of_the_section_can_be_edited(checkpoint: Path, place: tuple[Any, ...]) -> None:
    """Each value of config.json's polyhead section is proved, also a threshold that no golden text comes near."""
    config = config_of(checkpoint)
    target = config["polyhead"]
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = other_value(target[place[-1]])
    write_config(checkpoint, config)
    with pytest.raises(PolyheadError) as caught:
        Predictor.load(checkpoint)
    assert "\n" not in str(caught.value)


def exchange_labels(config: Any) -> None:
    config["polyhead"]["heads"][2]["labels"].reverse()


def exchange_names(config: Any) -> None:
    first, second = config["polyhead"]["heads"][2], config["polyhead"]["heads"][3]
    first["name"], second["name"] = second["name"], first["name"]


def raise_thresholds(config: Any) -> None:
    config["polyhead"]["heads"][2]["thresholds"] = [0.99, 0.99]


def reverse_heads(config: Any) -> None:
    config["polyhead"]["heads"].reverse()


def add_field(config: Any) -> None:
    config["polyhead"]["heads"][0]["rejection"] = 0.5


def drop_template(config: Any) -> None:
    del config["polyhead"]["text_template"]


EDITS = [exchange_labels, exchange_names, raise_thresholds, reverse_heads, add_field, drop_template]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_whatever_a_caller_sees_is_proved_by_export_and_load(
    checkpoint: Path, tmp_path: Path, edit: Callable[[Any], None]
) -> None:
    """Scores stay the same, and yet the checkpoint is neither loaded nor exported."""
    config = config_of(checkpoint)
    edit(config)
    write_config(checkpoint, config)
    for refuse in (Predictor.load, lambda path: export_checkpoint(path, tmp_path / "repository")):
        with pytest.raises(PolyheadError):
            refuse(checkpoint)
    assert not (tmp_path / "repository" / "gpt2_classifier" / "1").exists()


def test_the_message_names_the_field_and_both_values(checkpoint: Path) -> None:
    """It says where config.json and the golden rows differ."""
    config = config_of(checkpoint)
    raise_thresholds(config)
    write_config(checkpoint, config)
    with pytest.raises(CheckpointError, match=r"golden.jsonl:1: .*heads\.2\.thresholds\.0 0\.99, .*made with 0\.3"):
        read_checkpoint(checkpoint).golden()


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (3, lambda row: row["heads"]["mood"].update(labels=["none"]), r":4: heads: .*mood\.labels"),
        (0, lambda row: row["heads"].pop("stars"), r":1: heads: .*stars .*\(nothing\)"),
        (1, lambda row: row["fields"].update(body="another text"), r":2: fields: text_template makes"),
        (1, lambda row: row["fields"].update(title="Old"), r":2: fields: text_template makes"),
        (0, lambda row: row["polyhead"].update(max_length=3), r":1: .*max_length 48, .* made with 3"),
        (0, lambda row: row["scores"].__setitem__(0, float("nan")), r":1: is not JSON \(NaN is no number"),
        (0, lambda row: row["scores"].__setitem__(0, 1e300), r":1: scores must be finite"),
        (0, lambda row: row["scores"].__setitem__(0, "0.5"), r":1: scores\.0: "),
        (0, lambda row: row.update(token_count=True), r":1: token_count: "),
        (0, lambda row: row.update(colour=1), r":1: colour: unknown field"),
        (0, lambda row: row.pop("polyhead"), r":1: polyhead: this field is missing"),
        (4, lambda row: row.pop("heads"), r":5: heads: this field is missing"),
    ],
)
def test_a_row_that_contradicts_itself_is_named(
    checkpoint: Path, number: int, change: Callable[[Any], Any], message: str
) -> None:
    """A row proves nothing if its own parts do not fit together, or if the part that proves was removed."""
    rows = rows_of(checkpoint)
    change(rows[number])
    write_rows(checkpoint, rows)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(checkpoint).golden()
    assert "\n" not in str(caught.value)


def test_a_row_with_a_name_twice_is_refused(checkpoint: Path) -> None:
    """Readers of JSON differ in which of the two they take."""
    path = checkpoint / "golden.jsonl"
    path.write_text('{"text": "another", ' + path.read_text(encoding="utf-8")[1:], encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"golden\.jsonl:1: is not JSON \(the name 'text' occurs twice"):
        read_checkpoint(checkpoint).golden()


def to_format_1(path: Path) -> None:
    """Makes the checkpoint one from before golden rows held what a caller sees."""
    config = config_of(path)
    del config["polyhead"]["format"]
    write_config(path, config)
    names = ("text", "scores", "token_count", "truncated")
    write_rows(path, [{name: row[name] for name in names} for row in rows_of(path)])


def test_an_older_checkpoint_is_read_and_says_what_is_not_proved(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of format 1 hold scores only. They stay readable, and each load says what they do not prove."""
    to_format_1(checkpoint)
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.load(checkpoint)
    assert predictor.check_golden() < 1e-5
    assert "do not prove the labels, thresholds and template" in caplog.text


@pytest.mark.parametrize("number", [0, 5, "2", True, 2.5, None])
def test_an_unknown_format_is_refused(checkpoint: Path, number: Any) -> None:
    """A format of a later version is one line, not a guess."""
    config = config_of(checkpoint)
    config["polyhead"]["format"] = number
    write_config(checkpoint, config)
    with pytest.raises(CheckpointError, match="format must be 1 to 4"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("number", [1, 2])
def test_an_older_checkpoint_answers_its_logits(damaged: Callable[[], Path], number: int) -> None:
    """Heads of formats 1 and 2 have no target_scale; the answers stay what they were."""
    checkpoint = damaged()
    answers = Predictor.load(checkpoint).predict(["Rain."])
    config = config_of(checkpoint)
    config["polyhead"]["format"] = number
    for head in config["polyhead"]["heads"]:
        del head["target_scale"]
    write_config(checkpoint, config)
    rows = rows_of(checkpoint)
    rows[0]["polyhead"] = config["polyhead"]
    write_rows(checkpoint, rows)
    predictor = Predictor.load(checkpoint)
    assert predictor.check_golden() < 1e-5
    assert predictor.predict(["Rain."]) == answers


def test_a_checkpoint_of_format_3_rejects_nothing(damaged: Callable[[], Path]) -> None:
    """Its heads have no reject_below, and its golden rows hold answers without label."""
    checkpoint = damaged()
    answers = Predictor.load(checkpoint).predict(["Rain."])
    config = config_of(checkpoint)
    config["polyhead"]["format"] = 3
    for head in config["polyhead"]["heads"]:
        del head["reject_below"], head["reject_by"]
    write_config(checkpoint, config)
    rows = rows_of(checkpoint)
    rows[0]["polyhead"] = config["polyhead"]
    write_rows(checkpoint, rows)
    predictor = Predictor.load(checkpoint)
    assert predictor.check_golden() < 1e-5
    assert predictor.predict(["Rain."]) == answers


def test_golden_rows_hold_rejected_answers(sound: Path) -> None:
    """Some rows are rejected and some are not, and the level below is rejected with the level above."""
    heads = [row["heads"] for row in rows_of(sound)]
    assert {row["area"]["label"] is None for row in heads} == {True, False}
    for row in heads:
        assert (row["area"]["label"] is None) == (row["area"]["scores"][0] < 0.52) == (row["field"]["label"] is None)
        assert row["area"]["labels"]
        assert row["field"]["labels"]


def test_a_scale_cannot_be_left_out(checkpoint: Path) -> None:
    """Without it the newest format would answer numbers in another unit."""
    config = config_of(checkpoint)
    del config["polyhead"]["heads"][4]["target_scale"]
    write_config(checkpoint, config)
    with pytest.raises(CheckpointError, match=r"heads\.4: missing field 'target_scale'"):
        read_checkpoint(checkpoint)


def test_a_format_cannot_be_lowered_to_skip_the_proof(checkpoint: Path) -> None:
    """The rows say with which format they were made."""
    config = config_of(checkpoint)
    exchange_labels(config)
    del config["polyhead"]["format"]
    write_config(checkpoint, config)
    with pytest.raises(CheckpointError, match="format"):
        read_checkpoint(checkpoint).golden()


def test_fields_are_rendered_and_not_sent_as_text(sound: Path) -> None:
    """A row sends the fields that it was made of, and the rendered text is what was scored."""
    golden = read_checkpoint(sound).golden()
    predictor = Predictor.load(sound)
    assert any(row.text.startswith("News. ") for row in golden)
    for row in golden:
        (encoded,) = predictor.encode([row.element])
        assert (encoded.is_plain, encoded.token_count) == (False, row.token_count)


def test_live_answers_must_be_what_their_scores_mean(sound: Path) -> None:
    """A server whose answers have other names or thresholds than the checkpoint is refused, whatever its scores."""
    predictor = Predictor.load(sound)
    golden = predictor.checkpoint.golden()
    encoded = predictor.encode([row.element for row in golden])
    scores = predictor.score(encoded)
    tokens = [(text.token_count, text.truncated) for text in encoded]
    answers = predictor.predict([row.element for row in golden])

    def check(given: list[Any]) -> float:
        return check_answers(golden, tokens, scores, "fp32", predictor.schema, "live", json.loads(json.dumps(given)))

    assert check(answers) < 1e-5
    for place, value in ((("area", "labels"), ["c"]), (("stars", "value"), 1.0), (("mood", "labels"), ["x"])):
        wrong = copy.deepcopy(answers)
        wrong[2]["heads"][place[0]][place[1]] = value
        with pytest.raises(ToleranceError, match=rf"live:3: the answer has {place[0]}\.{place[1]}"):
            check(wrong)
    with pytest.raises(ValueError, match="zip"):
        check(answers[:-1])


def test_difference_tells_values_apart_that_python_calls_equal() -> None:
    """True is not 1, a missing name is not null, and a list is not as long as another."""
    assert difference({"a": [1, 2.0]}, {"a": [1.0, 2]}) is None
    assert difference({"a": True}, {"a": 1}) == ("a", "True", "1")
    assert difference({"a": None}, {}) == ("a", "None", "(nothing)")
    assert difference({}, {"b": [1]}) == ("b", "(nothing)", "[1]")
    assert difference([[1], [2]], [[1], [2, 3]]) == ("1", "[2]", "[2, 3]")


def test_a_text_that_its_fields_do_not_make_has_none(tmp_path: Path) -> None:
    """Text transforms change a text after it was rendered; such a row proves the text alone."""
    spec = tiny_spec(text_template=TEMPLATE)
    fields = [json.dumps({"title": None, "body": text}) for text in TEXTS]
    rows = golden_rows(
        [text.upper() for text in TEXTS], tiny_model(spec, SCHEMA), tiny_tokenizer(), SCHEMA, MAX_LENGTH, 10, 0,
        spec.template, fields,
    )  # fmt: skip
    assert all(row.fields is None for row in rows)
