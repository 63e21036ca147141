"""The CPU engine's own kernels, in C: attention, GELU and the passes around 8-bit products; see kernels.c."""

from polyhead.engine.cpu.kernels.library import GELU_FLOOR, HEAD_WIDTH, KERNELS, Kernels

__all__ = ["GELU_FLOOR", "HEAD_WIDTH", "KERNELS", "Kernels"]
