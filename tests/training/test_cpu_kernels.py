"""Training's kernels on a CPU: products, attention, GELU and dropout, and their gradients, as PyTorch computes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2Model, pytorch_utils

from polyhead.engine.cpu.kernels import LIBRARY
from polyhead.engine.cpu.kernels.training import AttentionOptions, TrainingKernels
from polyhead_training.model import cpu
from polyhead_training.model.attention import PackedBatch, attend
from polyhead_training.model.cpu import GELU, Conv1D, Dropout
from polyhead_training.model.modeling import GPT2BaseForSequenceClassification
from polyhead_training.model.packing import collate
from tests.build_hook import compiled_targets
from tests.threads import threads
from tests.training.test_packing import CLASSES, build, gradients, rows

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}
SCALE = 0.2


@pytest.fixture(scope="module", params=compiled_targets())
def compiled(request: pytest.FixtureRequest) -> TrainingKernels:
    """The kernels of one target."""
    return TrainingKernels(LIBRARY.with_name(f"kernels_{request.param}.so"))


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Other tests use one."""
    with threads(3):
        yield


def starts_of(lengths: list[int]) -> torch.Tensor:
    """``(texts + 1,)``."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def attended(qkv: torch.Tensor, lengths: list[int], heads: int, only_last: bool) -> torch.Tensor:
    """PyTorch's attention, one text at a time."""
    results = []
    for text in qkv.split(lengths):
        query, key, value = text.view(1, len(text), 3, heads, -1).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALE)
        found = context.transpose(1, 2).reshape(len(text), -1)
        results.append(found[-1:] if only_last else found)
    return torch.cat(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    width=st.sampled_from([4, 20, 32, 48, 64, 96]),
    only_last=st.booleans(),
)
def test_attention_and_its_gradient_are_pytorchs(
    compiled: TrainingKernels, dtype: torch.dtype, lengths: list[int], width: int, only_last: bool
) -> None:
    """Of any lengths and any width of heads, within rounding of float64; no row of another text is touched."""
    options, starts = AttentionOptions(3, SCALE, 0.0, 0, only_last), starts_of(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), 9 * width, generator=generator).to(dtype)
    exact = qkv.double().requires_grad_()
    expected = attended(exact, lengths, 3, only_last)
    grad = torch.randn(expected.shape, generator=generator).to(dtype)
    expected.backward(grad.double())
    assert exact.grad is not None
    for found, right in (
        (compiled.attend(qkv, starts, options), expected.detach()),
        (compiled.attend_backward(grad, qkv, starts, options), exact.grad),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), right, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype])


def test_long_texts(compiled: TrainingKernels) -> None:
    """A text of 1,024 tokens beside one of 1."""
    lengths = [1024, 1]
    options, starts, qkv = AttentionOptions(1, SCALE, 0.0, 0, False), starts_of(lengths), torch.randn(1025, 96)
    leaf = qkv.double().requires_grad_()
    attended(leaf, lengths, 1, False).sum().backward()
    assert leaf.grad is not None
    found = compiled.attend_backward(torch.ones(1025, 32), qkv, starts, options)
    torch.testing.assert_close(found.double(), leaf.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("only_last", [False, True])
def test_threads_change_no_bit(compiled: TrainingKernels, only_last: bool) -> None:
    """Work divided among three threads gives what one thread gives, dropout too."""
    lengths = [300, 299, 120, 5, 1, 1]
    options, starts = AttentionOptions(3, SCALE, 0.1, 7, only_last), starts_of(lengths)
    qkv, grad = torch.randn(sum(lengths), 288), torch.randn(len(lengths) if only_last else sum(lengths), 96)
    x = torch.randn(701, 301)  # three parts of it would not end at whole vectors

    def run() -> list[torch.Tensor]:
        return [
            compiled.attend(qkv, starts, options),
            compiled.attend_backward(grad, qkv, starts, options),
            compiled.gelu(x),
            compiled.gelu_backward(x, x.flip(0).contiguous()),
            compiled.dropout(x, 0.1, 3),
        ]

    divided = run()
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(divided, run(), strict=True))


