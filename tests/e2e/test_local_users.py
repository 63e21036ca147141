"""What other users of the machine can do to a real server: read nothing of it, open nothing, end nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from loadtest.local_server import LocalServer, port_options, serve_command
from polyhead.export import export_checkpoint
from polyhead_serving import deploy
from polyhead_serving.live_server import LiveServer, ServerError
from polyhead_serving.orphans import backends_folder
from polyhead_serving.triton import ADMIN_HEADER, CLOSED_RULE
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.processes import ONE_THREAD, command_line, descendants, model_processes, run_name, shared_memory
from tests.e2e.raw_grpc import is_answered
from tests.kernel import WITHOUT_PTRACE
from tests.other_user import run_as_nobody, started_as_nobody

KEY = "a-key-that-nobody-sees"
TEXT = "Rain over a town that only one caller knows."
BODY = json_body([TEXT], ["SCORES"])
FINDS = """
import os, sys
wanted = [word[::-1].encode() for word in sys.argv[1:]]  # reversed, so that this process does not find itself
places = [f"/proc/{pid}/{name}" for pid in os.listdir("/proc") if pid.isdigit() for name in ("cmdline", "environ")]
for folder in ("/dev/shm", "/tmp"):
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name.startswith("polyhead")]
        if place == "/dev/shm" or "polyhead" in place:
            places += [os.path.join(place, name) for name in names]
for place in places:
    try:
        with open(place, "rb") as file:
            content = file.read(64 * 2**20)
    except OSError:
        continue
    found = [word.decode() for word in wanted if word in content]
    if found:
        print(place, *found)
"""
TAKES = """
import os, socket, sys, time
print("trying", flush=True)
taken = []
while not os.path.exists(sys.argv[1]):
    for port in sys.argv[2:]:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
            with socket.socket() as taker:
                taker.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
                try:
                    taker.bind(("127.0.0.1", int(port)))
                    taken.append(port)
                except OSError:
                    pass
print("taken:", *sorted(set(taken)), flush=True)
"""
PLANTS = """
import os, sys
for name in sys.argv[1:]:
    with open(os.path.join("/dev/shm", name), "w") as file:
        file.write(name.removeprefix("polyhead_lock_"))
