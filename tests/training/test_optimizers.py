"""Muon for the matrices of the blocks and AdamW for the rest, as one optimizer."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead_training.config import DataConfig, FitConfig, HeadConfig, LoraConfig, ModelConfig, TrainingConfig
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.arguments import training_arguments
from polyhead_training.fitting.optimizers import (
    AUTO,
    MUON,
    PartsMuon,
    chosen_optimizer,
    describe_optimizer,
    muon_matrices,
)
from polyhead_training.fitting.trainer import ClassifierTrainer
from polyhead_training.model.layers import add_adapters, freeze
from tests.tiny import tiny_model, tiny_spec
from tests.training.tiny_run import history, run, trained, write_run

MATRICES = {"attn.c_attn.weight": 3, "attn.c_proj.weight": 1, "mlp.c_fc.weight": 1, "mlp.c_proj.weight": 1}


def config_of(folder: Path, model: ModelConfig | None = None, **training: Any) -> TrainingConfig:
    """A config whose data is never read."""
    return TrainingConfig(
        output=folder,
        data=DataConfig(train="rows.csv"),
        model=model or ModelConfig(),
        heads=[HeadConfig(name="a", kind="regression")],
        training=FitConfig(**training),
    )


def optimizer_of(model: Any, folder: Path, **training: Any) -> torch.optim.Optimizer:
    """The optimizer that a run with Muon makes."""
    config = config_of(folder, learning_rate=1e-2, weight_decay=0.1, **training)
    decay = config.training.layer_lr_decay
    arguments = training_arguments(config, folder)
    trainer = ClassifierTrainer(model=model, args=arguments, eval_dataset=[], muon=True, layer_lr_decay=decay)
    return trainer.create_optimizer()


def set_gradients(model: Any, seed: int) -> None:
    """Random gradients, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def group_of(optimizer: torch.optim.Optimizer, model: Any) -> dict[str, dict[str, Any]]:
    """Each trained parameter's group, by the parameter's name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[parameter], group) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_the_rest(tmp_path: Path) -> None:
    """c_attn counts as query, key and value. Embeddings, norms, biases and heads are AdamW's, the first and the last of
    these with weight decay.
    """
    model = tiny_model(tiny_spec("hidden_state_concat"))
    groups = group_of(optimizer_of(model, tmp_path), model)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    matrices = {f"body_model.h.{layer}.{name}": parts for layer in range(3) for name, parts in MATRICES.items()}
    assert {name: group["parts"] for name, group in groups.items() if group["use_muon"]} == matrices
    assert all(groups[name]["weight_decay"] == 0.1 for name in matrices)
    assert all(group["lr"] == 1e-2 for group in groups.values())
    decayed = {name for name, group in groups.items() if group["weight_decay"]} - set(matrices)
    assert decayed == {"body_model.wte.weight", "body_model.wpe.weight", "head.out_proj.weight"}


def test_steps_equal_those_of_torchs_muon_and_adamw(tmp_path: Path) -> None:
    """Three steps with the same gradients: the same bits as torch.optim.Muon on query, key and value as matrices of
    their own, and torch.optim.AdamW.
    """
    model, expected = tiny_model(tiny_spec()), tiny_model(tiny_spec())
    optimizer = optimizer_of(model, tmp_path)
    matrices = {name: parameter for name, parameter in expected.named_parameters() if name.endswith(tuple(MATRICES))}
    copies = {
        name: [part.clone().requires_grad_() for part in matrix.detach().chunk(3 if "c_attn" in name else 1, dim=1)]
        for name, matrix in matrices.items()
    }
    rest = [parameter for name, parameter in expected.named_parameters() if name not in matrices]
    muon = torch.optim.Muon(
        [part for parts in copies.values() for part in parts],
        lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    adamw = torch.optim.AdamW(
        [
            {"params": [parameter for parameter in rest if parameter.ndim == 2], "weight_decay": 0.1},
            {"params": [parameter for parameter in rest if parameter.ndim != 2], "weight_decay": 0.0},
        ],
        lr=1e-2, fused=True,
    )  # fmt: skip
    for step in range(3):
        for each in (model, expected):
            set_gradients(each, step)
        for name, parts in copies.items():
            assert matrices[name].grad is not None
            for part, gradient in zip(parts, matrices[name].grad.chunk(len(parts), dim=1), strict=True):
                part.grad = gradient.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    for name, parameter in expected.named_parameters():
        wanted = torch.cat(copies[name], 1) if name in copies else parameter
        assert torch.equal(dict(model.named_parameters())[name], wanted), name


def test_each_part_is_orthogonalized_and_moves_as_far_as_with_adamw() -> None:
    """By the singular values of a step without weight decay: each of the three 32 x 32 parts has them near
    0.2 * sqrt(32) times the learning rate, so that its entries move by about 0.2 learning rates; over the whole matrix
    of 32 x 96 they would be equal as well, but its parts would not.
    """
    torch.manual_seed(0)
    scales = torch.tensor([1.0, 30.0, 0.1]).repeat_interleave(32)  # value's gradient may be far from query's
    start = torch.randn(32, 96)
    parameter = torch.nn.Parameter(start.clone())
    parameter.grad = torch.randn(32, 96) * scales
    groups = [{"params": [parameter], "parts": 3, "weight_decay": 0.0}]
    PartsMuon(groups, lr=1e-2, adjust_lr_fn="match_rms_adamw").step()
    moved = (start - parameter.detach()) / 1e-2
    for part in moved.chunk(3, dim=1):
        values = torch.linalg.svdvals(part) / (0.2 * 32**0.5)
        assert values.median() == pytest.approx(1, abs=0.3)
        assert values.max() < 1.5
        assert part.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_a_transposed_matrix_takes_the_transposed_step() -> None:
    """GPT-2's (in, out) weights and a Linear's (out, in) weights are trained alike, within bf16's rounding."""
    torch.manual_seed(0)
    start, gradient = torch.randn(32, 128), torch.randn(32, 128)
    steps = []
    for turn in (lambda matrix: matrix.clone(), lambda matrix: matrix.T.clone()):
        parameter = torch.nn.Parameter(turn(start))
        parameter.grad = turn(gradient)
        torch.optim.Muon([parameter], lr=1e-2, adjust_lr_fn="match_rms_adamw").step()
        steps.append(turn(parameter.detach()) - start)
    torch.testing.assert_close(steps[0], steps[1], rtol=0.02, atol=1e-4)