def test_dropped_attention_by_hand(compiled: TrainingKernels) -> None:
    """With equal scores the result shows the dropped shares; the gradient is that of the same shares."""
    tokens, share = 256, 0.25
    options, starts = AttentionOptions(1, SCALE, share, 11, False), starts_of([tokens])
    qkv = torch.zeros(tokens, 3, tokens)
    qkv[:, 2] = torch.eye(tokens)  # the result's row i is the shares of token i
    shares = compiled.attend(qkv.flatten(1), starts, options)
    seen = torch.ones(tokens, tokens).tril()
    equal = seen / seen.sum(1, keepdim=True)
    is_kept = shares > 0
    torch.testing.assert_close(shares, torch.where(is_kept, equal / (1 - share), 0.0))
    assert float(is_kept.sum() / seen.sum()) == pytest.approx(1 - share, abs=0.01)
    # By hand, with m = kept / (1 - share): dV = (p m)^T dO, dS = p (m dP - sum of p m dP), dK = scale dS^T Q = 0.
    qkv[:, 1] = torch.randn(tokens, tokens) * 1e-4  # keys show dS in the gradient of queries, and hardly change p
    grad = torch.randn(tokens, tokens)
    found = compiled.attend_backward(grad, qkv.flatten(1), starts, options).view(tokens, 3, tokens)
    torch.testing.assert_close(found[:, 2], shares.T @ grad, atol=1e-5, rtol=1e-4)
    scores_grad = shares * grad - equal * (shares * grad).sum(1, keepdim=True)  # dP = dO V^T = dO
    torch.testing.assert_close(found[:, 0], SCALE * scores_grad @ qkv[:, 1], atol=1e-7, rtol=1e-3)


def test_another_seed_drops_others(compiled: TrainingKernels) -> None:
    """Heads, texts, rows and seeds drop independently of each other."""
    lengths, width = [64, 64], 64
    qkv = torch.zeros(128, 3, 2, width)
    qkv[:, 2] = torch.eye(64).repeat(2, 1)[:, None]
    masks = []
    for seed in (1, 2):
        options = AttentionOptions(2, SCALE, 0.5, seed, False)
        kept = compiled.attend(qkv.flatten(1), starts_of(lengths), options).view(2, 64, 2, width) > 0
        masks += [kept[text, 32:, head, :32].flatten().float() for text in (0, 1) for head in (0, 1)]
        masks.append(kept[0, 32:, 0, :32].roll(1, dims=0).flatten().float())
    correlation = torch.corrcoef(torch.stack(masks)) - torch.eye(len(masks))
    assert correlation.abs().max() < 0.15  # of 1,024 places, so 0.03 is one standard deviation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gelu_and_its_gradient(compiled: TrainingKernels, dtype: torch.dtype) -> None:
    """PyTorch's tanh form in float64, also far from zero."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-3e38, -200.0, 200.0])]).to(dtype)
    exact = x.double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    expected.sum().backward()
    assert exact.grad is not None
    exact.grad[0] = 0.0  # PyTorch overflows here
    rounding = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(compiled.gelu(x).double(), expected.detach(), atol=rounding, rtol=rounding)
    found = compiled.gelu_backward(torch.ones_like(x), x)
    torch.testing.assert_close(found.double(), exact.grad, atol=rounding, rtol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_keeps_the_mean_and_has_the_gradient_of_what_it_kept(dtype: torch.dtype) -> None:
    """A tenth becomes zero, the rest grows by 10 / 9; in evaluation nothing happens."""
    module, x = Dropout(0.1), torch.ones(300, 200, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    y = module(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(y.detach(), x.grad)
    assert y.unique().tolist() == [0.0, pytest.approx(10 / 9, rel=1e-2)]
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    torch.manual_seed(0)
    assert torch.equal(module(x), y)
    assert not torch.equal(module(x), y)
    assert module.eval()(x) is x


@pytest.mark.parametrize("model_class", CLASSES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=9))
def test_a_step_is_the_same_without_the_kernels(
    model_class: Any, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, loss and every gradient, whether or not a library was compiled."""
    model, batch = build(model_class), collate(rows(lengths))
    assert isinstance(model.body_model.h[0].mlp.act, GELU)
    output, found = gradients(model, batch)
    with monkeypatch.context() as without:
        without.setattr("polyhead_training.model.cpu.training_kernels", lambda: None)
        expected, expected_gradients = gradients(model, batch)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-4)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_bf16_is_near_float32() -> None:
    """Under autocast, loss and gradients are near those in float32."""
    model, batch = build(CLASSES[1], n_embd=128, initializer_range=0.05), collate(rows([20, 17, 17, 3, 1]))
    expected, expected_gradients = gradients(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, found = gradients(model, batch)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)
    for name, gradient in expected_gradients.items():
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm().clamp(1e-6), name


