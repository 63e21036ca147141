"""``python -m tests.chaos [pytest's arguments]``: all faults, one table, one JSON; exit code 0 if nothing was lost.

With arguments, such as ``-k swap``, the result is only printed; the committed result stays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.result import RESULTS, machine
from tests.chaos import count
from tests.chaos.report import RECORDS, Fault, read_records, table, totals

RESULT = RESULTS / "chaos.json"


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="polyhead_chaos_") as folder:
        places = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "scoring" / "test_cluster.py")]
        command = [sys.executable, "-m", "pytest", *places, "-m", "chaos", *arguments]
        code = subprocess.run(command, env={**os.environ, RECORDS: folder}, check=False).returncode
        faults = read_records(Path(folder))
    if not arguments:
        write(faults, code, time.monotonic() - began)
    print(f"\n{table(faults)}\n", flush=True)
    for fault in faults:
        for example in fault.examples:
            print(f"{fault.name}: {example}")
    total = totals(faults)
    print(json.dumps(total), flush=True)
    return code or int(not faults or total["lost"] > 0 or total["wrong"] > 0)


def write(faults: list[Fault], code: int, seconds: float) -> None:
    """The result to commit, as JSON and as a page."""
    described = {
        **totals(faults),
        "all_tests_passed": code == 0,
        "seconds": round(seconds),
        "what_is_counted": " ".join((count.__doc__ or "").split()),
        "by_fault": [vars(fault) for fault in faults],
        "measured_on": machine() | {"command": "make chaos"},
    }
    RESULT.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = f"# The last `make chaos`\n\n{described['measured_on']['date']}, {round(seconds)} s.\n\n{table(faults)}\n"
    RESULT.with_suffix(".md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
