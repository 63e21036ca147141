"""Five times the server's capacity for a minute, then its capacity again."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.workload import random_checkpoint
from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus, make_texts
from tests.chaos.harm import serve, wait_until_empty
from tests.chaos.load import VerifiedLoad, through_client
from tests.chaos.open_arrivals import arrive
from tests.chaos.plain import is_right
from tests.chaos.test_swaps import ENVIRONMENT, EXPLICIT, deploy
from tests.e2e.processes import model_processes
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.chaos

TIMES = 5
OVERLOAD_S = 60.0
SWAP_OVERLOAD_S = 60.0
WINDOW_S, WINDOWS = 6.0, 3
# Others may share the machine's processors: the bound on the speed is loose, the bound on the work per text is tight.
SLOWEST_AFTER = 0.6
MOST_WORK_AFTER = 1.25


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    """A repository whose model takes about 30 ms per text, so that the server is overloaded and not the sender."""
    folder = tmp_path_factory.mktemp("heavy")
    checkpoint, corpus = heavy_checkpoint(folder)
    export_checkpoint(checkpoint, folder / "repository")
    return folder / "repository", corpus


def heavy_checkpoint(folder: Path, layers: int = 4) -> tuple[Path, Corpus]:
    """Writes it; gives its folder and its answers."""
    texts = make_texts(200, longest=60, seed=2)
    random_checkpoint(
        folder / "checkpoint", "base", layers=layers, channels=512, tokenizer=tiny_tokenizer(), texts=texts,
        vocabulary=tiny_tokenizer().get_vocab_size(), max_length=256,
    )  # fmt: skip
    return folder / "checkpoint", Corpus.of(folder / "checkpoint", texts)


def processor_s(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def capacity(served: LocalServer, corpus: Corpus) -> tuple[float, float, VerifiedLoad]:
    """Texts per second, and processor milliseconds of the model process per text, with enough clients to keep it busy.

    The best of a few windows, because other work on the machine can only slow it down.
    """
    (model,) = model_processes(served)
    rates, work = [], []
    with (
        through_client(served.url("http")) as client,
        VerifiedLoad(client.scores, corpus, threads=16, pause_s=0.0, most_texts=1) as load,
    ):
        load.wait_for(16)
        for _ in range(WINDOWS):
            began, worked, answered = time.monotonic(), processor_s(model), load.count.answered
            time.sleep(WINDOW_S)
            texts = load.count.answered - answered
            rates.append(texts / (time.monotonic() - began))
            work.append(1000 * (processor_s(model) - worked) / texts)
    return max(rates), min(work), load


def test_overload(heavy: tuple[Path, Corpus], record: Record) -> None:
    """The excess is shed with 503 only; a minute later the server is as fast as before."""
    repository, corpus = heavy
    with serve(repository) as served:
        model = model_processes(served)
        before, work_before, first = capacity(served, corpus)
        overload = arrive(served.url("http"), corpus, rate=TIMES * before, seconds=OVERLOAD_S)
        began = time.monotonic()
        while not is_right(served.url("http"), corpus):
            assert time.monotonic() < began + 30, "no answer after the overload"
        recovery_s = time.monotonic() - began
        after, work_after, last = capacity(served, corpus)
        assert model_processes(served) == model, "the overloaded server was restarted"
        wait_until_empty(served)
        record(
            f"overload, {TIMES} times capacity for {OVERLOAD_S:g} s", first.count + overload + last.count, recovery_s,
            texts_s={"before": round(before, 1), "asked": round(TIMES * before, 1),
                     "answered": round(overload.answered / OVERLOAD_S, 1), "after": round(after, 1)},
            model_process_ms_a_text={"before": round(work_before, 1), "after": round(work_after, 1)},
        )  # fmt: skip
    assert overload.shed > 0, "five times the capacity, and nothing was shed"
    assert overload.answered / OVERLOAD_S > 0.3 * before, "overload kept the server from its work"
    assert after > SLOWEST_AFTER * before
    assert work_after < MOST_WORK_AFTER * work_before


def test_swap_under_overload(heavy: tuple[Path, Corpus], tmp_path: Path, record: Record) -> None:
    """While five times the capacity arrives, a deployment succeeds; each request gets an answer or a refusal."""
    original, corpus = heavy
    repository = Path(shutil.copytree(original, tmp_path / "repository"))
    checkpoint, next_corpus = heavy_checkpoint(tmp_path, layers=3)
    with serve(repository, *EXPLICIT, environment=ENVIRONMENT) as served, ThreadPoolExecutor(1) as threads:
        place = served.url("http")
        before, _, first = capacity(served, corpus)
        began = time.monotonic()
        arriving = threads.submit(arrive, place, corpus, TIMES * before, SWAP_OVERLOAD_S, next_corpus)
        time.sleep(5)
        done = deploy(served, checkpoint, repository, "--load-timeout-s", "100")
        deploy_s = time.monotonic() - began - 5
        overload = arriving.result()
        assert done.returncode == 0, done
        assert deploy_s + 5 < SWAP_OVERLOAD_S, f"the deployment outlasted the overload: {deploy_s:.0f} s"
        assert is_right(place, next_corpus, timeout_s=30)
        assert served.times_ready() == 1, "the overloaded server was restarted"
        record("swap under overload", first.count + overload, deploy_s=round(deploy_s, 1))
    assert overload.shed > 0, "five times the capacity, and nothing was shed"