def test_layers_have_their_own_rates(tmp_path: Path) -> None:
    """layer_lr_decay holds for the matrices of Muon as for the other weights."""
    model = tiny_model(tiny_spec())
    groups = group_of(optimizer_of(model, tmp_path, layer_lr_decay=0.5), model)
    assert groups["head.weight"]["lr"] == 1e-2
    for layer, rate in ((2, 0.5e-2), (1, 0.25e-2), (0, 0.125e-2)):
        for name in (*MATRICES, "ln_1.weight", "mlp.c_fc.bias"):
            assert groups[f"body_model.h.{layer}.{name}"]["lr"] == rate
    assert groups["body_model.wte.weight"]["lr"] == 0.0625e-2
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = optimizer_of(model, tmp_path, layer_lr_decay=0.5)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    set_gradients(model, 0)
    optimizer.step()
    moved = {
        name: (parameter.detach() - before[name]).square().mean().sqrt() for name, parameter in model.named_parameters()
    }
    for layer in (0, 1):  # each layer moves half as far as the one above it
        ratio = moved[f"body_model.h.{layer + 1}.mlp.c_fc.weight"] / moved[f"body_model.h.{layer}.mlp.c_fc.weight"]
        assert ratio == pytest.approx(2, rel=0.1)


def test_frozen_blocks_are_not_trained(tmp_path: Path) -> None:
    """Their matrices are in no group, so a step leaves them as they are, and they are not counted."""
    model = tiny_model(tiny_spec())
    freeze(model, 1)
    optimizer = optimizer_of(model, tmp_path)
    frozen = {name for name, _ in model.named_parameters() if name.startswith(("body_model.w", "body_model.h.0."))}
    assert set(group_of(optimizer, model)) == {name for name, _ in model.named_parameters()} - frozen
    assert describe_optimizer(MUON, model) == "optimizer: muon for 12 matrices, AdamW for the rest"


def test_adapters_have_adamw(tmp_path: Path) -> None:
    """With LoRA no matrix of a block is trained, so the optimizer is the Trainer's AdamW, and the run says so."""
    model = tiny_model(tiny_spec())
    add_adapters(model, LoraConfig(r=2))
    assert not list(muon_matrices(model))
    optimizer = optimizer_of(model, tmp_path)
    assert type(optimizer) is torch.optim.AdamW
    assert {name for name in group_of(optimizer, model) if "lora_" not in name} == {"head.weight"}
    assert describe_optimizer(MUON, model) == "optimizer: AdamW; no matrix for muon"


