"""The optimizers: their names, which weights Muon gets, and the optimizer of Muon and AdamW."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D
from transformers.training_args import OptimizerNames

from polyhead_training.config import TrainingConfig
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.muon import Muon

AUTO, MUON, ADAMW = "auto", "muon", OptimizerNames.ADAMW_TORCH_FUSED.value
NAMES = (AUTO, MUON, *(name.value for name in OptimizerNames))


def chosen_optimizer(name: str, config: TrainingConfig, field: str) -> str:
    """The optimizer that a config means: ``auto`` is Muon from scratch and AdamW for pretrained weights.

    Args:
        name: the value of `field`.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in NAMES:
        raise ConfigError(f"{field}: got {name!r}, must be one of {', '.join(NAMES)}")
    if name != AUTO:
        return name
    return MUON if config.model.pretrained is None else ADAMW


def trainer_optimizer(name: str) -> str:
    """What the Trainer, which has no Muon, is told: AdamW, which Muon needs for the other weights."""
    return ADAMW if name == MUON else name


def describe_optimizer(name: str, model: nn.Module) -> str:
    """The line that a run says about its optimizer."""
    if name != MUON:
        return f"optimizer: {name}"
    matrices = len(muon_matrices(model))
    if not matrices:
        return "optimizer: AdamW; no matrix for muon"
    return f"optimizer: muon for {matrices} matrices, AdamW for the rest"


def muon_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices of the transformer blocks. Embeddings, heads and adapters are no matrices of a block."""
    blocks = [module for module in model.modules() if isinstance(module, GPT2Block)]
    modules = [module for block in blocks for module in block.modules() if isinstance(module, Conv1D)]
    return [module.weight for module in modules if module.weight.requires_grad]


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer of which some groups are Muon's and some AdamW's.

    It owns groups and state, so schedulers, accelerate and resuming see nothing special.

    Args:
        muon: a group of matrices.
        adamw: groups of other parameters.
        defaults: AdamW's arguments.
    """

    def __init__(self, muon: dict[str, Any], adamw: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon([muon], lr=defaults["lr"], weight_decay=0.0),
            torch.optim.AdamW(adamw, **defaults),
        )
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["use_muon"] = isinstance(optimizer, Muon)
        super().__init__([group for optimizer in self._optimizers for group in optimizer.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the Trainer has no closure
        """One step of both. They are given groups and state anew, because a resumed run replaces both."""
        for optimizer in self._optimizers:
            is_muon = isinstance(optimizer, Muon)
            optimizer.param_groups = [group for group in self.param_groups if group["use_muon"] == is_muon]
            optimizer.state = self.state
            optimizer.step()


def muon_with_adamw(
    model: nn.Module, decayed: Container[str], weight_decay: float, adamw: dict[str, Any]
) -> MuonWithAdamW | None:
    """The optimizer of a model; None if it has no matrix for Muon, as with adapters.

    Args:
        decayed: names of the parameters with weight decay.
        adamw: AdamW's arguments.
    """
    matrices = muon_matrices(model)
    if not matrices:
        return None
    taken = set(matrices)
    rest = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad and weight not in taken]
    others = [
        {
            "params": [weight for name, weight in rest if (name in decayed) == has_decay],
            "weight_decay": weight_decay if has_decay else 0.0,
        }
        for has_decay in (True, False)
    ]
    return MuonWithAdamW({"params": matrices, "weight_decay": weight_decay}, others, adamw)
