"""How much memory a micro-batch takes at most, known from its token count before anything is computed."""

from __future__ import annotations

from polyhead.checkpoint import Body


def activation_bytes(body: Body, tokens: int) -> int:
    """An upper bound of what a micro-batch of so many tokens allocates beyond the weights.

    In float32 matrices of (tokens, n_embd): the MLP has the residual stream, its layer norm, ``c_fc`` and the
    activation, 1 + 1 + 4 + 4; attention with a quarter of padding the residual stream, ``c_attn``, its result and the
    padded copies of both, 1 + 3 + 1 + 3.75 + 2.5; the pooled states of four layers come on top where every text is one
    token long. So 15.25 are alive at most. The C allocator keeps freed blocks between them: 17.3 were measured as a
    process's highest mark, and 24 are the bound; a wider ``n_inner`` counts with the same reserve.
    """
    inner = body.n_inner or 4 * body.n_embd
    floats = max(24 * body.n_embd, 4 * (body.n_embd + inner))
    return 4 * floats * tokens
