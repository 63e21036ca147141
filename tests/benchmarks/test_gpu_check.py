"""benchmarks.gpu_check: the whole script on the CPU with tiny shapes, and steps that die."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks.gpu_check import ROOT, Results, StepContext, add_packages, run_step
from benchmarks.gpu_steps import TESTS, cut, made_up_texts
from benchmarks.peers.engines import PRODUCT

FAKES = "tests.benchmarks.gpu_fake_steps"


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, object]]]:
    """The results of both parts, by part and step."""
    out = tmp_path_factory.mktemp("gpu-check")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run([*command, "--data", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    files = [out / f"gpu-check-{part}.json" for part in (1, 2)]
    return {file.stem: json.loads(file.read_text(encoding="utf-8"))["steps"] for file in files}


def test_all_steps_of_a_rehearsal_are_ok(rehearsed: dict[str, dict[str, dict[str, object]]]) -> None:
    """Every step of both parts runs to its end, and says where its texts are from."""
    statuses = {name: step["status"] for steps in rehearsed.values() for name, step in steps.items()}
    assert statuses == dict.fromkeys(
        ("facts", "tests", "served", "speed", "profile", "training", "variants", "attention", "server", "peers"), "ok"
    )
    facts = rehearsed["gpu-check-1"]["facts"]
    assert str(facts["texts"]).startswith("made-up texts")
    assert facts["versions"]["torch"]  # type: ignore[index]
    assert facts["gemm TFLOP/s float8_e4m3fn"]["256x256x256"] > 0  # type: ignore[index]


def test_a_rehearsal_measures(rehearsed: dict[str, dict[str, dict[str, object]]]) -> None:
    """The engine's speed by tokens, a falling loss, peers that agree; the tests marked cuda are skipped, not lost."""
    one, two = rehearsed["gpu-check-1"], rehearsed["gpu-check-2"]
    measured = one["speed"]["64 tokens"]
    assert measured["tokens"] == 64  # type: ignore[index]
    assert measured["tok_s"] > 0  # type: ignore[index]
    variants = one["variants"]
    (warning,) = variants["warnings"]  # type: ignore[misc]
    assert warning.startswith("attention pads groups of texts")
    assert variants["residual and norm"] == "PyTorch's kernels"
    without = ("no graph", "no graph, norm by PyTorch", "no graph, no tiles")
    assert set(variants["64 tokens"]) == {"as served", *without}  # type: ignore[call-overload]
    for name in without:
        assert variants["64 tokens"][name]["device_ms"] > 0  # type: ignore[index]
        # Zero because a CPU has none of these.
        assert variants["64 tokens"][name]["largest difference of a logit"] == 0  # type: ignore[index]
    assert variants["attention"] == "padded_attention"
    for texts, count in (("texts of 16", 4), ("texts of 64", 1)):
        attention = one["attention"][texts]
        assert attention["texts"] == count  # type: ignore[index]
        assert attention["padded_attention, us"] > 0  # type: ignore[index]
        assert attention["padded_attention, last tokens, us"] > 0  # type: ignore[index]
    for texts in ("mixed texts", "mixed short texts"):
        assert one["attention"][texts]["longest"] <= 64  # type: ignore[index]
    (name,) = (name for name in one["training"] if name.startswith("max_length"))
    losses = one["training"][name]["losses"]  # type: ignore[index]
    assert losses[-1] < losses[0]
    counts = one["tests"]["counts"]
    assert counts["tests"] == counts["skipped"] > 4  # type: ignore[index]
    assert two["peers"][PRODUCT]["max_score_error"] < 0.05  # type: ignore[index]
    assert "libpython" in str(two["server"]) or "no tritonserver" in str(two["server"])


def test_dead_steps_leave_what_they_measured(tmp_path: Path) -> None:
    """A step that raises, crashes or hangs is recorded with its values, its processes end, and the next one runs."""
    context = multiprocessing.get_context("spawn")
    given = StepContext("cpu", tmp_path, None, (), "none", True)
    results = Results(tmp_path / "results.json", "cpu")
    ends = {"raises": 60.0, "crashes": 60.0, "hangs": 8.0, "good": 60.0}
    for name, limit_s in ends.items():
        run_step(context, name, FAKES, limit_s, given, results)
    run_step(context, "late", FAKES, -1.0, given, results)
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["steps"]
    assert {name: step["status"] for name, step in found.items()} == {
        "raises": "failed", "crashes": "failed", "hangs": "took too long", "good": "ok", "late": "no time was left",
    }  # fmt: skip
    assert "a score is off" in found["raises"]["error"]
    assert (found["raises"]["before"], found["crashes"]["before"]) == (1, 2)
    assert found["crashes"]["exit code"] == -11
    assert found["good"]["answer"] == 42
    deadline = time.monotonic() + 10
    while _is_running(found["hangs"]["child"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"


def test_only_missing_packages_come_from_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel whose package is installed is left where it is; child processes find the others too."""
    for name in ("numpy", "polyhead_not_there"):
        (tmp_path / "site").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / "site" / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "X = 1")
            wheel.writestr(f"{name}-1.dist-info/METADATA", f"Name: {name}")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("PYTHONPATH", "")
    add_packages(tmp_path, tmp_path / "unpacked")
    unpacked = {path.name for path in (tmp_path / "unpacked").iterdir()}
    assert {"polyhead_not_there", "polyhead_not_there-1.dist-info", "polyhead_client-0.1.0.dist-info"} <= unpacked
    assert "numpy" not in unpacked
    program = "import polyhead_not_there, numpy; print(polyhead_not_there.X, numpy.__version__ != '1')"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


def test_texts_of_the_script() -> None:
    """Texts are cut to exactly the tokens asked for; made-up texts are the same in each run; the test files exist."""
    assert cut([[1, 2, 3], [4, 5], [6]], 4) == [[1, 2, 3], [4]]
    with pytest.raises(ValueError, match="have 6 tokens, not 7"):
        cut([[1, 2, 3], [4, 5], [6]], 7)
    assert made_up_texts(5) == made_up_texts(5)
    assert [name for name in TESTS if not (ROOT / name).exists()] == []


IMPORTED = """
import benchmarks.gpu_steps, benchmarks.gpu_attention, benchmarks.gpu_server, benchmarks.peers.engines, sys
import tests.cuda.test_served, tests.cuda.test_scored, tests.cuda.test_trained
print(*{name.partition(".")[0] for name in sys.modules})
"""
OF_TORCH = {"torch", "numpy", "jinja2", "markupsafe", "sympy", "mpmath", "networkx", "setuptools"}
# Libraries import these only if they are there.
OPTIONAL = {
    "charset-normalizer", "cloudpickle", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-semantic-conventions",
    "protobuf", "pytz",
}  # fmt: skip


def test_the_bundle_holds_what_is_imported() -> None:
    """Beside torch's own packages and ours, the steps and their tests import nothing that the bundle lacks."""
    lines = (ROOT / "setup" / "requirements-gpu.txt").read_text(encoding="utf-8").splitlines()
    bundled = {line.lower().replace("_", "-") for line in lines if not line.startswith("#")}
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True)
    owners = packages_distributions()
    found = {owner.lower().replace("_", "-") for name in done.stdout.split() for owner in owners.get(name, [])}
    others = found - bundled - OF_TORCH - OPTIONAL
    assert {name for name in others if not name.startswith("polyhead")} == set()
