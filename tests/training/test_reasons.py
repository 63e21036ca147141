"""The reasons for the most confident mistakes, of a model in which only one planted word counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polyhead.predictor import Predictor
from polyhead_client.explain import FEWEST_TEXTS
from polyhead_training import evaluate
from polyhead_training.evaluate_command import app
from polyhead_training.evaluation import reasons
from polyhead_training.evaluation.mistakes import confident_places, most_confident
from polyhead_training.evaluation.reasons import with_reasons
from tests.e2e.test_explain import PLANTED, expected, write_planted_checkpoint

TOKENS = 9  # of this text: one per word; the decisive word speaks for another label than the one in the data
TEXT = "a last minute in the goal by the striker"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model."""
    path = tmp_path_factory.mktemp("planted") / "checkpoint"
    write_planted_checkpoint(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three rows: one with the planted word under a wrong label, two without it."""
    texts = [TEXT, "in the last minute", "the striker"]
    labelled = [
        {"text": text, "topic": "news", "mood": ["sad"], "stars": 1.0, "place": place}
        for place, text in enumerate(texts)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    return path


def test_the_planted_word_is_the_reason(checkpoint: Path, rows: Path) -> None:
    """Its effect on the wrong label is the score with it minus the score without it, computed with NumPy alone."""
    evaluation = with_reasons(evaluate(checkpoint, rows), Predictor.load(checkpoint))
    topic = next(answers for answers in evaluation.answers if answers.head.name == "topic")
    mistake = next(row for row in most_confident(topic, evaluation) if row.text == TEXT)
    assert mistake.reason is not None
    assert (mistake.reason.head, mistake.reason.label) == ("topic", "sport")
    (planted,) = [word for word in mistake.reason.words if word.text == PLANTED]
    assert mistake.reason.strongest(1) == [planted]
    with_it, without = expected(1, TOKENS - 1)["sport"], expected(0, TOKENS - 1)["sport"]
    assert planted.effect == pytest.approx(with_it - without, abs=1e-4)
    assert with_it - without > 0.02


def test_the_page_shows_them(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    """The word is marked, a sentence says what it did, and `reasons = false` leaves all of it out."""
    output = tmp_path / "report"
    result = CliRunner().invoke(app, [str(checkpoint), str(rows), "--output", str(output)])
    assert result.exit_code == 0, result.output
    page = (output / "index.html").read_text(encoding="utf-8")
    assert f">{PLANTED}</span>" in page
    assert "The score of “<bdi>sport</bdi>” is" in page
    assert f"Without “<bdi>{PLANTED}</bdi>” it would be" in page
    config = tmp_path / "config.toml"
    config.write_text(
        f'output = "{tmp_path}/x"\n[data]\ntrain = "{rows}"\n[report]\nreasons = false\n[[heads]]\nname = "topic"\n'
        'kind = "single_label"\n[[heads]]\nname = "mood"\nkind = "multi_label"\n[[heads]]\nname = "stars"\n'
        'kind = "regression"\n',
        encoding="utf-8",
    )
    result = CliRunner().invoke(app, [str(checkpoint), str(rows), "--output", str(output), "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert "The score of “" not in (output / "index.html").read_text(encoding="utf-8")


def test_the_work_is_bounded(checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most three mistakes per head are explained, each with at most 64 texts that the engine scores."""
    evaluation = evaluate(checkpoint, rows)
    many = np.tile(np.arange(3), 20)
    evaluation = replace(
        evaluation,
        texts=[f"{evaluation.texts[i]} {'word ' * 40}" for i in many],
        **{name: getattr(evaluation, name)[many] for name in ("labels", "scores", "token_counts", "truncated", "rows")},
        files=[evaluation.files[i] for i in many],
        splits=[evaluation.splits[i] for i in many],
    )
    predictor, scored = Predictor.load(checkpoint), []
    score = predictor.score
    monkeypatch.setattr(predictor, "score", lambda encoded: (scored.append(len(encoded)), score(encoded))[1])
    found = with_reasons(evaluation, predictor)
    assert sum(len(confident_places(answers)) for answers in evaluation.answers[:2]) > 6
    assert [sum(head == name for head, _, _ in found.reasons) for name in ("topic", "mood", "stars")] == [3, 3, 0]
    assert 6 * 30 < sum(scored) <= 6 * FEWEST_TEXTS
    monkeypatch.setattr(reasons, "MOST_MISTAKES", 2)
    assert len(with_reasons(evaluation, predictor).reasons) == 2


def test_long_texts_and_texts_without_scores_are_left_out(
    checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that the page would cut is not explained; a failure of the engine costs the reason, not the report."""
    evaluation, predictor = evaluate(checkpoint, rows), Predictor.load(checkpoint)
    monkeypatch.setattr(reasons, "LONGEST_TEXT", len(TEXT) - 1)
    assert TEXT not in {evaluation.texts[index] for _, index, _ in with_reasons(evaluation, predictor).reasons}
    monkeypatch.setattr(predictor, "score", lambda encoded: np.full((len(encoded), 5), np.nan, np.float32))
    assert with_reasons(evaluation, predictor).reasons == {}
