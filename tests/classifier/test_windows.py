"""Long texts in windows: how they are cut, what one answer is made of, and what they cost in the queue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.checkpoint import read_checkpoint, renew_golden
from polyhead.decode import to_scores
from polyhead.encode import EncodedText
from polyhead.engine.cpu.forward import activation_bytes
from polyhead.errors import CheckpointError, MachineError, RepositoryError, ToleranceError
from polyhead.interface import Interface, changes, check_changes
from polyhead.predictor import NOT_FINITE, Predictor
from polyhead.scheduler import MicroBatchRecord, QueueLimits, RefusedError, Scheduler
from polyhead.text_queue import ScoreRequest, TextQueue
from polyhead.windows import LongTexts, Windows
from tests.tiny import MAX_LENGTH, SCHEMA, TEXTS, overflow, tiny_tokenizer, write_tiny_checkpoint

STRIDE = 36
LONG = LongTexts(stride=STRIDE, most_windows=3)
REACH = 120  # 48 + 2 * 36
PROSE = " ".join(TEXTS[:7]) * 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint that reads long texts in windows, and its transformers model."""
    path = tmp_path_factory.mktemp("windows") / "checkpoint"
    return path, write_tiny_checkpoint(path, "hidden_state_concat", long_texts=LONG)


@pytest.fixture(scope="module")
def predictor(made: tuple[Path, Any]) -> Predictor:
    """Its predictor."""
    return Predictor.load(made[0], precision="fp32")


def text_of(tokens: int) -> str:
    """A text of exactly so many tokens."""
    ids = tiny_tokenizer().encode(PROSE).ids[:tokens]
    text = tiny_tokenizer().decode(ids)
    assert tiny_tokenizer().encode(text).ids == ids
    return text


