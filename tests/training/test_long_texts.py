"""Training on long texts: windows are packed, and the loss is that of their pooled logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from polyhead.predictor import Predictor
from polyhead.windows import LongTexts, Windows
from polyhead_training.config.model import ModelConfig
from polyhead_training.fitting.preparation import TokenRows, describe_reading
from polyhead_training.model.losses import classification_loss
from polyhead_training.model.packing import collate
from tests.training.test_packing import CLASSES, build, gradients, rows
from tests.training.tiny_run import metrics, run, trained, write_run

WINDOWS = Windows(length=8, stride=6, most=4)


def reference_loss(model: Any, texts: list[dict[str, Any]]) -> torch.Tensor:
    """The loss of the unpacked model: one forward per window, then the mean weighted by new tokens."""
    logits = []
    for text in texts:
        ids, total, read, start = text["input_ids"], torch.zeros(1, 4), 0, 0
        while read < len(ids):
            window = ids[start : start + 8]
            new = start + len(window) - read
            mask = torch.ones(1, len(window))
            total = total + new / len(ids) * model(torch.tensor([window]), attention_mask=mask).logits
            read, start = read + new, start + 6
        logits.append(total)
    labels = torch.tensor([text["labels"] for text in texts])
    return classification_loss(torch.cat(logits), labels, model.terms)


@pytest.mark.parametrize("model_class", CLASSES)
@given(lengths=st.lists(st.integers(1, WINDOWS.reach), min_size=1, max_size=6))
@settings(max_examples=12, deadline=None)
def test_loss_and_gradients_equal_those_of_unpacked_windows(model_class: Any, lengths: list[int]) -> None:
    """Whatever the lengths: every weight has the gradient of the loss of each row's pooled logits."""
    model, texts = build(model_class), rows(lengths)
    output, packed = gradients(model, collate(texts, windows=WINDOWS))
    model.zero_grad()
    loss = reference_loss(model, texts)
    loss.backward()
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-4)
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-5, rtol=1e-3, msg=name)


def test_windows_are_packed_by_length_without_padding() -> None:
    """Rows of 15 and 3 tokens: windows of 8, 8, 3 and 3 tokens, and how much each is worth to each row."""
    texts = rows([3, 15])
    batch = collate(texts, windows=WINDOWS)
    assert next(iter(batch.values())).shape[0] == 2  # the first tensor has the size of the batch
    assert batch["lengths"].tolist() == [8, 8, 3, 3]
    torch.testing.assert_close(batch["pooling"], torch.tensor([[8 / 15, 6 / 15, 1 / 15, 0], [0, 0, 0, 1]]))
    long = texts[1]["input_ids"]
    assert batch["input_ids"].tolist() == [*long[:8], *long[6:14], *long[12:], *texts[0]["input_ids"]]
    assert batch["labels"][:, 1].tolist() == [0.5, 0.0]
    in_order = collate(texts, longest_first=False, windows=WINDOWS)
    assert in_order["labels"][:, 1].tolist() == [0.0, 0.5]
    assert in_order["pooling"][0].tolist() == [0, 0, 1, 0]


def test_short_texts_are_packed_as_with_truncation() -> None:
    """A batch of texts that fit into one window is the same batch."""
    with_windows, without = collate(rows([3, 8, 5]), windows=WINDOWS), collate(rows([3, 8, 5]))
    assert with_windows.keys() == without.keys() == {"lengths", "input_ids", "labels"}
    assert all(torch.equal(with_windows[name], without[name]) for name in ("lengths", "input_ids"))


def test_the_config_says_windows() -> None:
    """The default truncates; windows overlap by a quarter unless the config says otherwise."""
    assert ModelConfig(max_length=48).windows is None
    assert ModelConfig(max_length=48, long_texts="windows").windows == LongTexts(stride=36, most_windows=8)
    given = ModelConfig(max_length=48, long_texts="windows", window_overlap=0, most_windows=64).windows
    assert given == LongTexts(stride=48, most_windows=64)
    with pytest.raises(ValidationError, match=r"window_overlap \(48\) must be smaller than max_length \(48\)"):
        ModelConfig(max_length=48, window_overlap=48)
    with pytest.raises(ValidationError, match="most_windows"):
        ModelConfig(most_windows=65)


