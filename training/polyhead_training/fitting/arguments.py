"""The arguments of transformers' Trainer, made from the config and checked before anything is read or trained."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.trainer_utils import SchedulerType

from polyhead.errors import one_line
from polyhead.precision import fastest_precision
from polyhead_training.config import FitConfig, ModelConfig, TrainingConfig
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.optimizers import chosen_optimizer, trainer_optimizer

# On a CPU with bf16, it trains 1.8 times as fast at 256 channels and 1.4 times at 192. Narrower models take minutes
# anyhow, so they keep float32. See docs/decisions/0005-packed-training.md.
BF16_WIDTH = 256
GPT2_WIDTH = 768
LOWER_IS_BETTER = {"loss", "mae", "rmse", "nll", "ece", "hamming_loss"}
# Schedulers that get no arguments from the Trainer, and schedulers that follow `best_metric`.
WITHOUT_ARGUMENTS = {"constant", "constant_with_warmup"}
BY_METRIC = {"reduce_lr_on_plateau", "greedy"}
PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-core", "dvclive": "dvclive"}


def training_arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    """The Trainer's arguments. Under torchrun or accelerate launch this also joins the other processes.

    Args:
        folder: for its checkpoints; need not exist.

    Raises:
        ConfigError: an unknown or unusable scheduler, optimizer or precision.
    """
    fit = config.training
    check_scheduler(fit)
    optimizer = chosen_optimizer(fit.optim, config, "training.optim")
    strategy = "epoch" if fit.eval_steps is None else "steps"
    precision = precision_of(config)
    arguments = _arguments(
        folder,
        seed=config.seed,
        precision=precision,
        num_train_epochs=fit.epochs,
        max_steps=fit.max_steps or -1,
        per_device_train_batch_size=fit.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=fit.gradient_accumulation_steps,
        learning_rate=fit.learning_rate,
        lr_scheduler_type=fit.lr_scheduler_type,
        lr_scheduler_kwargs=_scheduler_kwargs(fit),
        warmup_steps=fit.warmup_ratio,  # a value below 1 is a share of all steps
        weight_decay=fit.weight_decay,
        max_grad_norm=fit.max_grad_norm,
        optim=trainer_optimizer(optimizer),
        train_sampling_strategy=fit.train_sampling_strategy,
        activation_checkpointing=fit.gradient_checkpointing,
        eval_strategy=strategy,
        eval_steps=fit.eval_steps,
        save_strategy=strategy,
        save_steps=fit.eval_steps or 500,
        save_total_limit=2,  # the last one and the best one
        load_best_model_at_end=True,
        metric_for_best_model=fit.best_metric,
        greater_is_better=greater_is_better(fit.best_metric),
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting
        report_to=[name for name in fit.report_to if name != "tensorboard"],
    )
    _check_optimizer("training.optim", fit.optim, arguments)
    if config.warm_start is not None:
        _check_optimizer("warm_start.optim", config.warm_start.optim, language_model_arguments(config, folder))
    return arguments


def _check_optimizer(field: str, name: str, arguments: TrainingArguments) -> None:
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, None)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{field} {name!r}: cannot be used here ({one_line(error)})") from error


def language_model_arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for the warm start: same machine and seed, but different batches and learning rate."""
    warm = config.warm_start
    assert warm is not None
    return _arguments(
        folder,
        seed=config.seed,
        precision=precision_of(config),
        num_train_epochs=warm.epochs,
        per_device_train_batch_size=warm.batch_size,
        per_device_eval_batch_size=warm.batch_size,
        learning_rate=warm.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        optim=trainer_optimizer(chosen_optimizer(warm.optim, config, "warm_start.optim")),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        prediction_loss_only=True,
    )


def _arguments(folder: Path, *, seed: int, precision: str, **fields: Any) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=50,
        logging_nan_inf_filter=not torch.cuda.is_available(),  # it waits for the loss of each step
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **({"report_to": []} | fields),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # otherwise the Trainer uses torch's DataParallel, which is slow and has no global loss
    return arguments


