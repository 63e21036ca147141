"""--dry-run says what would happen and leaves no trace; its numbers are those of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import GPT2Config

from polyhead_training.config import FitConfig
from polyhead_training.dry_run import count_steps, estimate_memory
from tests.training.tiny_run import history, metrics, run, trained, write_run


def test_the_dry_run_counts_as_the_run_does(tmp_path: Path) -> None:
    """Parameters, steps and evaluations; and before the run nothing but the config and its data is there."""
    config = write_run(tmp_path, "eval_steps = 3\nfreeze_layers = 1", layers=2)
    result = run(config, "--dry-run")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "rows.jsonl"]
    found = re.search(r"parameters: ([\d,]+) in total, ([\d,]+) trained", result.output)
    assert found
    checkpoint = trained(config)
    training = metrics(checkpoint)["training"]
    assert [int(n.replace(",", "")) for n in found.groups()] == [training["parameters"], training["trained_parameters"]]
    assert (
        f"steps: {training['steps']} (4 an epoch), {len(history(checkpoint, 'eval_loss'))} evaluations" in result.output
    )


def test_the_dry_run_describes_config_and_texts(tmp_path: Path) -> None:
    """The resolved config with its defaults, labels, token lengths, what is truncated, and memory."""
    config = write_run(tmp_path)
    config.write_text(config.read_text(encoding="utf-8").replace("max_length = 12", "max_length = 2"), encoding="utf-8")
    output = run(config, "--dry-run").output
    resolved = json.loads(output[: output.index("\n}") + 2])
    assert resolved["training"]["warmup_ratio"] == 0.05
    assert "head topic: single_label" in output
    assert re.search(
        r"tokens a text: p50 \d+, p90 \d+, p95 \d+, p99 \d+, max \d+; 100.0% are longer than max_length \(2\)", output
    )
    assert "memory a process, estimated: " in output


@pytest.mark.parametrize(
    ("fields", "rows", "processes", "expected"),
    [
        ({"epochs": 3, "batch_size": 10}, 101, 1, (11, 33, 3)),
        ({"epochs": 3, "batch_size": 10}, 101, 2, (6, 18, 3)),
        ({"epochs": 0.5, "batch_size": 10}, 101, 1, (11, 6, 1)),
        ({"max_steps": 7, "batch_size": 10, "gradient_accumulation_steps": 4, "eval_steps": 2}, 101, 1, (3, 7, 4)),
    ],
)
def test_steps_are_counted(fields: dict[str, float], rows: int, processes: int, expected: tuple[int, ...]) -> None:
    """Last batches that are not full count, in an epoch and in an accumulation."""
    assert count_steps(FitConfig(**fields), rows, processes) == expected


def test_memory_is_estimated_from_what_is_trained() -> None:
    """gpt2 with batches of 1,024 tokens: 4 bytes a weight, 12 more if trained, less for activations if recomputed."""
    body = GPT2Config()
    memory = estimate_memory(FitConfig(), body, parameters=124_000_000, trained=1_000_000, tokens_a_batch=1024)
    assert memory["parameters"] == 496e6
    assert memory["gradients"] + memory["optimizer"] == 12e6
    assert memory["activations"] == 1024 * 12 * 17 * 768 * 4
    recomputed = estimate_memory(FitConfig(gradient_checkpointing=True), body, 1, 1, tokens_a_batch=1024)
    assert recomputed["activations"] < memory["activations"] / 7