"""


@pytest.fixture(scope="module")
def locked(repository: Path) -> Iterator[LocalServer]:
    """A server with a key, whose models can be replaced."""
    environment = {**ONE_THREAD, "POLYHEAD_ADMIN_KEY": KEY}
    with LocalServer(repository, "--control", "explicit", environment=environment) as served:
        yield served


def index_over_http(served: LocalServer, headers: dict[str, str]) -> int:
    """The status of an admin API."""
    connection = http.client.HTTPConnection(served.url("http"), timeout=10)
    try:
        connection.request("POST", "/v2/repository/index", b"{}", headers)
        return connection.getresponse().status
    finally:
        connection.close()


def raw_index_over_http(served: LocalServer, header: bytes) -> bytes:
    """The first line of the answer of an admin API to a header that no HTTP client would send."""
    with socket.create_connection(("127.0.0.1", served.ports["http"]), timeout=10) as connection:
        request = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n"
        connection.sendall(request + header + b"\r\n\r\n{}")
        with connection.makefile("rb") as answer:
            return answer.readline()


def test_the_key_opens_both_protocols(locked: LocalServer) -> None:
    """The server reads the key although its command line has another rule."""
    assert index_over_http(locked, {ADMIN_HEADER: KEY}) == 200
    assert index_over_http(locked, {ADMIN_HEADER: KEY + "x"}) == 403
    metadata = f"triton-grpc-protocol-{ADMIN_HEADER}"
    with tritonclient.grpc.InferenceServerClient(locked.url("grpc")) as client:
        assert client.get_model_repository_index(headers={metadata: KEY}).models
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_model_repository_index(headers={metadata: KEY + "x"})
    assert is_answered(locked.url("grpc"), "RepositoryIndex", [(metadata.encode(), KEY.encode())])


def test_another_user_finds_neither_key_nor_text(locked: LocalServer) -> None:
    """Not in a command line, an environment, the shared memory or a temporary file."""
    assert infer_json(locked.url("http"), BODY)[0] == 200
    assert run_as_nobody(FINDS, KEY[::-1], TEXT[::-1]) == ""
    assert "cmdline" in run_as_nobody(FINDS, CLOSED_RULE[::-1])  # the search finds what can be read


def test_model_processes_do_not_have_the_key(locked: LocalServer) -> None:
    """Their environment has no key, because they run the code of heads."""
    for pid in model_processes(locked):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"POLYHEAD_SERVE_DEVICE=auto" in environment
        assert KEY.encode() not in environment


def test_what_the_server_makes_is_private(locked: LocalServer) -> None:
    """Each file in shared memory and the folder of backends is for its user only."""
    run = run_name(locked)
    places = [*Path("/dev/shm").glob(f"*{run}*"), backends_folder(run)]
    assert len(places) >= 3
    assert [place for place in places if place.stat().st_mode & 0o077] == []


def test_dumps_would_hold_texts(locked: LocalServer) -> None:
    """So the server and its model processes write none."""
    for pid in descendants(locked.process.pid):
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert core[4] == "0"


def test_a_low_soft_limit_of_files_is_raised(locked: LocalServer) -> None:
    """The server may open as many files as the machine allows it, or 65,536: connections must not use them all up."""
    for pid in descendants(locked.process.pid):
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
        (files,) = [line.split() for line in limits if line.startswith("Max open files")]
        assert int(files[3]) == min(65_536, int(files[4]))


def closed_headers() -> list[tuple[bytes, bytes]]:
    """Headers with which a request may try to meet the rule that everyone can read in the command line."""
    name, _, value = CLOSED_RULE.encode().partition(b"=")
    names = {name, name.partition(b":")[0], name.strip(b":"), name.replace(b":", b""), name.lower(), b":" + name}
    return [(one, text) for one in sorted(names) for text in (value, value.strip(), b"")]


def test_without_a_key_nothing_opens_the_admin_apis(served: LocalServer) -> None:
    """No header meets the rule in the command line: not from a client, and not in hand-made HTTP/1 or HTTP/2."""
    (server,) = [pid for pid in descendants(served.process.pid) if b"/tritonserver\0" in command_line(pid)]
    assert CLOSED_RULE.encode() in command_line(server)
    for name, value in closed_headers():
        assert b"200" not in raw_index_over_http(served, name + b": " + value)
        assert b"200" not in raw_index_over_http(served, name + b":" + value)
        assert not is_answered(served.url("grpc"), "RepositoryIndex", [(b"triton-grpc-protocol-" + name, value)])
    assert index_over_http(served, {}) == 403
    assert infer_json(served.url("http"), BODY)[0] == 200


def test_a_kernel_that_forbids_hiding(repository: Path) -> None:
    """Then the server starts and serves, says why in an error, and its key opens nothing."""
    environment = {**ONE_THREAD, "POLYHEAD_ADMIN_KEY": KEY}
    with LocalServer(repository, environment=environment, wrapper=WITHOUT_PTRACE) as served:
        assert any("could read it in tritonserver's command line" in line for line in served.lines)
        assert infer_json(served.url("http"), BODY)[0] == 200
        assert index_over_http(served, {ADMIN_HEADER: KEY}) == 403
        assert run_as_nobody(FINDS, KEY[::-1]) == ""
        with (
            contextlib.closing(LiveServer(served.url("grpc"), "gpt2_classifier", KEY, repository)) as server,
            pytest.raises(ServerError, match="its admin APIs are closed"),
        ):
            server.check_key()


def test_planted_files_end_nothing(served: LocalServer, repository: Path) -> None:
    """Whatever another user writes to /dev/shm, a start leaves a healthy server alone."""
    processes = model_processes(served)
    region = shared_memory(served)[0].name
    names = ["polyhead_lock_polyhead_", "polyhead_lock_polyhead_1_0000000000000000", f"polyhead_lock_{region}"]
    run_as_nobody(PLANTS, *names)
    try:
        with LocalServer(repository, environment=ONE_THREAD):
            assert model_processes(served) == processes
            assert infer_json(served.url("http"), BODY)[0] == 200
        assert model_processes(served) == processes
    finally:
        for name in names:
            (Path("/dev/shm") / name).unlink(missing_ok=True)


def test_a_planted_region_does_not_stop_a_restart(repository: Path) -> None:
    """Another user's file with the name of the server's shared memory stays, and the server restarts."""
    with LocalServer(repository, environment=ONE_THREAD) as served:
        planted = Path("/dev/shm") / f"{run_name(served)}_planted"
        run_as_nobody(PLANTS, planted.name)
        try:
            os.kill(model_processes(served)[0], signal.SIGKILL)
            served.wait_until_ready(times=2)
            assert planted.exists()
        finally:
            planted.unlink(missing_ok=True)


def test_ports_stay_ours_during_a_restart(repository: Path) -> None:
    """Another user who tries all the time cannot take the ports of callers while tritonserver restarts."""
    stop = Path(f"/tmp/polyhead-test-stop-{os.getpid()}")
    with LocalServer(repository, environment=ONE_THREAD) as served:
        ports = [str(served.ports[name]) for name in ("http", "grpc", "probe")]
        with started_as_nobody(TAKES, str(stop), *ports) as taker:
            try:
                (server,) = [pid for pid in descendants(served.process.pid) if b"/tritonserver\0" in command_line(pid)]
                os.kill(server, signal.SIGKILL)
                served.wait_until_ready(times=2)
            finally:
                stop.touch()
            assert taker.stdout is not None
            taken = taker.stdout.readline().split()
            stop.unlink()
        assert taken == ["taken:"]
        assert infer_json(served.url("http"), BODY)[0] == 200


LISTENS = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    print("listening", flush=True)
    server.settimeout(60)
    print(server.accept()[0].recv(100), flush=True)
"""


def test_deploy_sends_no_key_to_a_stranger(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If another user's program listens at the server's port, polyhead-deploy ends before it connects."""
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", KEY)
    checkpoint = repository / "gpt2_classifier" / "1" / "checkpoint"
    export_checkpoint(checkpoint, tmp_path / "repository")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with started_as_nobody(LISTENS, str(port)), pytest.raises(SystemExit) as ended:
        deploy.main([str(checkpoint), "--repository", str(tmp_path / "repository"), "--grpc", f"127.0.0.1:{port}"])
    assert ended.value.code == 2
    assert "a process of nobody" in capsys.readouterr().err


def test_a_required_gpu_that_is_missing(repository: Path, served: LocalServer) -> None:
    """Without a GPU, polyhead-serve --device cuda ends with code 2 and says so, instead of serving from the CPU."""
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    command = [*serve_command(), "--repository", str(repository), "--device", "cuda", *port_options(served.ports)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "this machine has no GPU" in done.stderr


def test_an_old_version_is_logged(locked: LocalServer) -> None:
    """The log names the version, and warns of an old one whose admin APIs can be opened."""
    deadline = time.monotonic() + 10
    while not any("known security holes" in line for line in locked.lines):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert any("tritonserver 2." in line for line in locked.lines)