def test_a_saved_state_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Two steps, saved, read by torch.load(weights_only=True), and two more: the same as four steps."""
    model, resumed = tiny_model(tiny_spec()), tiny_model(tiny_spec())
    first = optimizer_of(model, tmp_path, layer_lr_decay=0.5)
    for step in range(2):
        set_gradients(model, step)
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(model.state_dict())
    second = optimizer_of(resumed, tmp_path, layer_lr_decay=0.5)
    second.load_state_dict(torch.load(file, weights_only=True))
    for each, optimizer in ((model, first), (resumed, second)):
        for step in (2, 3):
            set_gradients(each, step)
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name
        state, again = first.state[parameter], second.state[dict(resumed.named_parameters())[name]]
        assert all(torch.equal(state[key], again[key]) for key in state), name


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        ({}, "auto", "muon"),
        ({"pretrained": "gpt2"}, "auto", "adamw_torch_fused"),
        ({"pretrained": "gpt2"}, "muon", "muon"),
        ({}, "adafactor", "adafactor"),
    ],
)
def test_auto_is_muon_from_scratch_and_adamw_for_pretrained_weights(
    tmp_path: Path, model: dict[str, Any], name: str, expected: str
) -> None:
    """Any other name is taken as it is."""
    assert chosen_optimizer(name, config_of(tmp_path, ModelConfig(**model)), "training.optim") == expected


@pytest.mark.parametrize("section", ["training", "warm_start"])
def test_an_unknown_optimizer_names_the_choices(tmp_path: Path, section: str) -> None:
    """Before any data is read, for training and warm start alike."""
    more = '[warm_start]\noptim = "moun"' if section == "warm_start" else ""
    result = run(write_run(tmp_path, 'optim = "moun"' if section == "training" else "", more=more))
    assert result.exit_code == 2
    pattern = rf"polyhead-train: {section}.optim: got 'moun', must be one of auto, muon, adamw_torch, .*adafactor.*\n"
    assert re.fullmatch(pattern, result.stderr), result.stderr
    assert "reading data" not in result.output


def test_a_package_that_an_optimizer_lacks_is_named_for_the_warm_start(tmp_path: Path) -> None:
    """As for training: before any data is read."""
    result = run(write_run(tmp_path, more='[warm_start]\noptim = "adamw_bnb_8bit"'))
    assert result.exit_code == 2
    assert result.stderr.startswith("polyhead-train: warm_start.optim 'adamw_bnb_8bit': cannot be used here (")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_from_scratch_says_muon_and_learns(tmp_path: Path, precision: str) -> None:
    """Warm start and training say their optimizer; the loss of the rows falls below half, in bf16 too."""
    training = f'max_steps = 60\neval_steps = 20\nprecision = "{precision}"'
    path = write_run(tmp_path, training, more="[warm_start]\nbatch_size = 2\n", layers=2, dropout=0.0)
    result = run(path)
    assert result.exit_code == 0, result.output
    assert "warm start: optimizer: muon for 12 matrices, AdamW for the rest\n" in result.output
    assert "\noptimizer: muon for 12 matrices, AdamW for the rest\n" in result.output
    losses = history(tmp_path / "out", "eval_loss")
    assert losses[-1] < losses[0] / 2


def test_a_run_with_pretrained_weights_says_adamw(tmp_path: Path) -> None:
    """Its warm start too; either can be told to use Muon."""
    trained(write_run(tmp_path / "start"))
    pretrained = f'pretrained = "{tmp_path / "start" / "out"}"'
    more = "[warm_start]\nbatch_size = 2\n"
    output = run(write_run(tmp_path / "auto", model=pretrained, more=more)).output
    assert output.count("optimizer: adamw_torch_fused\n") == 2
    training = f'optim = "{MUON}"'
    output = run(write_run(tmp_path / "told", training, pretrained, more=f'{more}optim = "{AUTO}"')).output
    assert "warm start: optimizer: adamw_torch_fused\n" in output
    assert "\noptimizer: muon for 6 matrices, AdamW for the rest\n" in output


def test_an_unknown_name_is_a_config_error(tmp_path: Path) -> None:
    """Names are compared as they are written."""
    with pytest.raises(ConfigError, match=r"training.optim: got 'Muon', must be one of auto, muon, "):
        chosen_optimizer("Muon", config_of(tmp_path), "training.optim")
