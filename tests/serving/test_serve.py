"""polyhead-serve's command line: what it refuses, and the command that it builds."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.local_server import free_ports, port_options
from polyhead_serving import orphans, serve, triton
from polyhead_serving.triton import (
    CLOSED_RULE,
    InstallError,
    TritonInstall,
    find_in_wheel,
    find_triton,
    restrictions,
    server_command,
    server_environment,
)
from tests.serving.options import parse

WHEEL = TritonInstall(Path("/wheel/bin/tritonserver"), (Path("/wheel/libtriton_python.so"),), (Path("/wheel.libs"),))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder that looks like a repository with one checkpoint."""
    checkpoint = tmp_path / "repository" / "gpt2_classifier" / "1" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    (checkpoint.parent / "model.py").touch()
    return tmp_path / "repository"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_triton", lambda: WHEEL)
    monkeypatch.setattr(serve, "remove_orphans", list)  # of others on this machine


def run(*arguments: str) -> int:
    """Runs the command line; gives its exit code."""
    with pytest.raises(SystemExit) as ended:
        serve.main([*arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def flags_of(repository: Path, *arguments: str, install: TritonInstall = WHEEL) -> list[str]:
    """tritonserver's command line for these arguments."""
    options = parse("--repository", str(repository), *arguments)
    return server_command(options, install, Path("/backends"), "polyhead_1_ab")


def test_flags_are_safe(repository: Path) -> None:
    """Loopback everywhere, no way to load a model, no auto-complete, and shared memory under a name of its own."""
    flags = flags_of(repository)
    assert {
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--metrics-config=summary_latencies=true",
        "--backend-config=python,shm-region-prefix-name=polyhead_1_ab",
        "--backend-directory=/backends",
    } <= set(flags)


@pytest.mark.parametrize("flag", ["--http-restricted-api", "--grpc-restricted-protocol"])
def test_admin_apis_need_the_key(repository: Path, flag: str) -> None:
    """Each dangerous API needs the key, over both protocols; inference, metadata and health do not."""
    (value,) = [word.partition("=")[2] for word in restrictions("k" * 16) if word.startswith(flag)]
    apis, _, key = value.partition(":")
    assert set(apis.split(",")) == {
        "model-repository",
        "model-config",
        "shared-memory",
        "logging",
        "trace",
        "statistics",
    }
    assert key == f"polyhead-admin-key={'k' * 16}"
    (shown,) = [argument for argument in flags_of(repository) if argument.startswith(flag)]
    assert shown == f"{flag}={apis}:{CLOSED_RULE}"


def test_no_command_line_has_the_key(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user can read command lines, so they have a rule that no request meets, with and without a key."""
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", "k" * 16)
    for control in ("none", "explicit"):
        flags = flags_of(repository, "--control", control)
        assert not [flag for flag in flags if "k" * 16 in flag]
        assert set(restrictions(None)) <= set(flags)


def test_a_gpu_that_is_required(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, --device cuda does not start, from the command line or the environment; the other values do."""
    monkeypatch.setattr(triton, "has_gpu", lambda: False)
    for device in ("auto", "cpu"):
        assert run("--repository", str(repository), "--dry-run", "--device", device) == 0
    capsys.readouterr()
    assert "--device cuda: this machine has no GPU" in refuse(
        capsys, "--repository", str(repository), "--device", "cuda"
    )
    monkeypatch.setenv("POLYHEAD_SERVE_DEVICE", "cuda")
    assert "--device cuda" in refuse(capsys, "--repository", str(repository))


def test_model_processes_know_the_device(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They refuse the CPU if a GPU is required. With --device cpu they see no GPU."""
    monkeypatch.setattr(triton, "has_gpu", lambda: True)
    for device, visible in (("auto", None), ("cuda", None), ("cpu", "-1")):
        changed = server_environment(parse("--device", device), WHEEL, {})
        assert changed["POLYHEAD_SERVE_DEVICE"] == device
        assert changed.get("CUDA_VISIBLE_DEVICES") == visible
        gpu_metrics = "false" if device == "cpu" else "true"
        assert f"--allow-gpu-metrics={gpu_metrics}" in flags_of(repository, "--device", device)


def test_options_come_from_the_environment(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POLYHEAD_SERVE_ and an option's name sets its default; the command line overrides it."""
    monkeypatch.setenv("POLYHEAD_SERVE_HTTP_PORT", "18000")
    monkeypatch.setenv("POLYHEAD_SERVE_GRPC_PORT", "18001")
    flags = flags_of(repository, "--grpc-port", "28001")
    assert "--http-port=18000" in flags
    assert "--grpc-port=28001" in flags


def test_help_names_every_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option's variable is in the help."""
    monkeypatch.setenv("COLUMNS", "120")  # a narrower terminal would break the names
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name in vars(parse()):
        assert f"POLYHEAD_SERVE_{name.upper()}" in shown


def test_the_supervisor_is_light() -> None:
    """Neither the supervisor nor its command line imports torch, NumPy or rich, which would delay each start."""
    program = "import sys, polyhead_serving.serve; print([name for name in sys.argv[1:] if name in sys.modules])"
    command = [sys.executable, "-c", program, "torch", "numpy", "rich", "tritonclient"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_own_server_keeps_its_backends(repository: Path) -> None:
    """A tritonserver that was found on PATH uses the backends it came with."""
    flags = flags_of(repository, install=TritonInstall(Path("/opt/bin/tritonserver")))
    assert not any(flag.startswith("--backend-directory") for flag in flags)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_times_are_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A time that no timer takes is refused."""
    times = [name for name in vars(parse()) if name.endswith("_s")]
    assert len(times) == 5
    for name in times:
        option = f"--{name.replace('_', '-')}"
        assert run(option, value) == 2
        assert option in capsys.readouterr().err


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command, which must end with code 2 and one line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_missing_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing repository is named."""
    assert f"{tmp_path}/none: no such folder" in refuse(capsys, "--repository", f"{tmp_path}/none")


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a repository without a checkpoint, the error names polyhead-export."""
    (tmp_path / "gpt2_classifier" / "1").mkdir(parents=True)
    assert "polyhead-export" in refuse(capsys, "--repository", str(tmp_path))


def test_a_model_without_checkpoint_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model folder that Triton would fail to load, beside one that it could serve."""
    (repository / "empty").mkdir()
    (repository / "empty" / "config.pbtxt").touch()
    assert run("--repository", str(repository)) == 2
    error = capsys.readouterr().err
    assert "empty holds no checkpoint, so Triton would not serve gpt2_classifier either" in error
    assert error.count("\n") == 1


def test_busy_port(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use is named with its option."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        error = refuse(capsys, "--repository", str(repository), "--http-port", port)
    assert f"--http-port {port}: cannot listen on 127.0.0.1:{port} (Address already in use by " in error


def test_a_place_that_cannot_be_written_is_named(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only /dev/shm or temporary folder is one line, not a traceback."""
    monkeypatch.setattr(orphans, "backends_folder", lambda run: tmp_path / "missing" / run)
    error = refuse(capsys, "--repository", str(repository), *port_options(free_ports()))
    assert "/dev/shm and the temporary folder must be writable" in error


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--grpc-port", "18437", "--http-port has the same port"),
        ("--address", "256.1.1.1", "cannot listen"),
    ],
)
def test_bad_address(
    repository: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, reason: str
) -> None:
    """A wrong port or address is refused before anything starts."""
    free = {"--http-port": "18437", option: value}
    arguments = [word for pair in free.items() for word in pair]
    assert reason in refuse(capsys, "--repository", str(repository), *arguments)


@pytest.mark.parametrize("key", ["short", "with,comma,with,comma", "with=equals=with"])
def test_admin_key_must_fit_the_flag(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """A key that Triton could not parse is refused, and not shown."""
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", key)
    error = refuse(capsys, "--repository", str(repository))
    assert "POLYHEAD_ADMIN_KEY" in error
    assert key not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--log-level", "loud"],
        ["--log-format", "xml"],
        ["--control", "poll"],
        ["--startup-timeout-s", "0"],
        ["--canary-failures", "0"],
        ["--drain-s", "-1"],
        ["--http-port", "x"],
        ["--http-port", "70000"],
    ],
)
def test_bad_option(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A value that an option does not take ends with code 2 and names the option."""
    assert run(*arguments) == 2
    assert f"'{arguments[0]}'" in capsys.readouterr().err


def test_bad_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable is checked like its option."""
    monkeypatch.setenv("POLYHEAD_SERVE_LOG_LEVEL", "loud")
    assert run() == 2
    assert "'--log-level'" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["model.py", "checkpoint/config.json"])
def test_a_half_copied_version_is_named(repository: Path, capsys: pytest.CaptureFixture[str], lacking: str) -> None:
    """A served version on which Triton would hang is refused, with the missing file; others do no harm."""
    model = repository / "gpt2_classifier"
    shutil.copytree(model / "1", model / "2")
    (model / "2" / lacking).unlink()
    (model / "config.pbtxt").write_text("version_policy { specific { versions: 1 } }", encoding="utf-8")
    assert run("--repository", str(repository), "--dry-run") == 0
    capsys.readouterr()
    for policy in ("specific { versions: 2 }", "latest { num_versions: 1 }"):
        (model / "config.pbtxt").write_text(f"version_policy {{ {policy} }}", encoding="utf-8")
        error = refuse(capsys, "--repository", str(repository))
        assert f"{model}/2: {lacking} is missing" in error


def test_a_start_takes_back_what_was_interrupted(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that a killed export left is removed with a line, and a dry run removes nothing."""
    model = repository / "gpt2_classifier"
    (model / "config.pbtxt").write_text("version_policy { specific { versions: 1 } }", encoding="utf-8")
    shutil.copytree(model / "1", model / "2")
    (model / "2" / ".uncommitted").touch()
    assert run("--repository", str(repository), "--dry-run") == 0
    assert (model / "2").exists()

    def no_triton() -> TritonInstall:
        raise InstallError("no tritonserver")

    monkeypatch.setattr(serve, "find_triton", no_triton)
    capsys.readouterr()
    assert run("--repository", str(repository)) == 2
    assert "gpt2_classifier: version 2 was removed: its export or deployment was interrupted" in capsys.readouterr().err
    assert not (model / "2").exists()


def test_explicit_control_loads_each_model_and_needs_a_key(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swaps need a key that polyhead-deploy can know; the models of the repository are loaded at the start."""
    arguments = ["--repository", str(repository), "--control", "explicit"]
    monkeypatch.delenv("POLYHEAD_ADMIN_KEY", raising=False)
    assert "POLYHEAD_ADMIN_KEY: must be set" in refuse(capsys, *arguments)
    assert {"--model-control-mode=explicit", "--load-model=gpt2_classifier"} <= set(
        flags_of(repository, *arguments[2:])
    )


def test_dry_run_prints_a_script(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script makes a private backend folder, sets the environment and runs the server; nothing is started."""
    assert run("--repository", str(repository), "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines]
    assert first == ["umask", "backends=$(mktemp", "mkdir", "ln", "export", "export", "export", "ulimit", "exec"]
    assert f"--model-repository={repository}" in lines[-1]
    assert '--backend-directory="$backends"' in lines[-1]


def test_dry_run_does_not_print_the_key(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script reads the key from its own environment, gives it to both protocols, and says who can see it."""
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", "k" * 16)
    assert run("--repository", str(repository), "--dry-run", "--control", "explicit") == 0
    script = capsys.readouterr().out
    assert "k" * 16 not in script
    assert "# Every user of this machine can read the key" in script
    words = script.splitlines()[-1].split("--")
    assert [word for word in words if "restricted" in word and 'key="${POLYHEAD_ADMIN_KEY:?}"' in word][1:]


def make_wheel(folder: Path, python: str) -> Path:
    """The relevant files of pytriton, empty."""
    root = folder / "pytriton" / "tritonserver"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        f"python_backend_stubs/{python}/triton_python_backend_stub",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return folder / "pytriton"


def test_wheel_gets_a_backend_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub of this Python is linked beside the backend, in a new folder; the wheel stays unchanged."""
    monkeypatch.setattr(triton, "can_load", lambda library, changed: True)
    wheel = make_wheel(tmp_path, triton.PYTHON)
    before = sorted(wheel.rglob("*"))
    install = find_in_wheel(wheel)
    install.link_backends(tmp_path / "backends")
    assert sorted(path.name for path in (tmp_path / "backends" / "python").iterdir()) == [
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    ]
    assert sorted(wheel.rglob("*")) == before


def test_missing_stub(tmp_path: Path) -> None:
    """If the wheel has no stub for this Python, the error says which it has."""
    with pytest.raises(InstallError, match=r"no stub for Python .*, only for 3\.8$"):
        find_in_wheel(make_wheel(tmp_path, "3.8"))


def test_missing_libpython(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If libpython cannot be loaded, the error names the package to install."""
    monkeypatch.setattr(triton, "LIBPYTHON", "libpython0.0.so.1.0")
    with pytest.raises(InstallError, match=r"libpython0\.0\.so\.1\.0: cannot be loaded.*Debian's package"):
        find_in_wheel(make_wheel(tmp_path, triton.PYTHON))


def test_libpython_of_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A libpython in the environment's lib, where setup/libpython.sh puts it, goes to the loader's path."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / triton.LIBPYTHON).touch()
    monkeypatch.setattr(triton.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(triton, "can_load", lambda library, changed: True)
    wheel = make_wheel(tmp_path, triton.PYTHON)
    changed = find_in_wheel(wheel).environment({"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/other:"})
    assert changed["PATH"] == f"{tmp_path}/bin:/usr/bin"
    assert changed["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:{tmp_path}/nvidia_pytriton.libs:/other"


def test_server_on_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tritonserver on PATH, as in Triton's containers, is preferred to the wheel's."""
    (tmp_path / "tritonserver").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_triton() == TritonInstall(tmp_path / "tritonserver")


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any tritonserver the error names the package that brings one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallError, match="nvidia-pytriton"):
        find_triton()
