"""The errors of this library: everything that can be wrong with what a caller passes in.

All derive from PolyheadError, also those of other distributions. Each message is one line that names the place, the
value and what is allowed. Command lines print it and end with exit code 2.
"""

from __future__ import annotations

from pydantic import ValidationError

from polyhead.terminal import printable


class PolyheadError(Exception):
    """Base class for errors that the caller can fix."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a name from a file of anyone


class SchemaError(PolyheadError):
    """Heads, labels or the taxonomy contradict themselves."""


class CheckpointError(PolyheadError):
    """A checkpoint folder is incomplete, damaged or not a checkpoint."""


class TemplateError(PolyheadError):
    """A text template is malformed."""


class RepositoryError(PolyheadError):
    """A model repository cannot take or serve a checkpoint."""


class OptionError(PolyheadError):
    """An option is unknown or out of range."""


class TokenIdsError(PolyheadError, ValueError):
    """The model cannot read these token ids."""


class ToleranceError(PolyheadError):
    """Scores differ from the golden scores by more than the precision allows."""


class MachineError(PolyheadError):
    """The machine has too little memory for the model."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_LINE]


LONGEST_LINE = 500
MOST_FINDINGS = 5  # in one message
LONGEST_SHOWN = 200  # characters of values in a message


def shortened(value: object) -> str:
    """The value for a message, cut if it is long: it may come from a file that nobody has looked at."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def describe(error: ValidationError) -> str:
    """Pydantic's first findings on one line: ``heads.0.kind: Input should be … (got 'x'); …``."""
    findings = []
    for finding in error.errors(include_url=False)[:MOST_FINDINGS]:
        place = ".".join(str(part) for part in finding["loc"])
        if len(place) > LONGEST_SHOWN:  # a caller chooses the names of parameters
            place = f"{place[:LONGEST_SHOWN]}…"
        match finding["type"]:
            case "missing":
                message = "this field is missing"
            case "extra_forbidden":
                message = "unknown field"
            case _:
                message = finding["msg"].removeprefix("Value error, ")
                if place and not isinstance(finding["input"], (dict, list)):
                    message += f" (got {shortened(finding['input'])})"
        findings.append(f"{place}: {message}" if place else message)
    if (more := error.error_count() - MOST_FINDINGS) > 0:
        findings.append(f"and {more} more")
    return "; ".join(findings)
