"""A model's layers, from the embeddings up to the head: which keep their weights, and how fast the others learn."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from polyhead_training.errors import ConfigError


def freeze(model: Any, layers: int) -> None:
    """Embeddings and the lowest `layers` blocks keep their weights; nothing happens for 0.

    Raises:
        ConfigError: the model has fewer blocks.
    """
    n_layer = model.config.n_layer
    if layers > n_layer:
        raise ConfigError(f"training.freeze_layers: must lie in 0 to n_layer ({n_layer}), got {layers}")
    if layers:
        body = model.body_model
        for module in (body.wte, body.wpe, *body.h[:layers]):
            module.requires_grad_(False)


def lr_multiplier(name: str, n_layer: int, decay: float) -> float:
    """What a parameter's learning rate is multiplied with: 1 for the head, less the deeper below it.

    Args:
        name: in the classifier, as ``body_model.h.0.ln_1.weight``.
    """
    if not name.startswith("body_model."):
        return 1.0
    block = re.match(r"body_model\.h\.(\d+)\.", name)
    if block:
        return decay ** (n_layer - int(block[1]))
    is_embedding = re.match(r"body_model\.w[tp]e\.", name)
    return decay ** (n_layer + 1) if is_embedding else decay  # ln_f learns as the topmost block


def regroup(optimizer: torch.optim.Optimizer, model: nn.Module, n_layer: int, decay: float) -> None:
    """Splits each of a fresh optimizer's parameter groups by layer and gives each part its learning rate."""
    multiplier = {parameter: lr_multiplier(name, n_layer, decay) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for factor in sorted({multiplier[parameter] for parameter in group["params"]}, reverse=True):
            parameters = [parameter for parameter in group["params"] if multiplier[parameter] == factor]
            groups.append(group | {"params": parameters, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = groups
