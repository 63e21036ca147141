"""What can be wrong with a training run's config or data: one line that names the place; exit code 2.

TrainingError
├── ConfigError   the TOML file
│   └── DivergenceError   its learning rate, as training showed
├── DataError     files, columns, rows and labels
└── Interrupted   Ctrl-C or SIGTERM; exit code 130
"""

from __future__ import annotations

from polyhead.errors import PolyheadError


class TrainingError(PolyheadError):
    """Base of the errors that the user of the training package can mend."""


class ConfigError(TrainingError):
    """The TOML file is unreadable, or a field in it is unknown, missing or out of range."""


class DivergenceError(ConfigError):
    """Training ended in numbers that are not finite."""


class DataError(TrainingError):
    """A data file, a column, a row or a label is not as the config says."""


class Interrupted(TrainingError):  # noqa: N818 -- it is asked for
    """The run was stopped and can go on from what it saved."""
