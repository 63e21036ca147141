"""The optimizers: their names, which weights Muon gets, and the optimizer of Muon and AdamW."""

from __future__ import annotations

from collections.abc import Container, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D
from transformers.training_args import OptimizerNames

from polyhead_training.config import TrainingConfig
from polyhead_training.errors import ConfigError

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
    matrices = sum(parts for _, parts in muon_matrices(model))
    if not matrices:
        return "optimizer: AdamW; no matrix for muon"
    return f"optimizer: muon for {matrices} matrices, AdamW for the rest"


def muon_matrices(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """The trained matrices of the transformer blocks, and how many matrices each holds side by side.

    ``c_attn`` holds those of query, key and value. Embeddings, heads and adapters are no matrices of a block.
    """
    for block in model.modules():
        if isinstance(block, GPT2Block):
            for name, module in block.named_modules():
                if isinstance(module, Conv1D) and module.weight.requires_grad:
                    yield module.weight, 3 if name.endswith("c_attn") else 1


class PartsMuon(torch.optim.Muon):
    """Muon that orthogonalizes each of several matrices that one parameter holds side by side: ``parts`` of its group.

    GPT-2's weights are (in, out). That changes nothing: the orthogonalized transpose is the transposed orthogonalized
    matrix, and ``match_rms_adamw`` depends on the longer side only.
    """

    def _init_group(
        self, group: MutableMapping[str, Any], params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]
    ) -> bool:
        found: tuple[list[Tensor], ...] = ([], [], [])
        has_complex = super()._init_group(group, *found)
        for wholes, parts in zip(found, (params, grads, buffers), strict=True):
            parts += [part for whole in wholes for part in whole.chunk(group["parts"], dim=1)]  # views
        return has_complex


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer of which some groups are Muon's (Jordan et al. 2024, kellerjordan.github.io/posts/muon) and some
    AdamW's. It owns groups and state, so schedulers, accelerate and resuming see nothing special.

    Muon's steps are as long as AdamW's (Liu et al. 2025, arXiv:2502.16982), so both have one learning rate and one
    weight decay.

    Args:
        muon: groups with ``parts``; see `PartsMuon`.
        adamw: groups.
        defaults: AdamW's arguments.
    """

    def __init__(self, muon: list[dict[str, Any]], adamw: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        self._muon = PartsMuon(muon, lr=defaults["lr"], adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(adamw, **defaults)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["use_muon"] = optimizer is self._muon
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @property
    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return self._muon, self._adamw

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the Trainer has no closure
        """One step of both. They are given groups and state anew, because a resumed run replaces both."""
        for optimizer in self._optimizers:
            is_muon = optimizer is self._muon
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
    matrices = dict(muon_matrices(model))
    if not matrices:
        return None
    muon = [
        {"params": found, "parts": parts, "weight_decay": weight_decay}
        for parts in (1, 3)
        if (found := [parameter for parameter, held in matrices.items() if held == parts])
    ]
    rest = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter not in matrices
    ]
    others = [
        {
            "params": [parameter for name, parameter in rest if (name in decayed) == has_decay],
            "weight_decay": weight_decay if has_decay else 0.0,
        }
        for has_decay in (True, False)
    ]
    return MuonWithAdamW(muon, others, adamw)
