/* Causal attention of packed texts on AMX's tiles: queries, keys and values are bf16, all sums float32.
 *
 * One text and head after the other. Its keys and values are laid out once as tiles. Then tiles of 16 queries pass over
 * chunks of 32 keys, up to their own place:
 *
 *     scores    = queries (16 x 64) @ keys (64 x 32)      4 tile products
 *     weights   = 2 ^ (scores * scale - reference)        vectors, rounded to bf16
 *     contexts += weights (16 x 32) @ values (32 x 64)    4 tile products; contexts stay in four tiles
 *
 * The three steps work on three chunks at a time, because the tile unit and the vector units work side by side.
 *
 * Reference. A softmax may subtract any number from all scores of a query, not only the largest one, as long as no power
 * overflows: float32 and bf16 have the same range of exponents. Here it is the query's score with its text's first key,
 * so no largest score is sought and no context is scaled again. The sum is about 1 or more, because the first key weighs
 * 1. If a sum passes LIMIT, these 16 queries are computed again with the largest score.
 *
 * Rows of different texts are never in one product. So a text's bits depend on nothing but the text, and a NaN stays in
 * its text. Every function runs on the calling thread only. amx_attention.py checks shapes and types.
 */
#include <stdlib.h>

#include "tiles.h"

#define WIDTH 64 /* channels per head, as in every size of GPT-2 */
#define TILE 16  /* queries, or keys, in a tile */
#define CHUNK 32 /* keys whose weights are one tile */
#define CHUNK_BYTES 4096
#define LIMIT 0x1p60f
#define LOG2_E 1.44269504f
#define LONGEST_AHEAD 256 /* tokens; for longer texts asking for the next rows early does not pay */

/* ==== Vectors ====================================================================================================== */

#ifdef __AVX512DQ__
/* 2^t, and 0 where a bit of `seen` is 0. Relative error below 1.1e-4, a thirtieth of bf16's. NaN stays NaN. */
INLINE vec power(vec t, uint16_t seen) {
    vec f = (vec)_mm512_reduce_ps((__m512)t, 1); /* t - floor(t) */
    vec p = ((all(0.0794415f) * f + all(0.2240935f)) * f + all(0.6964377f)) * f + all(0.9998983f);
    return (vec)_mm512_maskz_scalef_ps(seen, (__m512)p, (__m512)t); /* p * 2^floor(t) */
}

