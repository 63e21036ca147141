"""How much memory a micro-batch takes at most on the CPU, known from its token count before anything is computed."""

from __future__ import annotations

import torch

from polyhead.checkpoint import Body
from polyhead.engine.cpu.forward import CHUNK_ROWS


def activation_bytes(body: Body, tokens: int) -> int:
    """An upper bound of what a micro-batch of so many tokens allocates beyond the weights, in any precision.

    In float32 matrices of (tokens, n_embd): the residual stream, ``c_attn``, attention's result, the padded copies of
    both and the pooled states are 12 at most; the C allocator keeps freed blocks between them. A process's highest mark
    showed 5.6 to 15, most where every text has two tokens; 20 are the bound. The MLP's rows pass in chunks.
    """
    inner = body.n_inner or 4 * body.n_embd
    chunks = min(tokens, CHUNK_ROWS * torch.get_num_threads())
    return 4 * (20 * body.n_embd * tokens + 2 * chunks * (body.n_embd + inner))
