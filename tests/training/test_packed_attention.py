"""Training's attention over packed texts: the CPU's kernel, a call per length, and a GPU's kernels.

The GPU's are run by a stand-in on the CPU and, marked cuda, themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.engine.cuda.attention import efficient_attention
from polyhead.schema import HeadKind
from polyhead_training.model.attention import PackedBatch, attend, attention_for_training, flash_attention
from polyhead_training.model.losses import OUT_OF_SCOPE, LossTerm, classification_loss, label_counts
from polyhead_training.model.packing import collate, last_hidden_states
from tests.flash import flash_stand_in
from tests.training.test_packing import CLASSES, build, gradients, rows

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAN = float("nan")
TERMS = [
    LossTerm(HeadKind.SINGLE_LABEL, 3, label_weights=(1.0, 2.0, 4.0), label_smoothing=0.1),
    LossTerm(HeadKind.MULTI_LABEL, 2, label_weights=(1.0, 3.0)),
    LossTerm(HeadKind.REGRESSION, 1, target_scale=(5.0, 2.0)),
]
LABELS = [[2.0, 1.0, 0.0, 7.0], [NAN, NAN, 1.0, NAN], [-100.0, 0.0, 0.0, 1.0], [OUT_OF_SCOPE, 1.0, 1.0, 5.0]]


def use(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., torch.Tensor] | None) -> None:
    """Makes training take this kernel on any device; None: a call per length."""
    monkeypatch.setattr("polyhead_training.model.attention.kernels_for", lambda _: None)
    monkeypatch.setattr("polyhead_training.model.attention.attention_for_training", lambda *_: kernel)


def test_pytorch_has_no_packed_kernel_for_the_cpu() -> None:
    """Without the CPU's own kernels, attention is one call per length."""
    assert attention_for_training(64, torch.bfloat16, torch.device("cpu")) is None


def test_where_texts_are() -> None:
    """Rows, positions and runs of three texts of 3, 1 and 1 tokens."""
    texts = PackedBatch(torch.tensor([3, 1, 1]), 5, 24)
    assert texts.last.tolist() == [2, 3, 4]
    assert texts.positions.tolist() == [0, 1, 2, 0, 0]
    assert texts.starts.tolist() == [0, 3, 4, 5]
    assert texts.queries.tolist() == [0, 1, 2, 3]
    assert texts.starts.dtype == texts.queries.dtype == torch.int32
    assert texts.runs == [(1, 3), (2, 1)]


