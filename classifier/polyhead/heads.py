"""The head modules, which turn pooled hidden states into logits, and their names in a checkpoint.

``ConcatHeadSimple`` and ``ConcatHeadExtended`` keep the layout and key names of that_nlp_library 0.2, so that state
dicts from there load here. A user's own head class is named ``package.module:Class`` and must be installed on the
server. Loading such a checkpoint imports that module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from polyhead.errors import CheckpointError, one_line


class ConcatHeadSimple(nn.Module):
    """Dropout, then one linear layer over the concatenated hidden states.

    Args:
        config: has ``hidden_size`` and, unless `num_labels` is given, ``num_labels``.
        classifier_dropout: probability; active in training only.
        layer2concat: number of concatenated hidden states.
        num_labels: width of the logits.
    """

    def __init__(
        self, config: Any, classifier_dropout: float = 0.1, layer2concat: int = 4, num_labels: int | None = None
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(classifier_dropout)
        self.out_proj = nn.Linear(
            layer2concat * config.hidden_size, config.num_labels if num_labels is None else num_labels
        )

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Maps ``(n, layer2concat * n_embd)`` to logits ``(n, num_labels)``."""
        logits: torch.Tensor = self.out_proj(self.dropout(pooled))
        return logits


class ConcatHeadExtended(nn.Module):
    """Dropout, a tanh layer of ``last_hidden_size`` units, dropout, then the linear layer; other arguments as above."""

    def __init__(
        self,
        config: Any,
        classifier_dropout: float = 0.1,
        last_hidden_size: int = 768,
        layer2concat: int = 4,
        num_labels: int | None = None,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(classifier_dropout)
        self.pre_classifier = nn.Linear(layer2concat * config.hidden_size, last_hidden_size)
        self.out_proj = nn.Linear(last_hidden_size, config.num_labels if num_labels is None else num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Maps ``(n, layer2concat * n_embd)`` to logits ``(n, num_labels)``."""
        hidden = torch.tanh(self.pre_classifier(self.dropout(pooled)))  # (n, last_hidden_size)
        logits: torch.Tensor = self.out_proj(self.dropout(hidden))
        return logits


BUILT_IN: dict[str, type[nn.Module]] = {
    "Linear": nn.Linear,
    "ConcatHeadSimple": ConcatHeadSimple,
    "ConcatHeadExtended": ConcatHeadExtended,
}


def head_class_named(name: str) -> type[nn.Module]:
    """Finds a head class by its name in a checkpoint.

    Raises:
        CheckpointError: it is neither a built-in name nor ``package.module:Class`` of an installed ``nn.Module``.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, separator, class_name = name.partition(":")
    if not separator:
        raise CheckpointError(f"head_class {name!r}: must be one of {sorted(BUILT_IN)} or 'package.module:Class'")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:  # an installed module may raise anything when it is imported
        raise CheckpointError(f"head_class {name!r}: cannot be imported here ({error}); install its package") from error
    # Checked before the call: a checkpoint may name an installed head class, but must not call any other function.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise CheckpointError(f"head_class {name!r}: is not a torch.nn.Module class")
    return found


def head_shapes(
    name: str, config: Any, layer2concat: int | None, arguments: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a head's tensors by their names. A built-in head takes no memory for that, however large it is."""
    try:
        with torch.device("meta"):
            head = build_head(name, config, layer2concat, arguments)
    except CheckpointError:
        if name in BUILT_IN:
            raise
        head = build_head(name, config, layer2concat, arguments)  # this class computes with its tensors when it is made
    return {key: tuple(tensor.shape) for key, tensor in head.state_dict().items()}


def build_head(name: str, config: Any, layer2concat: int | None, arguments: Mapping[str, Any]) -> nn.Module:
    """Makes a head as that_nlp_library does: ``Linear`` without bias, other classes from config and arguments."""
    head_class = head_class_named(name)
    try:
        if head_class is nn.Linear:
            if arguments:
                raise TypeError(f"the Linear head takes no arguments, got {sorted(arguments)}")
            return nn.Linear(config.n_embd, config.num_labels, bias=False)
        if name in BUILT_IN and arguments.get("num_labels", config.num_labels) != config.num_labels:
            raise ValueError(f"num_labels must be {config.num_labels}, the labels of all heads, or be left out")
        concat = {} if layer2concat is None else {"layer2concat": layer2concat}
        return head_class(config=config, **concat, **arguments)
    except (Exception, SystemExit) as error:  # a head class may raise anything for wrong arguments
        raise CheckpointError(f"head_args for {name!r}: {one_line(error)}") from error
