"""The engine's products compute what float64 does up to rounding, for every target, and each row by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.engine.cpu.kernels import LIBRARY
from polyhead.engine.cpu.kernels.products import Finish, Products
from tests.build_hook import compiled_targets
from tests.threads import threads


@pytest.fixture(scope="module", params=compiled_targets())
def products(request: pytest.FixtureRequest) -> Products:
    """The products of one target."""
    return Products(LIBRARY.with_name(f"kernels_{request.param}.so"))


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Other tests use one."""
    with threads(3):
        yield


def drawn(*shape: int, transposed: bool = False) -> torch.Tensor:
    """Normal values; `transposed` ones are dense in columns."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape[::-1], generator=generator).t() if transposed else torch.randn(shape, generator=generator)


def assert_near(found: torch.Tensor, exact: torch.Tensor, inner: int) -> None:
    """Within what float32 rounds in sums of so many products."""
    torch.testing.assert_close(found.double(), exact, atol=3e-6 * (4 + inner**0.5), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40) | st.sampled_from([192, 193, 400]),
    inner=st.integers(1, 40) | st.sampled_from([255, 256, 257, 1024, 1025, 2100]),
    columns=st.integers(1, 70),
    transposed=st.tuples(st.booleans(), st.booleans()),
    has_bias=st.booleans(),
)
def test_products_are_those_of_float64(
    products: Products, rows: int, inner: int, columns: int, transposed: tuple[bool, bool], has_bias: bool
) -> None:
    """Of any shape and any strides, stored, added or through GELU; nothing beside the result is written."""
    x, weight = drawn(rows, inner, transposed=transposed[0]), drawn(inner, columns, transposed=transposed[1])
    bias = drawn(columns) if has_bias else None
    panels = products.pack(weight, bias)
    exact = x.double() @ weight.double() + (bias.double() if bias is not None else 0)
    wide = torch.full((rows, columns + 9), 3.0)
    products.product(x, panels, "store", wide[:, 4 : columns + 4])
    assert_near(wide[:, 4 : columns + 4], exact, inner)
    assert (wide[:, :4] == 3).all()
    assert (wide[:, columns + 4 :] == 3).all()
    residual = drawn(rows, columns)
    assert_near(products.product(x, panels, "add", residual.clone()), residual.double() + exact, inner)
    assert_near(products.product(x, panels, "gelu"), F.gelu(exact, approximate="tanh"), inner)


def test_a_product_by_hand(products: Products) -> None:
    """(1 2) times a 2 x 3 weight, plus a bias; GELU of -100 is zero and of 100 is 100."""
    panels = products.pack(torch.tensor([[1.0, 0.0, -100.0], [3.0, 0.5, 0.0]]), torch.tensor([0.0, 99.0, 0.0]))
    x = torch.tensor([[1.0, 2.0]])
    assert products.product(x, panels).tolist() == [[7.0, 100.0, -100.0]]
    assert products.product(x, panels, "add", torch.ones(1, 3)).tolist() == [[8.0, 101.0, -99.0]]
    assert products.product(x, panels, "gelu").tolist() == [[pytest.approx(7), 100.0, pytest.approx(0, abs=1e-30)]]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("finish", ["store", "add", "gelu"])
@pytest.mark.parametrize("shape", [(300, 96), (1500, 200), (64, 5)], ids=str)
def test_a_row_has_the_same_bits_with_any_other_rows(
    products: Products, finish: Finish, shape: tuple[int, int]
) -> None:
    """401 rows divided among threads: each row, and each run of rows, has the bits that it has alone."""
    inner, columns = shape
    x, residual = drawn(401, inner), drawn(401, columns)
    panels = products.pack(drawn(inner, columns), drawn(columns))
    together = products.product(x, panels, finish, residual.clone())
    for first, end in ((0, 1), (11, 13), (191, 193), (400, 401), *((50, 50 + rows) for rows in range(1, 14))):
        found = products.product(x[first:end], panels, finish, residual[first:end].clone())
        assert found.equal(together[first:end])
    copied = products.product(x.t().contiguous().t(), panels, finish, residual.clone())
    assert copied.equal(together)


@pytest.fixture
def short(products: Products) -> Products:
    """Products of a target that has the instructions for bfloat16 and 8 bits."""
    if not products.has_short_values:
        pytest.skip("not compiled for bfloat16 and 8 bits")
    return products


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40) | st.sampled_from([192, 193, 400]),
    pairs=st.integers(1, 40) | st.sampled_from([255, 256, 257, 1600]),
    columns=st.integers(1, 70),
    transposed=st.booleans(),
    has_bias=st.booleans(),
)
def test_bf16_products_are_rounded_once(
    short: Products, rows: int, pairs: int, columns: int, transposed: bool, has_bias: bool
) -> None:
    """Inputs are bfloat16; sums, bias, residual and GELU are float32, so only the result is rounded."""
    inner = 2 * pairs
    x, weight = drawn(rows, inner).bfloat16(), drawn(inner, columns, transposed=transposed)
    bias = drawn(columns) if has_bias else None
    panels = short.pack(weight, bias, torch.bfloat16)
    exact = x.double() @ weight.bfloat16().double() + (bias.double() if bias is not None else 0)
    residual = drawn(rows, columns).bfloat16()
    for finish, expected in (
        ("store", exact),
        ("add", residual.double() + exact),
        ("gelu", F.gelu(exact, approximate="tanh")),
    ):
        found = short.product(x, panels, finish, residual.clone())
        assert found.dtype == torch.bfloat16
        # Half a step of bfloat16, and what float32 rounds in the sums.
        torch.testing.assert_close(found.double(), expected, atol=3e-6 * (4 + inner**0.5), rtol=2**-8)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("finish", ["store", "add", "gelu"])
def test_a_row_in_bf16_has_the_same_bits_with_any_other_rows(short: Products, finish: Finish) -> None:
    """401 rows divided among threads: each run of rows has the bits that it has alone."""
    x, residual = drawn(401, 1500).bfloat16(), drawn(401, 200).bfloat16()
    panels = short.pack(drawn(1500, 200), drawn(200), torch.bfloat16)
    together = short.product(x, panels, finish, residual.clone())
    for first, end in ((0, 1), (191, 193), (400, 401), *((50, 50 + rows) for rows in range(1, 14))):
        found = short.product(x[first:end], panels, finish, residual[first:end].clone())
        assert found.equal(together[first:end])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40) | st.sampled_from([192, 193, 400]),
    fours=st.integers(1, 40) | st.sampled_from([255, 256, 257, 800]),
    columns=st.integers(1, 70),
    zero_point=st.sampled_from([0, 128]),
    has_bias=st.booleans(),
    has_row_scales=st.booleans(),
)
def test_products_of_8_bits_are_exact_sums(
    short: Products, rows: int, fours: int, columns: int, zero_point: int, has_bias: bool, has_row_scales: bool
) -> None:
    """Every sum is a whole number; then zero point, scales, bias, and the residual, GELU, or neither."""
    generator = torch.Generator().manual_seed(rows + fours + columns)
    x = torch.randint(0, 256, (rows, 4 * fours), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-127, 128, (4 * fours, columns), dtype=torch.int8, generator=generator)
    scales, row_scales = drawn(columns).abs() / 100, drawn(rows + 1)[:rows].abs() / 100 if has_row_scales else None
    bias, residual = drawn(columns) if has_bias else None, drawn(rows, columns)
    sums = (x.double() - zero_point) @ weight.double()
    exact = sums * scales.double() * (row_scales.double()[:, None] if row_scales is not None else 1)
    exact += bias.double() if bias is not None else 0
    panels = short.pack_int8(weight, scales, bias, zero_point)
    for finish, expected in (
        ("store", exact),
        ("add", residual.double() + exact),
        ("gelu", F.gelu(exact, approximate="tanh")),
    ):
        found = short.product(x, panels, finish, residual.clone(), row_scales)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=3e-6, rtol=1e-6)


@pytest.mark.usefixtures("three_threads")
def test_a_row_of_8_bits_has_the_same_bits_with_any_other_rows(short: Products) -> None:
    """401 rows divided among threads: each run of rows has the bits that it has alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (401, 1500), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-127, 128, (1500, 200), dtype=torch.int8, generator=generator)
    panels, row_scales = short.pack_int8(weight, drawn(200).abs(), drawn(200), 128), drawn(401).abs()
    together = short.product(x, panels, "store", None, row_scales)
    for first, end in ((0, 1), (191, 193), (400, 401), *((50, 50 + rows) for rows in range(1, 14))):
        found = short.product(x[first:end], panels, "store", None, row_scales[first:end])
        assert found.equal(together[first:end])


