"""The search for the highest rate, and the capacity benchmark against a fake server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest import capacity
from loadtest.capacity import find_highest, highest_met
from polyhead.predictor import Predictor
from tests.client.fake_triton import serve_fake
from tests.tiny import TEXTS


@pytest.mark.parametrize("limit", [3.0, 49.0, 50.0, 51.0, 777.0, 20_000.0])
def test_finds_the_limit(limit: float) -> None:
    """From either side of the first rate the limit is found to within the closeness, each rate measured once."""
    asked: list[float] = []

    def meets(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    points = find_highest(meets, 50.0, 1.05, 30)
    found = highest_met(points)
    assert found is not None
    assert limit / 1.06 < found <= limit
    assert len(asked) == len(set(asked)) == len(points) <= 18


def test_ends_in_bounded_runs() -> None:
    """The search also ends if the server meets every rate, or none."""
    assert highest_met(find_highest(lambda rate: True, 10.0, 1.05, 6)) == 320.0
    points = find_highest(lambda rate: False, 10.0, 1.05, 6)
    assert len(points) == 6
    assert highest_met(points) is None


def test_a_rate_above_a_missed_one_is_not_believed() -> None:
    """A rate above a missed one does not count, even if it met the objectives."""
    points = {10.0: True, 20.0: False, 25.0: True}
    assert highest_met(points) == 10.0


def test_benchmark_to_its_last_line(base_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a running server, the search ends with a confirmed rate, a result file and a plot."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    predictor = Predictor.load(base_checkpoint, precision="fp32")
    heads = json.loads(predictor.schema_json())["heads"]
    (tmp_path / "objectives.toml").write_text("p95_ms = 2000\n")
    with serve_fake() as fake:
        fake.server.heads, fake.server.max_length = heads, predictor.max_length
        fake.answer = lambda text: predictor.predict([text])[0]
        capacity.main([
            "--checkpoint", str(base_checkpoint), "--data", str(texts), "--host", f"http://{fake.url}",
            "--objectives", str(tmp_path / "objectives.toml"), "--out", str(tmp_path / "capacity.json"),
            "--seconds", "2", "--confirm-seconds", "2", "--start-rate", "10", "--most-runs", "2",
        ])  # fmt: skip
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["capacity_texts_s"] == pytest.approx(20.0, rel=0.6)
    assert printed["mismatches"] == 0
    assert printed["requests"] > 40
    assert printed["objectives"] == {
        "error_rate": 0.0, "refused_rate": 0.0, "mismatch_rate": 0.0, "p95_ms": 2000.0,
    }  # fmt: skip
    written = json.loads((tmp_path / "capacity.json").read_text())
    assert [point["rate"] for point in written["points"]] == [10.0, 20.0]
    assert (written["confirmed"]["rate"], written["confirmed"]["met"]) == (20.0, True)
    assert (tmp_path / "capacity.png").stat().st_size > 10_000