@pytest.mark.parametrize("model_class", CLASSES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=9))
def test_one_call_gives_what_a_call_per_length_gives(
    model_class: Any, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, loss and every gradient are the same, whichever way attention is computed."""
    model, batch = build(model_class), collate(rows(lengths))
    use(monkeypatch, None)
    expected, expected_gradients = gradients(model, batch)
    use(monkeypatch, flash_stand_in)
    output, found = gradients(model, batch)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-4)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_dropout_reaches_the_kernel_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's attn_pdrop in training, none in evaluation."""
    shares: list[float] = []

    def kernel(*arguments: Any, dropout: float, **options: Any) -> torch.Tensor:
        shares.append(dropout)
        return flash_stand_in(*arguments, dropout=dropout, **options)

    use(monkeypatch, kernel)
    model, batch = build(CLASSES[0]), collate(rows([4, 2]))
    for block in model.body_model.h:
        block.attn.attn_dropout.p = 0.25
    model(**batch)
    model.eval()(**batch)
    assert shares == [0.25] * 3 + [0.0] * 3


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, loss and backward run on the meta device, which has no numbers that a step could wait for."""
    use(monkeypatch, flash_attention)
    body = build(CLASSES[1]).to("meta", torch.bfloat16).body_model
    batch = {name: tensor.to("meta") for name, tensor in collate(rows([9, 5, 5, 1])).items()}
    states = last_hidden_states(body, batch["input_ids"], batch["lengths"], 2)
    assert states.shape == (2, 4, 16)
    states.sum().backward()
    assert all(weight.grad is not None for weight in body.parameters())
    logits, labels = torch.empty(4, 6, device="meta", requires_grad=True), torch.empty(4, 4, device="meta")
    classification_loss(logits, labels, TERMS, label_counts(labels, TERMS)).backward()


def test_rows_without_labels_count_nothing() -> None:
    """Loss and divisors by hand: two of four rows have a class, three have tags, three have a number."""
    labels = torch.tensor(LABELS)
    assert label_counts(labels, TERMS).tolist() == [5.0, 3.0, 3.0]  # weight 4 and, out of scope, 1; the others count 1
    logits = torch.zeros(4, 6, requires_grad=True)
    loss = classification_loss(logits, labels, TERMS)
    # Class: weights 4 and 1 times ln 3, by 5; the smoothed share has the mean weight: 0.9 * 4 + 0.1 * (1 + 2 + 4) / 3.
    class_loss = (3.6 + 0.7 / 3 + 1.0) * 1.0986123 / 5
    # Tags: ln 2 per label, times the weight of a positive one: rows (1, 0), (0, 0), (1, 1), halved for two labels.
    tag_loss = ((1 + 1) + (1 + 1) + (1 + 3)) / 2 * 0.6931472 / 3
    # Number: targets 1, -2 and 0 spreads from the center, twice the Huber loss is the square.
    number_loss = (1 + 4 + 0) / 3
    assert loss.item() == pytest.approx(class_loss + tag_loss + number_loss, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1, [0, 1, 2, 5]].tolist() == [0.0] * 4
    assert logits.grad.isfinite().all()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize(
    ("kernel", "dtype", "tolerance"),
    [
        (flash_attention, torch.bfloat16, 2e-2),
        (efficient_attention, torch.bfloat16, 2e-2),
        (efficient_attention, torch.float32, 1e-4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_kernels_equal_the_call_per_length(
    kernel: Callable[..., torch.Tensor], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPU, values and gradients of each kernel are those of one call per length."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([300, 129, 128, 64, 64, 7, 1, 1], device="cuda")
    qkv = torch.randn(int(lengths.sum()), 3, 4, 64, generator=generator)
    texts = PackedBatch(lengths, len(qkv), 1024)
    for only_last in (False, True):
        found = []
        for one in (kernel, None):
            use(monkeypatch, one)
            leaf = qkv.to("cuda", dtype).requires_grad_()
            attended = attend(leaf.flatten(1), texts, heads=4, scale=0.125, dropout=0.0, only_last=only_last)
            attended.float().square().sum().backward()
            assert leaf.grad is not None
            found += [attended.detach(), leaf.grad]
        for computed, expected in zip(found[:2], found[2:], strict=True):
            scale = float(expected.float().std())
            torch.testing.assert_close(computed, expected, atol=tolerance * max(1.0, scale), rtol=tolerance)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_dropout_of_the_kernels(dtype: torch.dtype) -> None:
    """The expected share is dropped, the mean stays, the same seed drops the same, and gradients see the same mask."""
    texts = PackedBatch(torch.tensor([512] * 8, device="cuda"), 4096, 1024)
    qkv = torch.zeros(4096, 3, 256, device="cuda", dtype=dtype)  # queries and keys: all weights are equal
    qkv[:, 2] = 1.0
    qkv.requires_grad_()
    outputs = []
    for _ in range(2):
        torch.cuda.manual_seed(3)
        qkv.grad = None
        attended = attend(qkv.flatten(1), texts, heads=4, scale=0.125, dropout=0.25, only_last=False)
        attended.float().sum().backward()
        assert qkv.grad is not None
        outputs.append((attended.detach().float(), qkv.grad[:, 2].float()))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=2e-2)
    assert outputs[0][0].std() > 0.01
    assert float(outputs[0][0].mean()) == pytest.approx(1.0, abs=0.02)
    # The output is linear in the values, so with the same mask both are the same sum.
    assert float(outputs[0][1].sum()) == pytest.approx(float(outputs[0][0].sum()), rel=0.01)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_in_bf16_is_near_the_cpus_in_fp32(checkpointing: bool) -> None:
    """Under autocast on the GPU, with and without recomputed blocks, loss and gradients are near those of the CPU."""
    fields = {"n_embd": 128, "n_positions": 96, "initializer_range": 0.05}
    model = build(CLASSES[1], **fields)
    batch = collate(rows([90, 64, 64, 30, 5, 1]))
    expected, expected_gradients = gradients(model, batch)
    model.cuda()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    assert attention_for_training(64, torch.bfloat16, torch.device("cuda", 0)) is flash_attention
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output, found = gradients(model, {name: tensor.cuda() for name, tensor in batch.items()})
    assert float(output.loss.detach()) == pytest.approx(float(expected.loss), rel=0.03)
    for name, gradient in expected_gradients.items():
        error = (found[name].cpu() - gradient).norm() / gradient.norm().clamp(1e-6)
        assert error < 0.1, name


@pytest.mark.cuda
@needs_cuda
@pytest.mark.filterwarnings("default")  # PyTorch warns once that this check is new
def test_a_step_on_the_gpu_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch raises at the first operation of a step that waits for the device, and there is none."""
    model = build(CLASSES[1], n_embd=128, n_positions=96).cuda()
    batch = {name: tensor.cuda() for name, tensor in collate(rows([90, 64, 30, 5, 1])).items()}

    def step() -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            counts = label_counts(batch["labels"], model.terms)
            loss: torch.Tensor = model(**batch, num_items_in_batch=counts).loss
        loss.backward()
        return loss

    step()  # the first one tries the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
