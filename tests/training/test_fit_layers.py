"""Which layers keep their weights, and how fast the others learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead_training.fitting.arguments import training_arguments
from polyhead_training.fitting.trainer import ClassifierTrainer
from polyhead_training.model.layers import freeze, lr_multiplier
from tests.tiny import tiny_model, tiny_spec
from tests.training.configs import config_of
from tests.training.tiny_run import metrics, trained, weights, write_run


def trainer_of(model: Any, folder: Path, **fields: Any) -> ClassifierTrainer:
    """A trainer without rows, for its optimizer."""
    config = config_of(folder, learning_rate=1e-2, weight_decay=0.1, **fields)
    arguments = training_arguments(config, folder)
    return ClassifierTrainer(
        model=model, args=arguments, eval_dataset=[], layer_lr_decay=config.training.layer_lr_decay
    )


def test_rates_fall_from_the_head_to_the_embeddings(tmp_path: Path) -> None:
    """Each parameter is in one group, with its layer's rate; biases and layer norms stay without weight decay."""
    model = tiny_model(tiny_spec())
    optimizer = trainer_of(model, tmp_path, layer_lr_decay=0.5).create_optimizer()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert found["head.weight"] == (1e-2, 0.1)
    assert found["body_model.ln_f.weight"] == (0.5e-2, 0.0)
    assert found["body_model.h.2.mlp.c_fc.weight"] == (0.5e-2, 0.1)
    assert found["body_model.h.1.attn.c_attn.bias"] == (0.25e-2, 0.0)
    assert found["body_model.h.0.ln_1.weight"] == (0.125e-2, 0.0)
    assert found["body_model.wte.weight"] == found["body_model.wpe.weight"] == (0.0625e-2, 0.1)


def test_without_decay_the_optimizer_is_the_trainers(tmp_path: Path) -> None:
    """Two groups: with weight decay and without."""
    optimizer = trainer_of(tiny_model(tiny_spec()), tmp_path).create_optimizer()
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(1e-2, 0.1), (1e-2, 0.0)]


def test_frozen_parameters_are_in_no_group(tmp_path: Path) -> None:
    """Embeddings and the lowest block are not given to the optimizer."""
    model = tiny_model(tiny_spec())
    freeze(model, 1)
    optimizer = trainer_of(model, tmp_path, layer_lr_decay=0.5).create_optimizer()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[parameter] for group in optimizer.param_groups for parameter in group["params"]}
    frozen = {name for name in names.values() if name.startswith(("body_model.w", "body_model.h.0."))}
    assert found == set(names.values()) - frozen


@pytest.mark.parametrize(
    ("name", "power"), [("head.out_proj.bias", 0), ("body_model.h.11.ln_2.bias", 1), ("body_model.h.1.ln_2.bias", 11)]
)
def test_a_multiplier_counts_blocks_by_number(name: str, power: int) -> None:
    """Block 11 is the top of twelve, and block 1 is not taken for it."""
    assert lr_multiplier(name, 12, 0.9) == pytest.approx(0.9**power)


def test_frozen_layers_keep_their_weights(tmp_path: Path) -> None:
    """After a run with the lowest block frozen it is as before, the others are not; the trained share is said."""
    torch.manual_seed(0)
    before = weights(trained(write_run(tmp_path / "start", layers=2)))
    pretrained = f'pretrained = "{tmp_path / "start" / "out"}"'
    checkpoint = trained(write_run(tmp_path / "frozen", "freeze_layers = 1", pretrained))
    for name, tensor in weights(checkpoint).items():
        is_frozen = name.startswith(("body_model.w", "body_model.h.0."))
        assert torch.equal(tensor, before[name]) == is_frozen, name
    training = metrics(checkpoint)["training"]
    assert 0 < training["trained_parameters"] < training["parameters"]