def by_hand(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits of a text: one plain forward of transformers per window, then the mean weighted by new tokens."""
    total, read, start = np.zeros(SCHEMA.width), 0, 0
    while read < len(ids):
        window = list(ids[start : start + MAX_LENGTH])
        with torch.inference_mode():
            hidden = model.body_model(torch.tensor([window]), output_hidden_states=True).hidden_states
            logits = model.head(torch.cat([hidden[-1][:, -1], hidden[-2][:, -1]], dim=1))[0]
        new = start + len(window) - read
        total += new * logits.numpy().astype(np.float64)
        read, start = read + new, start + STRIDE
    return total / len(ids)


@pytest.mark.parametrize(
    ("tokens", "count", "computed", "shares"),
    [
        (1, 1, 1, [1.0]),
        (8, 1, 8, [1.0]),
        (9, 2, 11, [8 / 9, 1 / 9]),
        (14, 2, 16, [8 / 14, 6 / 14]),
        (15, 3, 19, [8 / 15, 6 / 15, 1 / 15]),
        (20, 3, 24, [8 / 20, 6 / 20, 6 / 20]),
    ],
)
def test_windows_by_hand(tokens: int, count: int, computed: int, shares: list[float]) -> None:
    """Windows of 8 tokens, each 6 after the one before: how many, how many tokens they have together, their weights."""
    windows = Windows(length=8, stride=6, most=3)
    assert windows.reach == 20
    assert (windows.count(tokens), windows.computed(tokens)) == (count, computed)
    assert windows.shares(tokens) == pytest.approx(shares)


def test_a_text_is_cut_where_windows_begin() -> None:
    """The last window has what is left; without windows there is one."""
    windows = Windows(length=8, stride=6, most=3)
    assert windows.cut(range(15)) == [range(8), range(6, 14), range(12, 15)]
    assert windows.cut(range(8)) == [range(8)]
    assert Windows.of(8, None) == Windows(8, 8, 1)
    assert Windows.of(8, None).reach == 8


@given(st.integers(1, 30), st.data())
def test_windows_cover_a_text(length: int, data: st.DataObject) -> None:
    """Whatever the sizes: windows are not longer than allowed, not too many, have each token, and weights of sum 1."""
    windows = Windows(length, data.draw(st.integers(1, length)), data.draw(st.integers(2, 8)))
    tokens = data.draw(st.integers(1, windows.reach))
    cut = windows.cut(range(tokens))
    assert len(cut) == windows.count(tokens) <= windows.most
    assert all(1 <= len(window) <= length for window in cut)
    assert sorted({token for window in cut for token in window}) == list(range(tokens))
    assert windows.computed(tokens) == sum(map(len, cut))
    seen: set[int] = set()
    for window, share in zip(cut, windows.shares(tokens), strict=True):
        assert share * tokens == pytest.approx(len(set(window) - seen))
        seen |= set(window)


def test_pooled_logits_by_hand() -> None:
    """A text of one window has its logits; one of nine tokens has eight ninths of its first and one of its second."""
    logits = np.array([[1, 2], [9, 0], [0, 18], [5, 6]], dtype=np.float32)
    pooled = Windows(8, 6, 3).pool(logits, [3, 9, 8])
    assert pooled.tolist() == [[1, 2], [8, 2], [5, 6]]


@pytest.mark.parametrize("tokens", [1, MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1, 84, 85, 100, REACH, REACH + 1])
def test_scores_are_those_of_transformers_window_by_window(
    predictor: Predictor, made: tuple[Path, Any], tokens: int
) -> None:
    """At and around every boundary; tokens are counted as they are read, and the rest of a longer text is said."""
    (encoded,) = predictor.encode([text_of(tokens)])
    assert (encoded.token_count, encoded.truncated) == (min(tokens, REACH), tokens > REACH)
    expected = to_scores(by_hand(made[1], tiny_tokenizer().encode(PROSE).ids[: min(tokens, REACH)])[None], SCHEMA)
    np.testing.assert_allclose(predictor.score([encoded]), expected, atol=1e-5)
    answer = predictor.predict([text_of(tokens)])[0]
    assert (answer["token_count"], answer["truncated"]) == (min(tokens, REACH), tokens > REACH)


def test_a_text_of_one_window_answers_as_with_truncation(tmp_path: Path, predictor: Predictor) -> None:
    """Bit for bit, whatever longer texts are asked for with it."""
    write_tiny_checkpoint(tmp_path / "truncating", "hidden_state_concat")
    truncating = Predictor.load(tmp_path / "truncating", precision="fp32")
    texts = [text for text in [*TEXTS, text_of(MAX_LENGTH)] if not truncating.encode([text])[0].truncated]
    assert len(texts) > 5
    alone = truncating.score(truncating.encode(texts))
    np.testing.assert_array_equal(predictor.score(predictor.encode([*texts, PROSE]))[:-1], alone)
    long, cut = predictor.predict([text_of(60)])[0], truncating.predict([text_of(60)])[0]
    assert long["heads"] != cut["heads"]
    assert (cut["token_count"], cut["truncated"], long["token_count"], long["truncated"]) == (48, True, 60, False)


ANY_TEXT = st.one_of(
    st.integers(1, 150).map(text_of), st.sampled_from(["", TEXTS[3], PROSE, "word " * 300]), st.text(max_size=20)
)


@settings(max_examples=30, deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=6), st.sampled_from([48, 100, 1000]))
def test_an_answer_does_not_depend_on_the_batch(made: tuple[Path, Any], texts: list[str], token_budget: int) -> None:
    """Also if windows of one text are in several micro-batches, and beside texts with an error and equal texts."""
    predictor = _of_budget(made[0], token_budget)
    encoded = predictor.encode(texts)
    scores = predictor.score(encoded)
    for position, text in enumerate(texts):
        alone = predictor.encode([text])
        assert alone[0] == encoded[position]
        compare = np.testing.assert_array_equal if predictor._engine.is_batch_invariant else _assert_near
        compare(predictor.score(alone)[0], scores[position])


PREDICTORS: dict[int, Predictor] = {}


def _of_budget(path: Path, token_budget: int) -> Predictor:
    if token_budget not in PREDICTORS:
        predictor = PREDICTORS[token_budget] = Predictor(read_checkpoint(path))
        predictor._engine.token_budget = token_budget
    return PREDICTORS[token_budget]


def _assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_window_that_overflows_spoils_its_own_text(tmp_path: Path) -> None:
    """A text with one window of infinite numbers gets an error; the other texts of the batch are answered."""
    write_tiny_checkpoint(tmp_path / "checkpoint", long_texts=LONG)
    overflow(tmp_path / "checkpoint")
    predictor = Predictor(read_checkpoint(tmp_path / "checkpoint"))
    bad, good = text_of(80) + " ~ and more", text_of(80)
    answers = predictor.predict([good, bad, "", good])
    assert answers[1:3] == [{"error": NOT_FINITE}, {"error": "the text is empty or blank"}]
    assert answers[0] == answers[3] == predictor.predict([good])[0]
    assert "heads" in answers[0]


def test_golden_rows_prove_the_windows(made: tuple[Path, Any], tmp_path: Path) -> None:
    """Rows of transformers pass the gate. Another stride, or other windows at most, are refused."""
    path, _ = made
    predictor = Predictor.load(path, precision="fp32")
    rows = predictor.checkpoint.golden()
    assert any(row.token_count > MAX_LENGTH for row in rows)
    assert predictor.check_golden() < 1e-5
    section = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert (section["polyhead"]["format"], section["polyhead"]["long_texts"]) == (4, {"stride": 36, "most_windows": 3})
    (tmp_path / "other").mkdir()
    for file in path.iterdir():
        if file.is_file():
            (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    section["polyhead"]["long_texts"]["stride"] = 40
    (tmp_path / "other" / "config.json").write_text(json.dumps(section), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"long_texts.stride 40, but the golden rows were made with 36"):
        Predictor.load(tmp_path / "other")
    spec = predictor.checkpoint.spec.model_copy(update={"long_texts": LongTexts(stride=40, most_windows=3)})
    predictor.windows = spec.windows
    with pytest.raises(ToleranceError):
        predictor.check_golden()


@pytest.mark.parametrize(
    ("long_texts", "message"),
    [
        ({"stride": 49, "most_windows": 3}, r"stride \(49\) must be at most max_length \(48\)"),
        ({"stride": 0, "most_windows": 3}, "long_texts.stride"),
        ({"stride": 36, "most_windows": 65}, "long_texts.most_windows"),
        ({"stride": 36, "most_windows": 1}, "long_texts.most_windows"),
        ({"stride": 36}, "long_texts.most_windows"),
        ("windows", "long_texts"),
    ],
)
def test_wrong_windows_are_refused(made: tuple[Path, Any], tmp_path: Path, long_texts: Any, message: str) -> None:
    """A checkpoint may come from anyone: what one text costs has a bound."""
    config = json.loads((made[0] / "config.json").read_text(encoding="utf-8"))
    config["polyhead"]["long_texts"] = long_texts
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)


def test_checkpoints_without_the_field_truncate(base_checkpoint: Path, tmp_path: Path) -> None:
    """One of format 3 lacks it and answers as before. In format 4 it is missing."""
    shutil.copytree(base_checkpoint, tmp_path / "old")
    config = json.loads((base_checkpoint / "config.json").read_text(encoding="utf-8"))
    assert config["polyhead"].pop("long_texts") is None
    (tmp_path / "old" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="polyhead: missing field 'long_texts'"):
        read_checkpoint(tmp_path / "old")
    config["polyhead"]["format"] = 3
    (tmp_path / "old" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    first, *rest = (base_checkpoint / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.dumps(json.loads(first) | {"polyhead": config["polyhead"]}), *rest]
    (tmp_path / "old" / "golden.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    old = Predictor.load(tmp_path / "old", precision="fp32")
    assert old.predict([PROSE]) == Predictor.load(base_checkpoint, precision="fp32").predict([PROSE])
    renew_golden(old.checkpoint, old.checkpoint.golden())
    assert read_checkpoint(tmp_path / "old").section["long_texts"] is None


def test_callers_see_how_much_is_read(made: tuple[Path, Any], base_checkpoint: Path, predictor: Predictor) -> None:
    """SCHEMA and the checkpoint agree. A version that reads less of a text breaks callers."""
    windows, cut = Interface.of_checkpoint(made[0]), Interface.of_checkpoint(base_checkpoint)
    assert (windows.max_length, cut.max_length) == (REACH, MAX_LENGTH)
    assert json.loads(predictor.schema_json())["max_length"] == predictor.max_length == REACH
    assert Interface.of_schema(predictor.schema_json()) == windows
    assert [change.text for change in changes(cut, windows)] == ["max_length: 48 → 120 tokens"]
    with pytest.raises(RepositoryError):
        check_changes(windows, cut, "here", is_allowed=False, tell=lambda line: None)


def test_a_text_that_passes_may_fill_a_micro_batch(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a model with windows starts only if two micro-batches fit into memory at once."""
    needed = 2 * activation_bytes(predictor.checkpoint.body, predictor.token_budget)
    monkeypatch.setattr("polyhead.predictor.available_memory_bytes", lambda: needed)
    assert predictor.warm_up() == predictor.token_budget
    monkeypatch.setattr("polyhead.predictor.available_memory_bytes", lambda: needed - 1)
    with pytest.raises(MachineError, match=f"a micro-batch of {predictor.token_budget} tokens takes up to"):
        predictor.warm_up()


def encoded_of(tokens: int, first: int = 0) -> EncodedText:
    """A text of so many tokens in windows of 8, 6 apart."""
    windows = Windows(8, 6, 16) if tokens > 8 else None
    return EncodedText([first, *range(1, tokens)], windows=windows)


def request_of(*tokens: int, first: int = 0) -> ScoreRequest:
    """A request of such texts."""
    return ScoreRequest([encoded_of(count, first) for count in tokens], 1, lambda: None)


def test_a_long_text_counts_all_its_windows() -> None:
    """Twenty tokens in three windows wait and leave as 24. Equal texts count once, and shorter ones go first."""
    queue = TextQueue(token_budget=24, enough_tokens=8)
    assert request_of(20, 8).tokens == 32
    queue.add(request_of(20, first=1))
    queue.add(request_of(20, first=1))
    assert (queue.rows, queue.tokens) == (2, 24)
    queue.add(request_of(8, first=2))
    assert queue.tokens == 32
    assert [text.tokens for text in queue.take()] == [8]
    (text,) = queue.take()
    assert (text.tokens, len(text.places)) == (24, 2)
    assert (queue.rows, queue.tokens, queue.left_tokens) == (0, 0, 32)


def test_a_long_text_does_not_delay_those_that_would_fit_with_its_tokens_alone() -> None:
    """A micro-batch has so many tokens as it computes: a text that is 60 tokens long and computes 78 stands alone."""
    queue = TextQueue(token_budget=70, enough_tokens=70)
    assert encoded_of(60).computed_tokens == 78
    queue.add(request_of(60, first=1))
    queue.add(request_of(7, first=2))
    assert [[text.tokens for text in queue.take()] for _ in range(2)] == [[7], [78]]


def test_the_scheduler_computes_long_texts_as_the_predictor(made: tuple[Path, Any], predictor: Predictor) -> None:
    """The answers are those of each text alone; admission and records count computed tokens."""
    records: list[MicroBatchRecord] = []
    finished: list[ScoreRequest] = []
    scheduler = Scheduler(predictor, QueueLimits(tokens=400), records.append, lambda error: None)
    texts = [text_of(85), TEXTS[0], "", PROSE, text_of(85)]
    encoded = predictor.encode(texts)
    requests = [
        ScoreRequest(part, SCHEMA.width, lambda: finished.append(requests[0])) for part in (encoded[:3], encoded[3:])
    ]
    assert requests[1].tokens == REACH + 2 * 12 + 85 + 2 * 12
    too_much = ScoreRequest(predictor.encode([PROSE + "." * n for n in range(3)]), SCHEMA.width, lambda: None)
    refused = scheduler.submit([*requests, too_much])
    assert isinstance(refused[too_much], RefusedError)
    assert scheduler.waiting() == (4, 109 + encoded[1].token_count + 144)
    scheduler.start()
    scheduler.close()
    assert len(finished) == 2
    found = np.concatenate([request.scores for request in requests])
    for row, text in zip(found, encoded, strict=True):
        np.testing.assert_allclose(row, predictor.score([text])[0], atol=1e-6)
    assert sum(record.tokens for record in records) == 109 + encoded[1].token_count + 144
