"""What the config says to the Trainer: what it would refuse after minutes is refused before data is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.optimization import SchedulerType

from polyhead.predictor import Predictor
from polyhead_training.config import FitConfig, ModelConfig, TrainingConfig
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.arguments import (
    check_best_metric,
    check_scheduler,
    describe_precision,
    greater_is_better,
    precision_of,
    width_of,
)
from tests.training.configs import config_of
from tests.training.tiny_run import history, metrics, run, trained, weights, write_run

NEEDED = {"warmup_stable_decay": {"num_decay_steps": 3}, "cosine_with_min_lr": {"min_lr": 1e-5},
          "cosine_warmup_with_min_lr": {"min_lr": 1e-5}}  # fmt: skip


@pytest.mark.parametrize("name", [known.value for known in SchedulerType])
def test_every_scheduler_of_transformers_is_taken(name: str) -> None:
    """By its name, with the arguments that it cannot do without."""
    check_scheduler(FitConfig(lr_scheduler_type=name, lr_scheduler_kwargs=NEEDED.get(name, {})))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ('lr_scheduler_type = "cosin"', "lr_scheduler_type: got 'cosin', must be one of linear, cosine, "),
        ("lr_scheduler_kwargs = { num_cycles = 3 }", "lr_scheduler_kwargs.num_cycles: linear does not take it; .*none"),
        (
            'lr_scheduler_type = "cosine_with_restarts"\nlr_scheduler_kwargs = { cycles = 3 }',
            "lr_scheduler_kwargs.cycles: cosine_with_restarts does not take it; allowed are num_cycles",
        ),
        (
            'lr_scheduler_type = "cosine_with_restarts"\nlr_scheduler_kwargs = { num_cycles = "three" }',
            "lr_scheduler_kwargs: cosine_with_restarts refuses",
        ),
        ('lr_scheduler_type = "warmup_stable_decay"', "lr_scheduler_kwargs: warmup_stable_decay refuses"),
        ('optim = "adam"', "optim: got 'adam', must be one of auto, muon, adamw_torch, "),
        ('optim = "adamw_bnb_8bit"', "optim 'adamw_bnb_8bit': cannot be used here"),
        ('report_to = ["paper"]', "report_to: must be among .*tensorboard.*got 'paper'"),
        ('report_to = ["comet_ml"]', "report_to: 'comet_ml' is not installed; pip install comet-ml"),
        ('best_metric = "topic/f2"', "best_metric: got 'topic/f2', must be one of loss, stars/mae, .*topic/accuracy"),
        ("freeze_layers = 2", r"freeze_layers: must lie in 0 to n_layer \(1\), got 2"),
    ],
)
def test_a_mistake_is_found_before_training(tmp_path: Path, training: str, message: str) -> None:
    """One line that names the field, the value and what is allowed."""
    result = run(write_run(tmp_path, training))
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert re.search(f"^polyhead-train: training.{message}", result.stderr), result.stderr
    assert "step " not in result.output


def test_cosine_restarts_start_again(tmp_path: Path) -> None:
    """With two cycles in eight steps the rate falls, jumps back up, and falls."""
    training = (
        'eval_steps = 1\nwarmup_ratio = 0.0\nlr_scheduler_type = "cosine_with_restarts"\n'
        "lr_scheduler_kwargs = { num_cycles = 2 }"
    )
    rates = history(trained(write_run(tmp_path, training)), "learning_rate")
    assert rates[0] == rates[4] == 5e-3
    assert rates[3] < rates[2] < rates[1] < rates[0]
    assert rates[7] < rates[6] < rates[5] < rates[4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides otherwise")
def test_precision_follows_processor_and_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto on a CPU is bf16 from 256 channels if the processor multiplies bf16, else fp32; fp16 is an error there."""

    def config(width: int, precision: str = "auto") -> TrainingConfig:
        return config_of(tmp_path, ModelConfig(gpt2={"n_embd": width}), precision=precision)

    for amx, avx512, found in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        assert precision_of(config(256)) == precision_of(config(768)) == found
        assert precision_of(config(192)) == "fp32"
        assert ("faster than fp32" in describe_precision(config(256))) == (found == "bf16")
    assert precision_of(config(64, "bf16")) == describe_precision(config(64, "bf16")) == "bf16"
    assert precision_of(config(768, "fp32")) == "fp32"
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        precision_of(config(768, "fp16"))


