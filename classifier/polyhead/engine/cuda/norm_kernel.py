"""Residual and layer norm as one kernel in Triton's language, which comes with torch for CUDA; import it only there.

With TRITON_INTERPRET=1 at the start of the process, Triton computes it on the CPU, for tests.
"""

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _add_norm_row(hidden, change, added, normed, epsilon, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row per program. Sums are float32, the variance is the mean of squared distances from the mean."""
    columns = tl.arange(0, block)
    here = tl.program_id(0).to(tl.int64) * width + columns
    real = columns < width
    total = tl.load(hidden + here, mask=real, other=0.0).to(tl.float32)
    total += tl.load(change + here, mask=real, other=0.0).to(tl.float32)
    tl.store(added + here, total.to(added.dtype.element_ty), mask=real)
    mean = tl.sum(total, axis=0) / width
    centred = tl.where(real, total - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    tl.store(normed + here, (centred * tl.rsqrt(variance + epsilon)).to(normed.dtype.element_ty), mask=real)


def fused_add_norm(hidden: torch.Tensor, change: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `torch_add_norm`, for contiguous matrices of one dtype; the norm is that of the sum before it is rounded."""
    if not (hidden.is_contiguous() and change.is_contiguous() and hidden.shape == change.shape):
        raise ValueError(f"not two contiguous matrices of one shape: {hidden.shape}, {change.shape}")
    rows, width = hidden.shape
    block = triton.next_power_of_2(width)
    added, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    with torch.cuda.device_of(hidden):  # Triton launches on the current device, which may be another one
        _add_norm_row[(rows,)](
            hidden, change, added, normed, epsilon, width, block, num_warps=min(max(block // 256, 1), 16)
        )
    return added, normed
