"""The engine's benchmarks end to end on tiny shapes, and that a peer with other answers cannot take part."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import engine, scaling
from benchmarks.peers.engines import PRODUCT, builders, line_up
from benchmarks.peers.peer import PaddedPeer, compare, reference_logits
from benchmarks.result import RESULTS
from benchmarks.speed import GemmPeak, linear_flops
from benchmarks.workload import SCHEMA, debian_corpus, of_length, random_checkpoint
from polyhead.body import Body
from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.schema import Architecture
from tests.tiny import TEXTS, tiny_tokenizer

PACKAGES = {"openvino": "openvino", "onnx_fp32": "onnxruntime", "onnx_int8": "onnxruntime"}
UNCOMPILED = [name for name in builders("cpu") if not name.startswith("compile")]  # compiling takes minutes
TOKEN_IDS = [[5, 6, 7, 8, 9], [11], list(range(20, 43)), [3, 4, 5]]


@pytest.fixture(scope="module", params=["base", "hidden_state_concat"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two layers of 64 channels with the benchmark's weights, of each architecture."""
    architecture: Architecture = request.param
    path = tmp_path_factory.mktemp(architecture) / "checkpoint"
    random_checkpoint(path, architecture, 2, 64, tiny_tokenizer(), TEXTS)
    return read_checkpoint(path)


def test_engine_measures_all_in_one_run(debian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line compares product and peers; the file has every mix, and why the others were left out."""
    out = tmp_path / "engine.json"
    engine.main(
        ["--data", str(debian), "--out", str(out), "--texts", "6", "--tokens", "32", "--lengths", "16",
         "--repeats", "2", "--layers", "2", "--channels", "64",
         "--peers", "transformers_fp32_batch1", "transformers_fp32_batch8",
         "--concat-peers", "polyhead", "transformers_fp32_batch8"]
    )  # fmt: skip
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["tok_s"].keys() == {PRODUCT, "transformers_fp32_batch1", "transformers_fp32_batch8"}
    assert summary["best_peer"] in summary["texts_s"].keys() - {PRODUCT}
    best = summary["tok_s"][summary["best_peer"]]
    assert summary["ratio_best_peer"] == pytest.approx(summary["tok_s"][PRODUCT] / best, abs=0.01)
    assert summary["gemm_fraction"] == pytest.approx(summary["gemm_gflops"] / summary["gemm_peak_gflops"], abs=0.01)
    assert summary.keys() >= {"ratio_hf", "single_text_ms"}
    written = json.loads(out.read_text(encoding="utf-8"))
    ours = written["table"]["hidden_state_concat"]["16"][PRODUCT]
    assert ours["max_score_error"] < {"fp32": 1e-3, "bf16": 0.05}[ours["precision"]]
    assert written["table"]["base"]["debian"]["transformers_fp32_batch8"]["flips"] == 0
    assert written["left_out"]["base"]["openvino"] == "not asked for"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("has_amx", "capability", "name"), [(True, "AVX512", "amx"), (False, "AVX512", "avx512"), (False, "AVX2", "avx2")]
)
def test_each_cpu_has_a_result_of_its_own(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool, capability: str, name: str
) -> None:
    """A run writes to its processor's file, so that it keeps what another processor wrote."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert engine._arguments([]).out == RESULTS / f"engine-{name}.json"


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("Tesla T4", "t4"), ("NVIDIA L4", "l4"),
     ("NVIDIA GeForce RTX 4090", "4090")],
)  # fmt: skip
def test_each_gpu_has_a_result_of_its_own(monkeypatch: pytest.MonkeyPatch, device: str, name: str) -> None:
    """The GPU's model names the file."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: device)
    assert engine.processor("cuda") == name


def test_the_summary_compares_with_the_fastest_peers() -> None:
    """The product's fastest precision is compared with the fastest peer, and each precision with its own fastest."""
    speed = {PRODUCT: ("bf16", 40.0), "polyhead_int8": ("int8", 90.0), "transformers_fp32_batch8": ("fp32", 5.0),
             "openvino": ("bf16", 20.0), "compile_bf16": ("bf16", 16.0), "onnx_int8": ("int8", 45.0)}  # fmt: skip
    measured = {name: {"texts_s": rate, "tok_s": rate, "precision": one} for name, (one, rate) in speed.items()}
    summary = engine._summary(measured, "cpu")
    assert (summary["best_peer"], summary["ratio_best_peer"], summary["ratio_hf"]) == ("onnx_int8", 2.0, 8.0)
    assert summary["ratio_by_precision"] == {"bf16": 2.0, "int8": 2.0}