/* The sum of each of 16 vectors. */
INLINE vec sums_of(const vec *x) {
    __m512 a[8], b[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m512 even = (__m512)x[2 * i], odd = (__m512)x[2 * i + 1];
        a[i] = _mm512_unpacklo_ps(even, odd) + _mm512_unpackhi_ps(even, odd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d even = (__m512d)a[2 * i], odd = (__m512d)a[2 * i + 1];
        b[i] = (__m512)_mm512_unpacklo_pd(even, odd) + (__m512)_mm512_unpackhi_pd(even, odd);
    }
    __m512 c = _mm512_shuffle_f32x4(b[0], b[1], 0x88) + _mm512_shuffle_f32x4(b[0], b[1], 0xdd);
    __m512 d = _mm512_shuffle_f32x4(b[2], b[3], 0x88) + _mm512_shuffle_f32x4(b[2], b[3], 0xdd);
    return (vec)(_mm512_shuffle_f32x4(c, d, 0x88) + _mm512_shuffle_f32x4(c, d, 0xdd));
}

/* A transposition of 16 x 16 values of 4 bytes. */
INLINE void transpose(const ivec *from, char *to) {
    __m512i r[16], t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32((__m512i)from[2 * i], (__m512i)from[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32((__m512i)from[2 * i], (__m512i)from[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        store_whole(to + i * 64, (ivec)_mm512_shuffle_i32x4(a, b, 0x88));
        store_whole(to + (4 + i) * 64, (ivec)_mm512_shuffle_i32x4(c, d, 0x88));
        store_whole(to + (8 + i) * 64, (ivec)_mm512_shuffle_i32x4(a, b, 0xdd));
        store_whole(to + (12 + i) * 64, (ivec)_mm512_shuffle_i32x4(c, d, 0xdd));
    }
}

/* 32 floats: even[0], odd[0], even[1], ... */
INLINE void store_merged(float *to, vec even, vec odd) {
    const __m512i left = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i right = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    store(to, (vec)_mm512_permutex2var_ps((__m512)even, left, (__m512)odd));
    store(to + 16, (vec)_mm512_permutex2var_ps((__m512)even, right, (__m512)odd));
}
/* The same rounded to bf16. */
INLINE void store_merged_bf16(uint16_t *to, vec even, vec odd) {
    const __m512i order = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                            0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
    store_whole(to, (ivec)_mm512_permutexvar_epi16(order, (__m512i)bf16_of(even, odd)));
}

#else /* ---- The same in plain C, for tests on a CPU without AVX-512 --------------------------------------------- */

static __attribute__((noinline)) vec power(vec t, uint16_t seen) {
    vec result = {};
    for (int i = 0; i < 16; i++)
        if (seen >> i & 1) result[i] = exp2f(t[i]);
    return result;
}
static __attribute__((noinline)) vec sums_of(const vec *x) {
    vec result = {};
    for (int r = 0; r < 16; r++)
        for (int i = 0; i < 16; i++) result[r] += x[r][i];
    return result;
}
static __attribute__((noinline)) void transpose(const ivec *from, char *to) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) ((int32_t *)to)[i * 16 + j] = from[j][i];
}
static __attribute__((noinline)) void store_merged(float *to, vec even, vec odd) {
    for (int i = 0; i < 16; i++) to[2 * i] = even[i], to[2 * i + 1] = odd[i];
}
static __attribute__((noinline)) void store_merged_bf16(uint16_t *to, vec even, vec odd) {
    for (int i = 0; i < 16; i++) to[2 * i] = to_bf16(even[i]), to[2 * i + 1] = to_bf16(odd[i]);
}
#endif

/* ==== A text's keys and values as tiles ============================================================================ */

/* The next rows that the caller asks for while it computes: queries, keys and values of a head. */
struct ahead {
    const char *row, *end;
    int64_t rows, stride, part; /* rows per chunk; bytes from row to row, and from queries to keys */
};

/* What one call needs, in one piece of memory. */
struct scratch {
    float scores[2][2][256]; /* of two chunks in turn: a tile for each half of the keys */
    uint16_t weights[2][512];
    uint16_t queries[2][512]; /* of a text's last tile, if it is not full */
    float contexts[4][256];   /* even and odd channels of the first half, then of the second */
    float references[16], sums[16];
    struct ahead ahead;
    char *keys;   /* a chunk: keys 0..15 by channels 0..31 and 32..63; keys 16..31 likewise */
    char *values; /* a chunk: channels 0, 2..30; 1, 3..31; 32, 34..62; 33, 35..63 */
};

INLINE void fetch_ahead(struct ahead *ahead) {
    const char *row = ahead->row;
    for (int64_t r = 0; r < ahead->rows && row < ahead->end; r++, row += ahead->stride)
        for (int part = 0; part < 3; part++) {
            _mm_prefetch(row + part * ahead->part, _MM_HINT_T0);
            _mm_prefetch(row + part * ahead->part + 64, _MM_HINT_T0);
        }
    ahead->row = row;
}

INLINE ivec row_or_zeros(const char *row, int is_there) { return is_there ? load_whole(row) : (ivec){}; }

/* Rows after the text are zeros. */
INLINE void lay_out_keys(const char *key, int64_t stride, int64_t length, char *to) {
    for (int64_t j = 0; j < length; j += TILE)
        for (int half = 0; half < 2; half++, to += 1024) {
            ivec rows[TILE];
#pragma GCC unroll 16
            for (int r = 0; r < TILE; r++) rows[r] = row_or_zeros(key + (j + r) * stride + half * 64, j + r < length);
            transpose(rows, to);
        }
}

/* Two values to a row of a tile for their even channels and to one for the odd: no shuffle is needed. */
INLINE void lay_out_values(const char *value, int64_t stride, int64_t length, char *values) {
    for (int64_t j = 0; j < length; j += CHUNK, values += CHUNK_BYTES)
        for (int64_t r = 0; r < CHUNK; r += 2)
            for (int half = 0; half < 2; half++) {
                const char *row = value + (j + r) * stride + half * 64;
                const ivec first = row_or_zeros(row, j + r < length), low = (ivec){} + 0xffff;
                const ivec second = row_or_zeros(row + stride, j + r + 1 < length);
                char *to = values + r * 32 + half * 2048;
                store_whole(to, (first & low) | (second << 16));
                store_whole(to + 1024, (first >> 16 & low) | (second & ~low));
            }
}

/* ==== A tile of queries ============================================================================================ */

/* Scores of the queries (tiles 4 and 5) with 16 keys, into tile 6. */
#define SCORES(keys)                     \
    do {                                 \
        tile_zero(6);                    \
        tile_load(7, keys, 64);          \
        tile_dot_bf16(6, 4, 7);          \
        tile_load(7, (keys) + 1024, 64); \
        tile_dot_bf16(6, 5, 7);          \
    } while (0)

/* Adds the weights (tile 6) of 32 keys times 32 channels of their values to two tiles. */
#define CONTEXTS(values, even, odd)        \
    do {                                   \
        tile_load(7, values, 64);          \
        tile_dot_bf16(even, 6, 7);         \
        tile_load(7, (values) + 1024, 64); \
        tile_dot_bf16(odd, 6, 7);          \
    } while (0)

/* Which keys of a chunk the queries see: all, or up to a query's own place in the first or the second half. */
enum seen { ALL, IN_FIRST_HALF, IN_SECOND_HALF };

/* Weights of some of the queries for a chunk. Their sum is that of the rounded weights, which the contexts are made of:
 * so rounding cancels in part, and the largest error is a third smaller than with the sum of exact weights. */
INLINE void weigh(struct scratch *s, int64_t chunk, vec scale, const enum seen seen, vec *sums, const int first,
                  const int end) {
    const float *left = s->scores[chunk & 1][0], *right = s->scores[chunk & 1][1];
#pragma GCC unroll 16
    for (int r = first; r < end; r++) {
        const uint16_t itself = (uint16_t)((2u << r) - 1);
        const vec reference = all(s->references[r]);
        vec a = power(load(left + 16 * r) * scale - reference, seen == IN_FIRST_HALF ? itself : 0xffff), b = {};
        if (seen != IN_FIRST_HALF) b = power(load(right + 16 * r) * scale - reference, seen == IN_SECOND_HALF ? itself : 0xffff);
        const ivec weights = bf16_of(a, b);
        sums[r] = add_bf16_pairs(sums[r], weights);
        store_whole(s->weights[chunk & 1] + 32 * r, weights);
    }
}

/* Contexts of the queries in tiles 4 and 5, to be divided by s->sums. They see `chunks` chunks; in the last one, query r
 * sees r + 1 keys, and with `odd` 16 more. Returns whether the sum of one of the first `rows` queries is not below LIMIT. */
INLINE int pass(struct scratch *s, int64_t chunks, int odd, float factor, int rows, const int has_references) {
    const vec scale = all(factor);
    vec sums[16] = {};
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    SCORES(s->keys);
    tile_store(6, s->scores[0][0], 64);
    if (chunks > 1 || odd) {
        SCORES(s->keys + 2048);
        tile_store(6, s->scores[0][1], 64);
    }
    if (!has_references)
        for (int r = 0; r < 16; r++) s->references[r] = s->scores[0][0][16 * r] * factor;
    const int64_t last = chunks - 1;
    for (int64_t j = 0; j < last; j++) {
        const char *keys = s->keys + (j + 1) * CHUNK_BYTES, *values = s->values + (j - 1) * CHUNK_BYTES;
        fetch_ahead(&s->ahead);
        SCORES(keys);
        weigh(s, j, scale, ALL, sums, 0, 6);
        tile_store(6, s->scores[(j + 1) & 1][0], 64);
        SCORES(keys + 2048); /* in the last chunk perhaps of keys that a longer text left, which no query sees */
        weigh(s, j, scale, ALL, sums, 6, 12);
        tile_store(6, s->scores[(j + 1) & 1][1], 64);
        if (j) {
            tile_load(6, s->weights[(j - 1) & 1], 64);
            CONTEXTS(values, 0, 1);
        }
        weigh(s, j, scale, ALL, sums, 12, 14);
        if (j) CONTEXTS(values + 2048, 2, 3);
        weigh(s, j, scale, ALL, sums, 14, 16);
    }
    fetch_ahead(&s->ahead);
    if (last) {
        tile_load(6, s->weights[(last - 1) & 1], 64);
        CONTEXTS(s->values + (last - 1) * CHUNK_BYTES, 0, 1);
        CONTEXTS(s->values + (last - 1) * CHUNK_BYTES + 2048, 2, 3);
    }
    if (odd) weigh(s, last, scale, IN_SECOND_HALF, sums, 0, 16);
    else weigh(s, last, scale, IN_FIRST_HALF, sums, 0, 16);
    tile_load(6, s->weights[last & 1], 64);
    CONTEXTS(s->values + last * CHUNK_BYTES, 0, 1);
    CONTEXTS(s->values + last * CHUNK_BYTES + 2048, 2, 3);
    tile_store(0, s->contexts[0], 64);
    tile_store(1, s->contexts[1], 64);
    tile_store(2, s->contexts[2], 64);
    tile_store(3, s->contexts[3], 64);
    store(s->sums, sums_of(sums));
    int is_beyond = 0;
    for (int r = 0; r < rows; r++) is_beyond |= !(s->sums[r] < LIMIT); /* NaN, too */
    return is_beyond;
}

/* The largest score of each query as its reference. */
static __attribute__((noinline)) void seek_references(struct scratch *s, int64_t chunks, int odd, float factor) {
    const int64_t halves = 2 * chunks - !odd;
    for (int r = 0; r < 16; r++) s->references[r] = -INFINITY;
    for (int64_t half = 0; half < halves; half++) {
        SCORES(s->keys + half * 2048);
        tile_store(6, s->scores[0][0], 64);
        for (int r = 0; r < 16; r++)
            for (int key = 0; key < (half == halves - 1 ? r + 1 : 16); key++)
                s->references[r] = fmaxf(s->references[r], s->scores[0][0][16 * r + key] * factor);
    }
}

/* ==== Packed texts ================================================================================================= */

struct packed {
    const char *qkv;
    char *out;
    const int64_t *starts;
    int64_t texts, heads, first_head, end_head;
    float factor; /* the scores' scale for powers of two */
};

/* The rows after those of a head: the text's next head, or the next text. */
INLINE struct ahead rows_after(const struct packed *p, int64_t text, int64_t head) {
    const int64_t part = p->heads * WIDTH * 2, stride = 3 * part, length = p->starts[text + 1] - p->starts[text];
    const int is_last = head + 1 == p->end_head;
    const int64_t next = is_last ? text + 1 : text, next_head = is_last ? p->first_head : head + 1;
    if (next == p->texts || length > LONGEST_AHEAD) return (struct ahead){0};
    const int64_t rows = p->starts[next + 1] - p->starts[next], chunks = (length + CHUNK - 1) / CHUNK;
    const int64_t steps = chunks * (chunks + 1); /* chunks of all tiles of queries */
    const char *first = p->qkv + p->starts[next] * stride + next_head * WIDTH * 2;
    return (struct ahead){first, first + rows * stride, (rows + steps - 1) / steps, stride, part};
}

INLINE void write_contexts(const struct scratch *s, char *to, int64_t stride, int rows, const int to_float) {
    for (int r = 0; r < rows; r++, to += stride) {
        const vec factor = all(1.0f / s->sums[r]);
        for (int half = 0; half < 2; half++) {
            vec even = load(s->contexts[2 * half] + 16 * r) * factor, odd = load(s->contexts[2 * half + 1] + 16 * r) * factor;
            if (to_float) store_merged((float *)to + 32 * half, even, odd);
            else store_merged_bf16((uint16_t *)to + 32 * half, even, odd);
        }
    }
}

INLINE void attend(const struct packed *p, struct scratch *s, const int to_float) {
    const int64_t part = p->heads * WIDTH * 2, stride = 3 * part, size = to_float ? 4 : 2;
    for (int64_t text = 0; text < p->texts; text++) {
        const int64_t start = p->starts[text], length = p->starts[text + 1] - start;
        for (int64_t head = p->first_head; head < p->end_head; head++) {
            const char *query = p->qkv + start * stride + head * WIDTH * 2;
            s->ahead = rows_after(p, text, head);
            lay_out_keys(query + part, stride, length, s->keys);
            lay_out_values(query + 2 * part, stride, length, s->values);
            for (int64_t i = 0; i < length; i += TILE) {
                const int rows = length - i < TILE ? (int)(length - i) : TILE, odd = i / TILE & 1;
                if (rows == TILE) {
                    tile_load(4, query + i * stride, stride);
                    tile_load(5, query + i * stride + 64, stride);
                } else { /* the next rows may be another text's, or not be there */
                    for (int r = 0; r < TILE; r++)
                        for (int half = 0; half < 2; half++)
                            store_whole(s->queries[half] + 32 * r, row_or_zeros(query + (i + r) * stride + half * 64, r < rows));
                    tile_load(4, s->queries[0], 64);
                    tile_load(5, s->queries[1], 64);
                }
                if (__builtin_expect(pass(s, i / CHUNK + 1, odd, p->factor, rows, 0), 0)) {
                    seek_references(s, i / CHUNK + 1, odd, p->factor);
                    pass(s, i / CHUNK + 1, odd, p->factor, rows, 1);
                }
                char *to = p->out + ((start + i) * p->heads + head) * WIDTH * size;
                write_contexts(s, to, p->heads * WIDTH * size, rows, to_float);
            }
        }
    }
}

/* Some heads of texts. qkv: bf16 rows of 3 * heads * WIDTH; out: rows of heads * WIDTH, bf16 or float32; starts: texts + 1
 * rows. Returns 0, or 1 if memory is short. */
int32_t polyhead_amx_attention(const char *qkv, char *out, const int64_t *starts, int64_t texts, int64_t heads,
                               int64_t first_head, int64_t end_head, float scale, int32_t to_float) {
    int64_t longest = 0;
    for (int64_t t = 0; t < texts; t++) longest = starts[t + 1] - starts[t] > longest ? starts[t + 1] - starts[t] : longest;
    const size_t bytes = (size_t)((longest + CHUNK - 1) / CHUNK * CHUNK_BYTES), own = (sizeof(struct scratch) + 63) / 64 * 64;
    struct scratch *s = aligned_alloc(64, own + 2 * bytes);
    if (s == NULL) return 1;
    s->keys = (char *)s + own, s->values = s->keys + bytes;
    memset(s->keys, 0, bytes); /* a text's last chunk may have keys in its first half only */
    const struct packed p = {qkv, out, starts, texts, heads, first_head, end_head, scale * LOG2_E};
    tile_config before;
    tiles_begin(&before);
    if (to_float) attend(&p, s, 1);
    else attend(&p, s, 0);
    tiles_end(&before);
    free(s);
    return 0;
}
