"""Residual and layer norm as one kernel in Triton's language, which comes with torch for CUDA; import it only there.

The norms are those of the sums before they are rounded. With TRITON_INTERPRET=1 at the start of the process, Triton
computes on the CPU, for tests.
"""

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _write_row(total, hidden, normed, here, real, epsilon, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes a float32 row and its norm. The variance is the mean of squared distances from the mean."""
    tl.store(hidden + here, total.to(hidden.dtype.element_ty), mask=real)
    mean = tl.sum(total, axis=0) / width
    centred = tl.where(real, total - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    tl.store(normed + here, (centred * tl.rsqrt(variance + epsilon)).to(normed.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _add_row(hidden, change, added, normed, epsilon, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row per program."""
    columns = tl.arange(0, block)
    real = columns < width
    here = tl.program_id(0).to(tl.int64) * width + columns
    total = tl.load(hidden + here, mask=real, other=0.0).to(tl.float32)
    total += tl.load(change + here, mask=real, other=0.0).to(tl.float32)
    _write_row(total, added, normed, here, real, epsilon, width)


# Not specialized: where these numbers begin depends on the batch, and each case would be compiled when it first comes.
@triton.jit(do_not_specialize=("ids", "positions"))  # type: ignore[untyped-decorator, unused-ignore]
def _embed_row(  # type: ignore[no-untyped-def]
    ids, positions, token_table, position_table, hidden, normed, epsilon, width: tl.constexpr, block: tl.constexpr
):
    """One token per program."""
    columns = tl.arange(0, block)
    real = columns < width
    row = tl.program_id(0).to(tl.int64)
    token, position = tl.load(ids + row).to(tl.int64), tl.load(positions + row).to(tl.int64)
    total = tl.load(token_table + token * width + columns, mask=real, other=0.0).to(tl.float32)
    total += tl.load(position_table + position * width + columns, mask=real, other=0.0).to(tl.float32)
    _write_row(total, hidden, normed, row * width + columns, real, epsilon, width)


def fused_add(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `torch_add`, for contiguous matrices."""
    if not (hidden.is_contiguous() and change.is_contiguous() and hidden.shape == change.shape):
        raise ValueError(f"not two contiguous matrices of one shape: {hidden.shape}, {change.shape}")
    rows, width = hidden.shape
    added, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    block, warps = _block_of(width)
    with torch.cuda.device_of(hidden):  # Triton launches on the current device, which may be another one
        _add_row[(rows,)](hidden, change, added, normed, epsilon, width, block, num_warps=warps)
    return added, normed


def fused_embed(
    ids: torch.Tensor,
    positions: torch.Tensor,
    token_table: torch.Tensor,
    position_table: torch.Tensor,
    epsilon: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `torch_embed`, for contiguous tables."""
    if not (token_table.is_contiguous() and position_table.is_contiguous()):
        raise ValueError("a table is not contiguous")
    width = token_table.shape[1]
    hidden = torch.empty(len(ids), width, dtype=dtype, device=ids.device)
    normed = torch.empty_like(hidden)
    block, warps = _block_of(width)
    with torch.cuda.device_of(ids):
        _embed_row[(len(ids),)](
            ids, positions, token_table, position_table, hidden, normed, epsilon, width, block, num_warps=warps
        )
    return hidden, normed


def _block_of(width: int) -> tuple[int, int]:
    """Columns of a program, a power of two, and its warps."""
    block: int = triton.next_power_of_2(width)
    return block, min(max(block // 256, 1), 16)