def test_scaling_measures_both_curves(debian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each point comes from a new process, and a larger batch takes more memory."""
    out = tmp_path / "scaling.json"
    scaling.main(
        ["--data", str(debian), "--out", str(out), "--batch-tokens", "16", "1200", "--model", "2x64",
         "--models", "2x64", "--model-tokens", "64", "--repeats", "1"]
    )  # fmt: skip
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["tok_s_by_tokens"].keys() == {"16", "1200"}
    assert summary["growth_mib_by_tokens"]["1200"] > summary["growth_mib_by_tokens"]["16"]
    assert summary["tok_s_by_model"]["2x64"] > 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


# torch.export and the runtimes deprecate parts of each other.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNCOMPILED)
def test_every_peer_computes_the_same_scores(checkpoint: Checkpoint, name: str) -> None:
    """Each peer that runs here gives transformers' fp32 scores, whatever the lengths, in the order given."""
    pytest.importorskip(PACKAGES.get(name, "torch"))
    peers, left_out = line_up(checkpoint, "cpu", [name])
    if not peers:
        pytest.skip(left_out[name])
    (peer,) = peers
    peer.warm_up(TOKEN_IDS)
    reference = reference_logits(checkpoint, TOKEN_IDS, "cpu")
    assert compare(name, peer.precision, peer.logits(TOKEN_IDS), reference)["flips"] == 0 or peer.precision != "fp32"


def test_a_padded_peer_keeps_the_order_and_pads_on_the_right() -> None:
    """Logits come back in the order given, sorted by length or not; a batch is as long as its longest text."""
    seen: list[tuple[int, ...]] = []

    def infer(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        seen.append(ids.shape)
        assert all(not row[length:].any() for row, length in zip(ids, lengths, strict=True))
        return np.stack([ids.sum(1), lengths], axis=1).astype(np.float32)

    expected = [[sum(ids), len(ids)] for ids in TOKEN_IDS]
    for by_length, shapes in ((False, [(3, 23), (1, 3)]), (True, [(3, 23), (1, 1)])):
        seen.clear()
        peer = PaddedPeer("fake", "fp32", infer, (3,), by_length)
        assert peer.logits(TOKEN_IDS).tolist() == expected
        assert seen == shapes


def test_a_padded_peer_picks_its_fastest_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warming up leaves the batch size that took the least time."""
    calls = []
    clock = SimpleNamespace(perf_counter=lambda: len(calls))  # each call takes a second: the largest batch is fastest
    monkeypatch.setattr("benchmarks.peers.peer.time", clock)

    def infer(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        calls.append(len(ids))
        return np.zeros((len(ids), 2), dtype=np.float32)

    peer = PaddedPeer("fake", "fp32", infer, (1, 4, 16))
    peer.warm_up([[1, 2]] * 16)
    assert peer.batch_size == 16


def test_other_scores_fail_and_flips_are_counted() -> None:
    """Scores beyond what rounding explains end the run; within it, texts with another answer are counted."""
    reference = np.zeros((3, SCHEMA.width), dtype=np.float32)
    reference[:, 0] = 1e-5
    near = reference.copy()
    near[1, 1] = 2e-5
    assert compare("near", "fp32", near, reference)["flips"] == 1
    far = reference.copy()
    far[2, 1] = 1
    with pytest.raises(SystemExit, match=r"far: a score is off by 0\.\d+"):
        compare("far", "fp32", far, reference)
    with pytest.raises(SystemExit, match="broken: logits are not finite"):
        compare("broken", "int8", np.full_like(reference, np.nan), reference)


def test_texts_of_one_length_are_distinct(debian: Path) -> None:
    """The product computes equal texts once, so none may be equal; too few tokens end the run."""
    _, _, token_ids = debian_corpus(debian)
    pieces = of_length(8, 80, token_ids)
    assert [len(piece) for piece in pieces] == [8] * 10
    assert len(set(map(tuple, pieces))) == 10
    with pytest.raises(SystemExit, match="distinct sequences"):
        of_length(8, 10**6, token_ids)


def test_flops_and_peak() -> None:
    """GPT-2 small's linear layers are 170 MFLOP a token, and every way to multiply has a rate."""
    body = Body(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    assert linear_flops(body) == 2 * 12 * 12 * 768**2
    for precision in ("fp32", "bf16"):
        peak = GemmPeak(precision, "cpu", (32, 64, 48))
        peak.measure()
        assert all(rate > 0 for rate in peak.gflops().values())
        assert peak.gflops()