def test_how_much_is_read_is_said() -> None:
    """Of 4, 8 and 28 tokens half is read if 8 are; in four windows all but 2, and 6 of them are computed twice."""
    lengths = np.array([4, 8, 28])
    truncated = TokenRows([], lengths, Windows.of(8, None))  # type: ignore[arg-type] # no row is read
    assert describe_reading(truncated) == (
        "33.3% of 3 training texts are longer than max_length (8) and truncated; 50.0% of all tokens are read"
    )
    windows = TokenRows([], lengths, WINDOWS)  # type: ignore[arg-type]
    assert (windows.read, windows.computed, windows.truncated) == (38, 44, 1)
    assert describe_reading(windows) == (
        "33.3% of 3 training texts are longer than max_length (8) and read in windows; 95.0% of all tokens are read "
        "(1 texts are longer than 4 windows, 26 tokens); 1.16 tokens are computed per token read"
    )


FILLER = "a long and quiet introduction about nothing that matters to anyone here "


def late_rows(folder: Path) -> None:
    """Texts whose telling word is the last one, far behind the first window."""
    written = [
        {"text": f"{FILLER * (1 + place % 3)}{noun} {verb}", "topic": noun, "stars": float(place)}
        for place, verb in enumerate(["sleep", "run", "bark", "play"])
        for noun in ("cats", "dogs")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")


@pytest.mark.parametrize("long_texts", ["windows", "truncate"])
def test_telling_words_behind_the_first_window_are_learnt(tmp_path: Path, long_texts: str) -> None:
    """In windows, the served answers are the labels of the rows; truncation cannot tell them apart."""
    config = write_run(
        tmp_path,
        training=f"max_steps = {200 if long_texts == 'windows' else 10}",
        model=f'long_texts = "{long_texts}"\nwindow_overlap = 4',
        layers=2,
        dropout=0.0,
    )
    late_rows(tmp_path)
    result = run(config)
    assert result.exit_code == 0, result.output
    checkpoint = tmp_path / "out"
    predictor = Predictor.load(checkpoint, precision="fp32")
    assert predictor.check_golden() < 1e-5
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line) for line in lines]
    answers = predictor.predict([row["text"] for row in texts])
    topics = [answer["heads"]["topic"]["labels"][0] for answer in answers]
    right = sum(topic == row["topic"] for topic, row in zip(topics, texts, strict=True))
    training = metrics(checkpoint)["training"]
    counts = [len(predictor._tokenizer.encode(row["text"]).ids) for row in texts]
    assert training["text_tokens"] == sum(counts)
    assert "100.0% of 8 training texts are longer than max_length (12)" in result.output
    if long_texts == "windows":
        assert right == 8
        assert (training["read_tokens"], training["truncated_rows"]) == (sum(min(n, 68) for n in counts), 0)
        assert training["computed_tokens"] > training["read_tokens"]
        assert [answer["token_count"] for answer in answers] == counts
    else:
        assert right == 4
        assert (training["read_tokens"], training["truncated_rows"]) == (8 * 12, 8)


def test_two_runs_in_windows_end_with_the_same_weights(tmp_path: Path) -> None:
    """Training in windows is repeatable, also with rows of similar length together."""
    first, second = tmp_path / "first", tmp_path / "second"
    found = []
    for folder in (first, second):
        config = write_run(
            folder, model='long_texts = "windows"', training='train_sampling_strategy = "group_by_length"'
        )
        late_rows(folder)
        found.append((trained(config) / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_the_dry_run_says_what_windows_cost(tmp_path: Path) -> None:
    """Without training: how many texts are long, how much is read, and the tokens computed for it."""
    config = write_run(tmp_path, model='long_texts = "windows"\nmost_windows = 2')
    late_rows(tmp_path)
    output = run(config, "--dry-run").output
    assert re.search(
        r"100\.0% of 8 training texts are longer than max_length \(12\) and read in windows; \d+\.\d% of all tokens "
        r"are read \(8 texts are longer than 2 windows, 21 tokens\); 1\.14 tokens are computed per token read",
        output,
    )
