"""Attention in tiles of 64 queries and 64 keys, a kernel in Triton's language; import it only where triton is.

Flash attention computes 128 queries at a time, which are mostly masked if texts are short. With TRITON_INTERPRET=1 at
the start of the process, Triton computes on the CPU, for tests.
"""

import math

import torch
import triton
import triton.language as tl

TILE = 64  # queries, and keys, that a program multiplies at once
WARPS, STAGES = 4, 2  # of a program; two stages load the next tile of keys while this one is multiplied


# Not specialized: where these numbers begin depends on the batch, and each case would be compiled when it first comes.
@triton.jit(do_not_specialize=("starts_q", "starts_k"))  # type: ignore[untyped-decorator, unused-ignore]
def _attend_tile(  # type: ignore[no-untyped-def]
    query, key, value, attended, starts_q, starts_k, factor, row_q, head_q, row_k, head_k,
    is_causal: tl.constexpr, width: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one text and head, in one pass over the keys (Milakov and Gimelshein 2018).

    `factor` is the scale over the logarithm of 2. `row_` and `head_` are strides, `_k` those of keys and values.
    """
    begin, head, text = tl.program_id(0) * tile, tl.program_id(1), tl.program_id(2)
    first_q, first_k = tl.load(starts_q + text).to(tl.int64), tl.load(starts_k + text).to(tl.int64)
    queries = (tl.load(starts_q + text + 1) - first_q).to(tl.int32)
    keys = (tl.load(starts_k + text + 1) - first_k).to(tl.int32)
    if begin >= queries:
        return
    columns = tl.arange(0, width)
    places_q = begin + tl.arange(0, tile)
    is_query = (places_q < queries)[:, None]
    here = first_q * row_q + head * head_q
    multiplied = tl.load(query + here + places_q[:, None] * row_q + columns[None, :], mask=is_query, other=0.0)
    largest = tl.full((tile,), float("-inf"), tl.float32)
    divisor = tl.zeros((tile,), tl.float32)
    total = tl.zeros((tile, width), tl.float32)
    here = first_k * row_k + head * head_k
    for begin_k in range(0, tl.minimum(begin + tile, keys) if is_causal else keys, tile):
        places_k = begin_k + tl.arange(0, tile)
        is_key = places_k < keys
        there = here + places_k[:, None] * row_k + columns[None, :]
        scores = tl.dot(multiplied, tl.load(key + there, mask=is_key[:, None], other=0.0).T)  # (queries, keys)
        is_seen = is_key[None, :]
        if is_causal:
            is_seen &= places_k[None, :] <= places_q[:, None]
        scores = tl.where(is_seen, scores, float("-inf"))
        # Never -inf after the first tile, because every query sees the text's first key.
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores * factor - (larger * factor)[:, None])
        shrink = tl.exp2((largest - larger) * factor)
        divisor = divisor * shrink + tl.sum(weights, axis=1)
        values = tl.load(value + there, mask=is_key[:, None], other=0.0)
        total = tl.dot(weights.to(values.dtype), values, total * shrink[:, None])
        largest = larger
    here = (first_q * tl.num_programs(1) + head) * width
    there = here + places_q[:, None] * (tl.num_programs(1) * width) + columns[None, :]
    tl.store(attended + there, (total / divisor[:, None]).to(attended.dtype.element_ty), mask=is_query)


def tile_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """As `padded_attention`, for bf16 and fp16, a positive scale, and heads whose width is a power of 2 from 16 on.

    A text's result is the same bits in any batch. With ``CAUSAL`` a text's queries are its keys. Rows that belong to no
    text are not written. There may be 65,535 texts.

    Raises:
        ValueError: keys and values have different strides, or the numbers of a head are not side by side.
    """
    if key.stride() != value.stride() or (query.stride(-1), key.stride(-1)) != (1, 1):
        raise ValueError(f"strides of queries, keys, values: {query.stride()}, {key.stride()}, {value.stride()}")
    _, heads, width = query.shape
    is_causal = window_size[1] == 0  # no token after a query's own
    attended = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grid = (triton.cdiv(max_q, TILE), heads, len(cu_seq_q) - 1)
    with torch.cuda.device_of(query):  # Triton launches on the current device, which may be another one
        _attend_tile[grid](
            query, key, value, attended, cu_seq_q, cu_seq_k, scale / math.log(2),
            *query.stride()[:2], *key.stride()[:2], is_causal, width, TILE, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return attended
