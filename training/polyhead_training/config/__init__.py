"""The configs of training: a module per group of tables, and `Section`, of which each is one."""

from polyhead_training.config.data import DataConfig, UpsampleConfig
from polyhead_training.config.fit import CalibrationConfig, EarlyStoppingConfig, FitConfig, ReportConfig
from polyhead_training.config.heads import HeadConfig
from polyhead_training.config.model import LoraConfig, ModelConfig, WarmStartConfig
from polyhead_training.config.section import Section, read_toml, validated
from polyhead_training.config.training import EXAMPLE, TrainingConfig, read_config

__all__ = [
    "EXAMPLE",
    "CalibrationConfig",
    "DataConfig",
    "EarlyStoppingConfig",
    "FitConfig",
    "HeadConfig",
    "LoraConfig",
    "ModelConfig",
    "ReportConfig",
    "Section",
    "TrainingConfig",
    "UpsampleConfig",
    "WarmStartConfig",
    "read_config",
    "read_toml",
    "validated",
]
