"""Low-rank adapters on the body through peft: added before training, merged into plain GPT-2 weights after it."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig as PeftConfig
from peft import LoraModel
from transformers.pytorch_utils import Conv1D

from polyhead_training.config import LoraConfig
from polyhead_training.errors import ConfigError


def check_adapters(model: Any, config: LoraConfig, freeze_layers: int = 0) -> None:
    """Makes sure that each name stands for modules of the blocks that can have adapters, and that a block gets some.

    Raises:
        ConfigError: names the field and what is there.
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
    """Puts adapters into ``model.body_model``, whose own weights then stay; the head is trained as before.

    Args:
        freeze_layers: this many blocks, from below, get none.

    Returns:
        What `merge_adapters` takes.

    Raises:
        ConfigError: as `check_adapters`.
    """
    check_adapters(model, config, freeze_layers)
    peft_config = PeftConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        layers_to_transform=list(range(freeze_layers, model.config.n_layer)),
        layers_pattern="h",
        fan_in_fan_out=True,  # GPT-2's Conv1D keeps its weights as (in, out)
    )
    # The modules are replaced inside the body, so that the classifier goes on using it as its own.
    return LoraModel(model.body_model, peft_config, "default")


def merge_adapters(model: Any, adapted: LoraModel) -> None:
    """Adds the adapters to the weights and takes them out: the keys are those of a plain GPT-2 again."""
    model.body_model = adapted.merge_and_unload(safe_merge=True)
