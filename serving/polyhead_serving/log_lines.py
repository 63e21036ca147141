"""Log lines for people or for machines. The supervisor's lines and tritonserver's have the same format."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime

log = logging.getLogger("polyhead_serving")

_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical", "V": "debug"}
# E1126 02:11:13.123456 1234 model_lifecycle.cc:642] "failed to load …"
_TRITON_LINE = re.compile(r"^([IWEFV])\d{4} \S+ \d+ (\S+)\] (.*)$", re.DOTALL)


def to_json(level: str, source: str, message: str, when: float, **more: str) -> str:
    """One JSON object on one line."""
    at = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": at, "level": level, "source": source, "message": message, **more})


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, source and message; also the traceback, if there is one."""
        more = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return to_json(record.levelname.lower(), "polyhead-serve", record.getMessage(), record.created, **more)


def set_up_logging(kind: str) -> None:
    """Sends the supervisor's records to stderr, as ``text`` or as ``json``."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s polyhead-serve %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if kind == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def pass_on(line: str, kind: str) -> None:
    """Writes one of tritonserver's lines to stderr: unchanged, or as JSON with its level and source line."""
    if kind == "text":
        sys.stderr.write(line)
        return
    line = line.rstrip("\n")
    if not line.strip():
        return
    parsed = _TRITON_LINE.match(line)
    level, place, message = parsed.groups() if parsed else ("I", "", line)
    more = {"where": place} if place else {}
    sys.stderr.write(to_json(_LEVELS[level], "triton", _unquote(message), time.time(), **more) + "\n")


def _unquote(message: str) -> str:
    # Triton quotes its messages and escapes line breaks in them.
    try:
        unquoted = json.loads(message) if message.startswith('"') else message
    except ValueError:
        return message
    return unquoted if isinstance(unquoted, str) else message
