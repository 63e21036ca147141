"""A model's layers: freezes some, sets the learning rate of the others, and adds low-rank adapters."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import LoraModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from polyhead_training.config import LoraConfig
from polyhead_training.errors import ConfigError


def freeze(model: Any, layers: int) -> None:
    """Freezes the embeddings and the lowest `layers` blocks; nothing for 0.

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
    """The factor of a parameter's learning rate: 1 for the head, and less for each layer below it.

    Args:
        name: in the classifier, as ``body_model.h.0.ln_1.weight``.
    """
    if not name.startswith("body_model."):
        return 1.0
    block = re.match(r"body_model\.h\.(\d+)\.", name)
    if block:
        return float(decay ** (n_layer - int(block[1])))
    is_embedding = re.match(r"body_model\.w[tp]e\.", name)
    return float(decay ** (n_layer + 1)) if is_embedding else decay  # ln_f learns like the topmost block


def regroup(optimizer: torch.optim.Optimizer, model: nn.Module, n_layer: int, decay: float) -> None:
    """Splits each parameter group of a fresh optimizer by layer and gives each part its learning rate."""
    multiplier = {parameter: lr_multiplier(name, n_layer, decay) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for factor in sorted({multiplier[parameter] for parameter in group["params"]}, reverse=True):
            parameters = [parameter for parameter in group["params"] if multiplier[parameter] == factor]
            groups.append(group | {"params": parameters, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = groups


def check_adapters(model: Any, config: LoraConfig, freeze_layers: int = 0) -> None:
    """Makes sure that each of `target_modules` names modules that can have adapters, and that a block gets some.

    Raises:
        ConfigError: names the field and what is allowed.
    """
    layers = model.config.n_layer
    if freeze_layers >= layers:
        raise ConfigError(
            f"training.freeze_layers: must be below n_layer ({layers}) with [lora], got {freeze_layers}; "
            "frozen blocks get no adapters"
        )
    modules = [name for name, module in model.body_model.h[0].named_modules() if isinstance(module, Conv1D)]
    allowed = sorted({".".join(name.split(".")[-parts:]) for name in modules for parts in (1, 2)})
    if not config.target_modules or not set(config.target_modules) <= set(allowed):
        raise ConfigError(f"lora.target_modules: must be among {', '.join(allowed)}, got {config.target_modules}")


def add_adapters(model: Any, config: LoraConfig, freeze_layers: int = 0) -> LoraModel:
    """Adds adapters to ``model.body_model`` and freezes its own weights. The head is trained as before.

    Args:
        freeze_layers: the lowest blocks, this many, get no adapters.

    Returns:
        What `merge_adapters` takes.

    Raises:
        ConfigError: as `check_adapters`.
    """
    check_adapters(model, config, freeze_layers)
    peft_config = PeftConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by r; a fraction is as good as an int
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        layers_to_transform=list(range(freeze_layers, model.config.n_layer)),
        layers_pattern="h",
        fan_in_fan_out=True,  # GPT-2's Conv1D keeps its weights as (in, out)
    )
    # Modules are replaced inside the body, so the classifier keeps using the same body.
    return LoraModel(model.body_model, peft_config, "default")


def merge_adapters(model: Any, adapted: LoraModel) -> None:
    """Adds the adapters to the weights and removes them: the keys are those of a plain GPT-2 again."""
    model.body_model = adapted.merge_and_unload(safe_merge=True)