@pytest.mark.usefixtures("three_threads")
def test_a_weight_is_packed_by_threads_too(products: Products) -> None:
    """A large weight is divided among threads, dense in rows or in columns."""
    weight = drawn(1024, 300)
    packed = products.pack(weight)
    assert packed.values.equal(products.pack(weight.t().contiguous().t()).values)
    assert_near(products.product(torch.eye(1024), packed), weight.double(), 1)


def test_a_value_that_is_not_finite_stays_in_its_row(products: Products) -> None:
    """NaN and infinity reach their row's results, and no other row's."""
    x = drawn(30, 40)
    x[7, 3], x[20, 0] = torch.nan, torch.inf
    found = products.product(x, products.pack(drawn(40, 50)))
    assert (~found.isfinite()).any(1).tolist() == [row in (7, 20) for row in range(30)]


def test_what_products_do_not_take(products: Products) -> None:
    """Another type, another width, and results that are not dense in rows."""
    panels = products.pack(drawn(4, 3))
    for weight in (drawn(4, 3).double(), drawn(4), drawn(4, 3).to("meta")):
        with pytest.raises(TypeError, match=r"products take torch\.float32 matrices"):
            products.pack(weight)
    for x, out in ((drawn(2, 5), None), (drawn(2, 4).bfloat16(), None), (drawn(2, 4), drawn(2, 4))):
        with pytest.raises(TypeError, match=r"products take torch\.float32 matrices"):
            products.product(x, panels, "store", out)
    for out in (drawn(1, 3), drawn(2, 3, transposed=True)):
        with pytest.raises(TypeError, match="2 dense rows"):
            products.product(drawn(2, 4), panels, "store", out)


def test_what_products_of_short_values_do_not_take(short: Products) -> None:
    """A number of rows of a weight that leaves some over, inputs that are not dense, and another type."""
    with pytest.raises(TypeError, match="with 6 rows of a weight"):
        short.pack_int8(torch.zeros(6, 3, dtype=torch.int8), drawn(3), None, 0)
    with pytest.raises(TypeError, match="with 5 rows of a weight"):
        short.pack(drawn(5, 3), dtype=torch.bfloat16)
    panels = short.pack(drawn(4, 3), dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="dense rows"):
        short.product(drawn(2, 4, transposed=True).bfloat16(), panels)
    with pytest.raises(TypeError, match=r"products take torch\.bfloat16 matrices"):
        short.product(drawn(2, 4), panels)


def test_a_target_without_bf16_says_so() -> None:
    """As compiled for AVX2."""
    library = LIBRARY.with_name("kernels_AVX2.so")
    if not library.exists():
        pytest.skip("not compiled")
    with pytest.raises(TypeError, match="not possible here"):
        Products(library).pack(drawn(4, 3), dtype=torch.bfloat16)