def test_the_width_is_known_before_the_body_is_loaded(tmp_path: Path) -> None:
    """From the config, from the folder of pretrained weights, or GPT-2's own 768."""
    assert width_of(ModelConfig()) == width_of(ModelConfig(pretrained="gpt2")) == 768
    assert width_of(ModelConfig(gpt2={"n_embd": 192})) == 192
    (tmp_path / "config.json").write_text('{"n_embd": 128}', encoding="utf-8")
    assert width_of(ModelConfig(pretrained=str(tmp_path))) == 128


def test_half_precision_ends_in_golden_scores_of_float32(tmp_path: Path) -> None:
    """After bf16 training the engine is as near to transformers as ever, and the loss fell."""
    checkpoint = trained(write_run(tmp_path, 'precision = "bf16"\neval_steps = 20\nmax_steps = 40'))
    assert Predictor.load(checkpoint).check_golden() < 1e-5
    assert history(checkpoint, "eval_loss")[1] < history(checkpoint, "eval_loss")[0]


def test_the_direction_of_a_metric_is_known() -> None:
    """Losses and errors are better when lower, all others when higher; counts are no metric to choose by."""
    lower = ["loss", "a/mae", "a/rmse", "a/nll", "a/ece", "a/hamming_loss"]
    assert not any(greater_is_better(name) for name in lower)
    assert all(greater_is_better(name) for name in ["a/accuracy", "a/r2", "loss/accuracy"])
    for count in ("a/rows", "a/taxonomy_rows"):
        with pytest.raises(ConfigError, match=f"got '{count}', must be one of loss, a/mae"):
            check_best_metric(count, [count, "a/mae"])


def test_the_best_checkpoint_is_written_and_training_stops_early(tmp_path: Path) -> None:
    """A rate that ruins the model after a good start: the best evaluation's model is kept, patience ends the run."""
    training = (
        'eval_steps = 1\nmax_steps = 40\nlr_scheduler_type = "constant"\nwarmup_ratio = 0.0\nmax_grad_norm = 1e9\n'
        'optim = "sgd"\nbest_metric = "stars/mae"\nearly_stopping = { patience = 3 }'
    )
    config = write_run(tmp_path, training, "ngrams = false", dropout=0.0)
    config.write_text(
        config.read_text(encoding="utf-8").replace("learning_rate = 5e-3", "learning_rate = 0.15"), "utf-8"
    )
    checkpoint = trained(config)
    errors = history(checkpoint, "eval_stars/mae")
    best = errors.index(min(errors))
    assert len(errors) == best + 1 + 3 < 40
    reached = metrics(checkpoint)
    assert reached["training"]["best_step"] == best + 1
    assert reached["validation"]["stars"]["mae"] == pytest.approx(min(errors), rel=1e-4)


def test_tensorboard_holds_the_losses_when_the_rest_is_gone(tmp_path: Path) -> None:
    """The working folder ends with the logs alone; they hold what was logged."""
    checkpoint = trained(write_run(tmp_path, 'report_to = ["tensorboard"]'))
    assert [path.name for path in (tmp_path / "out.training").iterdir()] == ["logs"]
    events = EventAccumulator(str(tmp_path / "out.training" / "logs")).Reload()
    for tag, name in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(history(checkpoint, name))
    assert "unfinished" not in run(tmp_path / "config.toml").output


def test_a_seed_makes_the_weights(tmp_path: Path) -> None:
    """The same config twice gives identical weights, another seed others."""
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for folder in (first, second, other):
        config = write_run(folder)
        if folder is other:
            config.write_text("seed = 1\n" + config.read_text(encoding="utf-8"), encoding="utf-8")
        trained(config)
    tensors = weights(first / "out")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in weights(second / "out").items())
    assert not torch.equal(weights(other / "out")["head.weight"], tensors["head.weight"])


def test_gradient_checkpointing_changes_no_weight(tmp_path: Path) -> None:
    """It computes again what it did not keep, and nothing else."""
    plain = weights(trained(write_run(tmp_path / "plain", layers=2)))
    again = weights(trained(write_run(tmp_path / "again", "gradient_checkpointing = true", layers=2)))
    for name, tensor in again.items():
        torch.testing.assert_close(tensor, plain[name], atol=1e-6, rtol=0)


def test_freed_memory_is_kept_and_used_again() -> None:
    """After some rounds, 64 MiB that are allocated, filled and freed again and again need no fresh pages."""
    code = (
        "import resource, torch\n"
        "from polyhead_training.fitting.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(4): torch.ones(2**24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "usual = faults()\n"
        "kept = keep_freed_memory()\n"
        "for _ in range(4): faults()\n"
        "print(kept, usual, faults())\n"
    )
    run_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, usual, after = run_.stdout.split()
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert int(after) < 1000 < int(usual)  # 4 * 64 MiB are 65,536 small or 128 huge pages