def precision_of(config: TrainingConfig) -> str:
    """``bf16``, ``fp16`` or ``fp32``: as the config says, or chosen by hardware and, on a CPU, channels of the body."""
    precision = config.training.precision
    gpu = torch.cuda.is_available()
    if precision == "fp16" and not gpu:
        raise ConfigError("training.precision: fp16 needs a GPU, and there is none; allowed are auto, fp32, bf16")
    if precision != "auto":
        return precision
    if not gpu:
        return fastest_precision(torch.device("cpu")) if width_of(config.model) >= BF16_WIDTH else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def describe_precision(config: TrainingConfig) -> str:
    """The precision, and why a CPU trains in it."""
    precision = precision_of(config)
    if config.training.precision == "auto" and precision == "bf16" and not torch.cuda.is_available():
        return f"{precision}, which this processor multiplies faster than fp32"
    return precision


def width_of(config: ModelConfig) -> int:
    """The channels of the body that will be trained, before it is loaded.

    A name of the hub counts as GPT-2 small, which has 768.
    """
    width: Any = config.gpt2.get("n_embd")
    if config.pretrained is not None:
        try:
            width = json.loads((Path(config.pretrained) / "config.json").read_text(encoding="utf-8"))["n_embd"]
        except (OSError, ValueError, KeyError, TypeError):  # a name of the hub, or a mistake that is reported later
            width = None
    return width if isinstance(width, int) else GPT2_WIDTH


def greater_is_better(metric: str) -> bool:
    """Whether a higher value of ``loss`` or ``head/metric`` is the better one."""
    return metric.rpartition("/")[2] not in LOWER_IS_BETTER


def check_best_metric(metric: str, available: Iterable[str]) -> None:
    """Raises ConfigError unless the evaluations will have that metric."""
    allowed = [
        "loss",
        *sorted(name for name in available if name != "loss" and not name.endswith(("/rows", "/taxonomy_rows"))),
    ]
    if metric not in allowed:
        raise ConfigError(f"training.best_metric: got {metric!r}, must be one of {', '.join(allowed)}")


def check_scheduler(config: FitConfig) -> None:
    """Runs the scheduler for ten steps, so that it refuses wrong arguments here and not during training.

    Raises:
        ConfigError: an unknown name, or arguments that it does not take.
    """
    name, kwargs = config.lr_scheduler_type, _scheduler_kwargs(config)
    if name not in {known.value for known in SchedulerType}:
        names = ", ".join(known.value for known in SchedulerType)
        raise ConfigError(f"training.lr_scheduler_type: got {name!r}, must be one of {names}")
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs"}
    taken = [] if name in WITHOUT_ARGUMENTS else inspect.signature(_scheduler_class(name)).parameters
    allowed = [argument for argument in taken if argument not in given]
    if unknown := sorted(set(kwargs) - set(allowed)):
        raise ConfigError(
            f"training.lr_scheduler_kwargs.{unknown[0]}: {name} does not take it; "
            f"allowed are {', '.join(allowed) or 'none'}"
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler: Any = get_scheduler(name, optimizer, 1, 10, scheduler_specific_kwargs=kwargs)
            for _ in range(10):
                optimizer.step()
                scheduler.step(*([0.0] if name in BY_METRIC else []))
    except Exception as error:  # each scheduler refuses its arguments in its own way
        raise ConfigError(f"training.lr_scheduler_kwargs: {name} refuses {kwargs} ({one_line(error)})") from error


def _scheduler_class(name: str) -> Callable[..., Any]:
    if name == "reduce_lr_on_plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau
    if name == "greedy":
        from transformers.optimization import GreedyLR

        return GreedyLR
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    return cast(Callable[..., Any], function)


def _scheduler_kwargs(config: FitConfig) -> dict[str, Any]:
    """The given arguments. A scheduler that follows `best_metric` also gets the direction that is better."""
    if config.lr_scheduler_type not in BY_METRIC:
        return config.lr_scheduler_kwargs
    return {"mode": "max" if greater_is_better(config.best_metric) else "min"} | config.lr_scheduler_kwargs


def trackers(names: Iterable[str], logs: Path) -> list[TrainerCallback]:
    """Checks that each tracker is installed; returns callbacks of those that need the folder of logs.

    Raises:
        ConfigError: an unknown tracker, or one whose package is missing.
    """
    callbacks: list[TrainerCallback] = []
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(
                f"training.report_to: must be among {', '.join(sorted(INTEGRATION_TO_CALLBACK))}, got {name!r}"
            )
        try:
            callback = INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            package = PACKAGES.get(name, name)
            raise ConfigError(f"training.report_to: {name!r} is not installed; pip install {package}") from error
        if name == "tensorboard":
            callback.logging_dir = str(logs)
            callbacks.append(callback)
    return callbacks
