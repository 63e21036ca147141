"""Muon for the matrices of the blocks and AdamW for the rest, as one optimizer."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead_training.config import LoraConfig, ModelConfig
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.arguments import training_arguments
from polyhead_training.fitting.muon import Muon, orthogonalized, precision_of
from polyhead_training.fitting.optimizers import (
    AUTO,
    MUON,
    chosen_optimizer,
    describe_optimizer,
    muon_matrices,
)
from polyhead_training.fitting.trainer import ClassifierTrainer
from polyhead_training.model.layers import add_adapters, freeze
from tests.tiny import tiny_model, tiny_spec
from tests.training.configs import config_of
from tests.training.tiny_run import history, run, trained, write_run

MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


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
    """Embeddings, norms, biases and heads are AdamW's, the first and the last of these with weight decay."""
    model = tiny_model(tiny_spec("hidden_state_concat"))
    groups = group_of(optimizer_of(model, tmp_path), model)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    matrices = {f"body_model.h.{layer}.{name}" for layer in range(3) for name in MATRICES}
    assert {name for name, group in groups.items() if group["use_muon"]} == matrices
    assert all(groups[name]["weight_decay"] == 0.1 for name in matrices)
    assert all(group["lr"] == 1e-2 for group in groups.values())
    decayed = {name for name, group in groups.items() if group["weight_decay"]} - matrices
    assert decayed == {"body_model.wte.weight", "body_model.wpe.weight", "head.out_proj.weight"}


def test_steps_equal_those_of_torchs_muon_and_adamw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps with the same gradients: the same bits as torch.optim.AdamW and, in bf16, torch.optim.Muon alone."""
    monkeypatch.setattr("polyhead_training.fitting.muon.precision_of", lambda device: torch.bfloat16)
    model, expected = tiny_model(tiny_spec()), tiny_model(tiny_spec())
    optimizer = optimizer_of(model, tmp_path)
    matrices = [parameter for name, parameter in expected.named_parameters() if name.endswith(MATRICES)]
    rest = [parameter for name, parameter in expected.named_parameters() if not name.endswith(MATRICES)]
    decayed = {"params": [parameter for parameter in rest if parameter.ndim == 2], "weight_decay": 0.1}
    others = {"params": [parameter for parameter in rest if parameter.ndim != 2], "weight_decay": 0.0}
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([decayed, others], lr=1e-2, fused=True)
    for step in range(3):
        for each in (model, expected):
            set_gradients(each, step)
        for made in (optimizer, muon, adamw):
            made.step()
    for name, parameter in expected.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name], parameter), name


def test_a_step_is_orthogonal_and_as_long_as_adamws(tmp_path: Path) -> None:
    """From the singular values of c_fc's first step, without weight decay: they are near 0.2 * sqrt(128) learning
    rates, though those of the gradient are very unequal. So the 32 x 128 entries move by 0.2 learning rates on average,
    which is usual for AdamW.
    """
    model = tiny_model(tiny_spec())
    optimizer = optimizer_of(model, tmp_path)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    set_gradients(model, 0)
    matrix = model.body_model.h[0].mlp.c_fc.weight
    start = matrix.detach().clone()
    matrix.grad *= torch.logspace(-1, 1, 128)
    optimizer.step()
    moved = (start - matrix.detach()) / 1e-2
    values = torch.linalg.svdvals(moved) / (0.2 * 128**0.5)
    assert values.median() == pytest.approx(1, abs=0.3)
    assert (float(values.min()), float(values.max())) == pytest.approx((0.9, 0.9), abs=0.4)
    assert moved.square().mean().sqrt() == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("shape", [(32, 128), (128, 32), (16, 16)])
def test_fp32_orthogonalizes_as_bf16_does(shape: tuple[int, int]) -> None:
    """Both have singular values near 1, and differ by bf16's rounding."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact, rounded = (orthogonalized(matrix, dtype) for dtype in (torch.float32, torch.bfloat16))
    values = torch.linalg.svdvals(exact)
    assert (float(values.min()), float(values.max())) == pytest.approx((0.95, 0.95), abs=0.3)
    torch.testing.assert_close(exact, rounded.float(), rtol=0, atol=0.03)


def test_bf16_is_used_where_products_are_quick_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bf16 products computes in fp32, and GPUs in bf16."""
    for is_quick, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda is_quick=is_quick: is_quick)
        assert precision_of(torch.device("cpu")) == expected
        assert precision_of(torch.device("cuda")) == torch.bfloat16


def test_a_transposed_matrix_takes_the_transposed_step() -> None:
    """GPT-2's (in, out) weights and a Linear's (out, in) weights are trained alike, within bf16's rounding."""
    torch.manual_seed(0)
    start, gradient = torch.randn(32, 128), torch.randn(32, 128)
    steps = []
    for turn in (lambda matrix: matrix.clone(), lambda matrix: matrix.T.clone()):
        parameter = torch.nn.Parameter(turn(start))
        parameter.grad = turn(gradient)
        Muon([parameter], lr=1e-2, weight_decay=0.1).step()
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
    assert describe_optimizer(MUON, model) == "optimizer: muon for 8 matrices, AdamW for the rest"


def test_adapters_have_adamw(tmp_path: Path) -> None:
    """With LoRA no matrix of a block is trained, so the optimizer is the Trainer's AdamW, and the run says so."""
    model = tiny_model(tiny_spec())
    add_adapters(model, LoraConfig(r=2))
    assert not muon_matrices(model)
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


def test_a_gradient_scaler_works_as_with_any_optimizer(tmp_path: Path) -> None:
    """fp16: scaled gradients make the same step as plain ones, and a step with an infinite gradient is left out."""
    model, expected = tiny_model(tiny_spec()), tiny_model(tiny_spec())
    optimizer, plain = optimizer_of(model, tmp_path), optimizer_of(expected, tmp_path)
    for each in (model, expected):
        set_gradients(each, 0)
    plain.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(1))  # the scaler gets its scale
    for parameter in model.parameters():
        parameter.grad *= 1024
    scaler.step(optimizer)
    scaler.update()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(torch.equal(weight, other) for weight, other in zip(weights, expected.parameters(), strict=True))
    model.body_model.h[0].mlp.c_fc.weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    assert all(torch.equal(weight, other) for weight, other in zip(weights, model.parameters(), strict=True))


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
    assert "warm start: optimizer: muon for 8 matrices, AdamW for the rest\n" in result.output
    assert "\noptimizer: muon for 8 matrices, AdamW for the rest\n" in result.output
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
    assert "\noptimizer: muon for 4 matrices, AdamW for the rest\n" in output


def test_an_unknown_name_is_a_config_error(tmp_path: Path) -> None:
    """Names are compared as they are written."""
    with pytest.raises(ConfigError, match=r"training.optim: got 'Muon', must be one of auto, muon, "):
        chosen_optimizer("Muon", config_of(tmp_path), "training.optim")
