"""--dry-run says what would happen and leaves no trace; its numbers are those of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import GPT2Config

from polyhead_training.config import FitConfig
from polyhead_training.fitting.preparation import count_steps, estimate_memory
from tests.training.tiny_run import history, metrics, rows, run, trained, write_run


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
        f"steps: {training['steps']} (4 per epoch), {len(history(checkpoint, 'eval_loss'))} evaluations"
        in result.output
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
        r"tokens per text: p50 \d+, p90 \d+, p95 \d+, p99 \d+, max \d+; "
        r"100.0% of \d+ training texts are longer than max_length \(2\)",
        output,
    )
    assert "memory per process, estimated: " in output


def test_texts_without_a_token_are_left_out_and_counted(tmp_path: Path) -> None:
    """Run and dry run count what is trained on; golden rows are drawn from the rest."""
    config = write_run(tmp_path, data='text_transforms = ["strip_accents"]')
    accents = [{"text": "\u0301" * (i + 1), "topic": "cats", "stars": 1} for i in range(9)]
    lines = [json.dumps(row) + "\n" for row in [*accents, *rows()]]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    outputs = [run(config, "--dry-run").output, run(config).output]
    for output in outputs:
        assert "note: 9 of 25 train texts are left out: text_transforms leave no token" in output
        assert "note: 9 of 25 validation texts are left out" in output
    training = metrics(tmp_path / "out")["training"]
    assert training["rows"] == 16
    assert f"steps: {training['steps']} (4 per epoch)" in outputs[0]
    golden = (tmp_path / "out" / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["text"] for line in golden}) == 4


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_a_token_is_an_error(tmp_path: Path, split: str) -> None:
    """Before anything is trained."""
    config = write_run(tmp_path, data='text_transforms = ["strip_accents"]\ntest = "ROWS"')
    (tmp_path / "accents.jsonl").write_text(json.dumps(rows()[1] | {"text": "\u0301"}) + "\n", encoding="utf-8")
    text = config.read_text(encoding="utf-8").replace("ROWS", str(tmp_path / "rows.jsonl"))
    text = re.sub(rf'^({split} = ").*"', rf'\1{tmp_path}/accents.jsonl"', text, flags=re.MULTILINE)
    config.write_text(text.replace('name = "topic"', 'name = "topic"\nlabels = ["cats", "dogs"]'), encoding="utf-8")
    result = run(config, "--dry-run")
    assert result.exit_code == 2
    assert f"data.text_transforms: leave no token of any text of the {split} split" in result.stderr


def test_texts_of_a_warm_start_must_be_there(tmp_path: Path) -> None:
    """A dry run names the pattern that matches nothing."""
    result = run(write_run(tmp_path, more='[warm_start]\ntexts = "nothing*.jsonl"'), "--dry-run")
    assert result.exit_code == 2
    assert "nothing*.jsonl: no such file" in result.stderr


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
    """gpt2 with batches of 1,024 tokens: 4 bytes per weight, 12 more if AdamW trains it, 8 more if Muon does, and less
    for activations if they are computed again.
    """
    body = GPT2Config()
    fit = FitConfig()
    memory = estimate_memory(fit, "fp32", body, parameters=124_000_000, trained=1_000_000, tokens_per_batch=1024)
    assert memory["parameters"] == 496e6
    assert memory["gradients"] + memory["optimizer"] == 12e6
    assert memory["activations"] == 1024 * 12 * 17 * 768 * 4
    muon = estimate_memory(fit, "fp32", body, 124_000_000, 1_000_000, tokens_per_batch=1024, by_muon=600_000)
    assert muon["gradients"] + muon["optimizer"] == 12 * 400_000 + 8 * 600_000
    recomputed = estimate_memory(
        fit.model_copy(update={"gradient_checkpointing": True}), "fp32", body, 1, 1, tokens_per_batch=1024
    )
    assert recomputed["activations"] < memory["activations"] / 7
