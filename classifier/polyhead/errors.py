"""Everything that can be wrong with what a caller hands over.

PolyheadError
├── SchemaError       heads, labels or the taxonomy contradict themselves
├── CheckpointError   a checkpoint folder is incomplete, damaged or not ours
├── RepositoryError   a model repository cannot take or serve a checkpoint
├── OptionError       an option is unknown or out of range
├── InputError        token ids that the model cannot read
├── ToleranceError    scores are further from the golden ones than the precision may be
├── MachineError      the machine has too little of what the model needs
├── InstallError      tritonserver, its stub, libpython or tritonclient is not there (triton_install)
├── AddressError      polyhead-serve cannot listen where it was told to (serve_options)
├── ServerError       a running server cannot be reached or refuses (live_server)
├── RolledBackError   a new version was wrong; the previous one serves (deploy)
└── RollbackError     and could not be brought back (deploy)

Each message is one line that names the place, the value and what is allowed; command lines end with exit code 2.
"""

from __future__ import annotations

from pydantic import ValidationError


class PolyheadError(Exception):
    """Base of all errors that the caller can mend."""


class SchemaError(PolyheadError):
    """Heads, labels or the taxonomy contradict themselves."""


class CheckpointError(PolyheadError):
    """A checkpoint folder is incomplete, damaged or not ours."""


class RepositoryError(PolyheadError):
    """A model repository cannot take or serve a checkpoint."""


class OptionError(PolyheadError):
    """An option is unknown or out of range."""


class InputError(PolyheadError, ValueError):
    """Token ids that the model cannot read."""


class ToleranceError(PolyheadError):
    """Scores are further from the golden ones than the precision may be."""


class MachineError(PolyheadError):
    """The machine has too little of what the model needs."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe(error: ValidationError) -> str:
    """Puts pydantic's findings on one line: ``heads.0.kind: Input should be … (got 'x'); …``."""
    findings = []
    for finding in error.errors(include_url=False):
        place = ".".join(str(part) for part in finding["loc"])
        match finding["type"]:
            case "missing":
                message = "this field is missing"
            case "extra_forbidden":
                message = "unknown field"
            case _:
                message = finding["msg"].removeprefix("Value error, ")
                if place and not isinstance(finding["input"], (dict, list)):
                    message += f" (got {finding['input']!r})"
        findings.append(f"{place}: {message}" if place else message)
    return "; ".join(findings)
