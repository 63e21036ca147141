"""Files of tritonserver that no other user may read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from polyhead_serving.orphans import readable_regions

CREATES = """
import errno, os, subprocess, sys
from polyhead_serving.private_files import keep_files_private
os.umask(0)
print(keep_files_private())
file = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
for mode in (0o644, 0o620, 0o601, 0o4755):
    try:
        os.fchmod(file, mode)
    except OSError as error:
        print(errno.errorcode[error.errno])
print(oct(os.fstat(file).st_mode & 0o777), flush=True)
os.fchmod(file, 0o700)
print(oct(os.fstat(file).st_mode & 0o777), flush=True)
child = "import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.fchmod(file, 0o600); os.fchmod(file, 0o604)"
done = subprocess.run([sys.executable, "-c", child, sys.argv[1]], capture_output=True, text=True, check=False)
print(done.stderr.split()[-1], oct(os.fstat(file).st_mode & 0o777))
"""


def test_files_stay_private(tmp_path: Path) -> None:
    """A file is created with mode 0600, and neither the process nor its children can let others in; all else works."""
    command = [sys.executable, "-c", CREATES, str(tmp_path / "region")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["True", *["EPERM"] * 4, "0o600", "0o700", "permitted 0o600"]


def test_regions_that_others_can_read(tmp_path: Path) -> None:
    """They are found by the run's name and their mode."""
    for name, mode in (("run_1", 0o600), ("run_2", 0o644), ("run_3", 0o660), ("other", 0o644)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    assert sorted(region.name for region in readable_regions("run", tmp_path)) == ["run_2", "run_3"]