def test_dropout_is_recomputed_with_the_block() -> None:
    """Gradient checkpointing drops the same attention weights and values twice: same gradients, bit for bit."""
    model, batch = build(CLASSES[0]), collate(rows([5, 9, 9, 2]))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    torch.manual_seed(1)
    _, expected = gradients(model, batch)
    model.activation_checkpointing_enable()
    torch.manual_seed(1)
    _, again = gradients(model, batch)
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
    torch.manual_seed(2)
    _, other = gradients(model, batch)
    assert not torch.equal(other["head.weight"], expected["head.weight"])


def test_other_types_take_pytorch() -> None:
    """float64 has no kernel; attention has its gradient all the same."""
    qkv = torch.randn(6, 24, dtype=torch.float64, requires_grad=True)
    texts = PackedBatch(torch.tensor([4, 2]), 6, 8)
    assert torch.autograd.gradcheck(
        lambda x: attend(x, texts, heads=2, scale=SCALE, dropout=0.0, only_last=True), [qkv]
    )


def test_wrong_tensors_are_refused(compiled: TrainingKernels) -> None:
    """What training.c would misread raises an error."""
    qkv, starts, options = torch.ones(4, 24), starts_of([3, 1]), AttentionOptions(2, SCALE, 0.0, 0, False)
    bad: list[tuple[torch.Tensor, torch.Tensor]] = [
        (qkv.double(), starts), (qkv.t(), starts), (qkv, starts.long()), (qkv, starts_of([3])),
        (qkv, starts_of([5])), (qkv, starts_of([4, 0])), (qkv, starts[1:]),
    ]  # fmt: skip
    for tensor, places in bad:
        with pytest.raises(TypeError, match=r"kernels take dense|texts must fill"):
            compiled.attend(tensor, places, options)
    with pytest.raises(TypeError, match="kernels take dense"):
        compiled.attend_backward(torch.ones(4, 7), qkv, starts, options)
    with pytest.raises(ValueError, match="dropout must lie in 0 to 1"):
        compiled.attend(qkv, starts, options._replace(dropout=1.0))
    with pytest.raises(TypeError, match="kernels take dense"):
        compiled.gelu_backward(torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("frozen", ["", "weight", "bias", "x"])
def test_a_linear_layer_and_its_gradients_are_pytorchs(frozen: str) -> None:
    """Packed rows in float32 within rounding of float64; what is frozen gets no gradient."""
    layer = Conv1D(70, 300)
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(45, 300, requires_grad=frozen != "x")
    parts = {"x": x, "weight": layer.weight, "bias": layer.bias}
    if frozen:
        parts[frozen].requires_grad_(False)
    exact = {name: part.detach().double().requires_grad_() for name, part in parts.items()}
    found, expected = layer(x), exact["x"] @ exact["weight"] + exact["bias"]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    grad = torch.randn(70, 45).t()  # not dense in rows
    found.backward(grad)
    expected.backward(grad.double())
    for name, part in parts.items():
        if name == frozen:
            assert part.grad is None
        else:
            torch.testing.assert_close(part.grad.double(), exact[name].grad, atol=1e-4, rtol=1e-5)


def test_padded_rows_and_bf16_have_transformers_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden rows come from padded batches, so they do not depend on our products; autocast computes in bf16."""
    monkeypatch.setattr(cpu, "_apply", lambda *arguments: pytest.fail("our product"))
    layer = Conv1D(6, 8)
    x = torch.randn(2, 3, 8)
    assert layer(x).equal(pytorch_utils.Conv1D.forward(layer, x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x[0]).dtype == torch.bfloat16


def test_a_model_takes_our_layers_and_transformers_initial_weights() -> None:
    """The weights are those that transformers draws for this seed, with its smaller spread for projections."""
    config = GPT2Config(n_embd=64, n_layer=8, n_head=1, vocab_size=50, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(3)
    plain = GPT2Model(config).state_dict()
    torch.manual_seed(3)
    body = GPT2BaseForSequenceClassification(config, head_class_sizes=3).body_model
    assert all(isinstance(block.mlp.c_fc, Conv1D) for block in body.h)
    assert body.state_dict().keys() == plain.keys()
    assert all(tensor.equal(plain[key]) for key, tensor in body.state_dict().items())
