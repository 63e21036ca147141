/* Matrix products y = x @ weight on AMX's tiles, with what follows them: bias, GELU, the residual, scales of 8 bits.
 *
 * bf16: sums are float32, over 32 inner values at a time in ascending order. int8: uint8 x, int8 weight, int32 sums.
 * A row's bits depend on the row and the weight alone, whatever the other rows are and however work is divided.
 *
 * Layout. A step is 64 bytes of the inner dimension: 32 bf16 or 64 int8 values. A part is up to MOST_STEPS steps, a
 * panel 32 columns. The weight is packed once, at load: by part, in it by panel, in it by step, in it two tiles of 16
 * columns. x and y are rows, or tiles of 16 rows: `struct matrix` describes both.
 *
 * Loops. Up to PASSING rows of x stay in the second-level cache. A panel's part is read from the first-level cache
 * while these rows pass by it as streaming loads, which leave it there. 32 x 32 sums lie in four tiles; between parts
 * they lie in memory as the float32 they are, so no bit depends on how the inner dimension is cut.
 * What follows the product is done to the previous 32 x 32 sums, some rows per step, because the tile instructions
 * leave the vector units idle.
 *
 * Every function runs on the calling thread only. amx.py checks shapes and types, because nothing here does.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "tiles.h"

#ifndef SOURCE
#define SOURCE ""
#endif
#define ALIGNMENT 64
#define PASSING 512
#define MOST_STEPS(kind) ((kind) == BF16 ? 24 : 12) /* 48 or 24 KiB of a panel */
#define KEPT_STEPS 18                               /* of a panel's part stay in the first-level cache: 36 of its 48 KiB */
#define BLOCK 1024                                  /* 32 x 32 sums */
#define GELU_FLOOR 0.1701f                          /* gelu(y) > -0.1701 */
#define LEVELS 255.0f

enum kind { BF16, INT8 };
enum finish { TO_BF16, TO_FLOAT, ADD_BF16, ADD_FLOAT, GELU_BF16, GELU_HALF }; /* the last for int8: half precision */

const char *polyhead_source(void) { return SOURCE; } /* the sources' hash; shows whether a library is stale */
int32_t polyhead_amx_request(void) { return tiles_request(); }

/* The address of row r and step s: base + (r / 16) * tile + (r % 16) * row + s * step. A step of y is 32 columns. */
struct matrix {
    char *base;
    int64_t row, tile, step;
};

struct product {
    int64_t rows, inner, columns;
    struct matrix x, y;
    const char *weight;
    const float *bias;          /* (columns,); with `scaled_parts` (parts, columns) */
    const float *row_scales;    /* int8: (rows,); with `scaled_parts` (parts, rows) */
    const float *column_scales; /* int8: (columns,) */
    const int32_t *offsets;     /* int8: (columns,), what x's zero point adds to each sum */
    int64_t scaled_parts;       /* int8: each part of a row has a scale of its own, so its sums are finished by themselves */
};

/* The inner dimension's parts, as even as can be. */
struct parts {
    int64_t steps, count, size; /* of all; parts; steps of each but the last, which may have fewer */
};

INLINE struct parts parts_of(int64_t inner, const enum kind kind) {
    int64_t steps = inner / (kind == BF16 ? 32 : 64), count = (steps + MOST_STEPS(kind) - 1) / MOST_STEPS(kind);
    return (struct parts){steps, count, (steps + count - 1) / count};
}
INLINE int64_t steps_of(struct parts parts, int64_t part) {
    int64_t left = parts.steps - part * parts.size;
    return left < parts.size ? left : parts.size;
}

/* ==== Packing ======================================================================================================
 * Groups of `group` inner values of a column stand together: 2 bf16, or 4 int8.
 */

#define PACK(name, kind, group, from_type, to_type, convert)                                                     \
    void name(const from_type *from, int64_t stride, to_type *to, int64_t inner, int64_t columns) {              \
        struct parts parts = parts_of(inner, kind);                                                              \
        for (int64_t part = 0; part < parts.count; part++)                                                       \
            for (int64_t panel = 0; panel < columns; panel += 32)                                                \
                for (int64_t step = 0; step < steps_of(parts, part); step++)                                     \
                    for (int64_t half = 0; half < 32; half += 16)                                                \
                        for (int64_t row = 0; row < 16; row++)                                                   \
                            for (int64_t column = 0; column < 16; column++)                                      \
                                for (int64_t k = 0; k < group; k++) {                                            \
                                    int64_t at = ((part * parts.size + step) * 16 + row) * group + k;            \
                                    *to++ = convert(from[at * stride + panel + half + column]);                  \
                                }                                                                                \
    }
#define AS_IT_IS(x) (x)
PACK(polyhead_amx_pack_bf16, BF16, 2, float, uint16_t, to_bf16)
PACK(polyhead_amx_pack_int8, INT8, 4, int8_t, int8_t, AS_IT_IS)

/* ==== What follows a product ======================================================================================= */

/* In local variables: fields of what a store might change would be loaded again for every row. */
struct finishing {
    const float *sums, *row_scales;
    char *y;
    int64_t row, tile, rows;
    vec bias[2], scales[2];
    ivec offsets[2];
};

/* One row of 32 sums. */
INLINE void finish_row(const struct finishing f, const enum kind kind, const enum finish finish, int64_t r) {
    char *y = f.y + (r & 15) * f.row + (r & 16 ? f.tile : 0);
    vec left, right;
    if (kind == BF16) {
        left = load(f.sums + r * 32) + f.bias[0];
        right = load(f.sums + r * 32 + 16) + f.bias[1];
    } else {
        vec scale = all(f.row_scales[r]);
        left = __builtin_convertvector(load_whole(f.sums + r * 32) - f.offsets[0], vec) * scale;
        right = __builtin_convertvector(load_whole(f.sums + r * 32 + 16) - f.offsets[1], vec) * scale;
        left = left * f.scales[0] + f.bias[0], right = right * f.scales[1] + f.bias[1];
    }
    if (finish == GELU_BF16 || finish == GELU_HALF) left = gelu(left), right = gelu(right);
    if (finish == ADD_BF16) left += load_bf16(y), right += load_bf16(y + 32);
    if (finish == ADD_FLOAT) left += load(y), right += load(y + 64);
    if (finish == TO_FLOAT || finish == ADD_FLOAT) store(y, left), store(y + 64, right);
    else if (finish == GELU_HALF) store_half(y, left), store_half(y + 32, right);
    else store_bf16(y, left, right);
}

struct sums { /* 32 x 32 of them: in the tiles, then in memory to be finished */
    float *at;
    int64_t row, rows, panel; /* 0 rows: not to be finished, because parts are missing */
};

INLINE struct finishing finishing(const struct product *p, const enum kind kind, const struct sums *s) {
    struct finishing f = {.sums = s->at, .y = p->y.base + s->row / 16 * p->y.tile + s->panel * p->y.step,
                          .row = p->y.row, .tile = p->y.tile, .rows = s->rows};
    for (int half = 0; half < 2; half++) {
        f.bias[half] = load(p->bias + s->panel * 32 + half * 16);
        if (kind == BF16) continue;
        f.scales[half] = load(p->column_scales + s->panel * 32 + half * 16);
        f.offsets[half] = load_whole(p->offsets + s->panel * 32 + half * 16);
    }
    if (kind == INT8) f.row_scales = p->row_scales + s->row;
    return f;
}

INLINE void finish_rows(const struct finishing f, const enum kind kind, const enum finish finish, int64_t first,
                        int64_t end) {
#pragma GCC unroll 1
    for (int64_t r = first; r < (end < f.rows ? end : f.rows); r++) finish_row(f, kind, finish, r);
}

/* ==== The product ================================================================================================== */

#define DOT(sums, left, right)                                 \
    do {                                                       \
        if (kind == BF16) tile_dot_bf16(sums, left, right);    \
        else tile_dot_int8(sums, left, right);                 \
    } while (0)
#define LOAD_X(tile, from)                           \
    do {                                             \
        if (streams) tile_stream(tile, from, row);   \
        else tile_load(tile, from, row);             \
    } while (0)
#define LOAD_W(tile, from)                                   \
    do {                                                     \
        if (s >= KEPT_STEPS) tile_stream(tile, from, 64);    \
        else tile_load(tile, from, 64);                      \
    } while (0)
/* A tile's old sums leave it just before its new ones begin: four stores in a row would fill the scheduler. */
#define TURN(tile, offset)                          \
    do {                                            \
        tile_store(tile, held->at + (offset), 128); \
        if (first) tile_zero(tile);                 \
        else tile_load(tile, sums + (offset), 128); \
    } while (0)

/* The next 32 x 32 sums, added to `sums` unless `first`. Meanwhile stores and finishes those that the tiles held. */
INLINE void block(const struct product *p, const enum kind kind, const enum finish finish, const int two,
                  const int streams, const char *x0, const char *x1, const char *w, int64_t steps, const int first,
                  const float *sums, const struct sums *held, const char *ahead, int64_t lines) {
    const int64_t row = p->x.row, step = p->x.step;
    const struct finishing f = finishing(p, kind, held);
    const int64_t per_step = steps > 1 ? (32 + steps - 2) / (steps - 1) : 32; /* rows finished in all steps but the first */
    {
        const int64_t s = 0;
        LOAD_W(6, w);
        LOAD_X(4, x0);
        TURN(0, 0);
        DOT(0, 4, 6);
        LOAD_W(7, w + 1024);
        TURN(1, 16);
        DOT(1, 4, 7);
        if (two) LOAD_X(5, x1);
        TURN(2, 512);
        if (two) DOT(2, 5, 6);
        TURN(3, 528);
        if (two) DOT(3, 5, 7);
    }
#pragma GCC unroll 1
    for (int64_t s = 1; s < steps; s++) {
        x0 += step, x1 += step, w += 2048;
        LOAD_W(6, w);
        LOAD_X(4, x0);
        DOT(0, 4, 6);
        LOAD_W(7, w + 1024);
        DOT(1, 4, 7);
        if (two) {
            LOAD_X(5, x1);
            DOT(2, 5, 6);
            DOT(3, 5, 7);
        }
        finish_rows(f, kind, finish, (s - 1) * per_step, s * per_step);
#pragma GCC unroll 1
        for (int64_t l = 0; l < lines; l++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    }
    if (steps == 1) finish_rows(f, kind, finish, 0, 32);
}

/* What a sequence of products on one thread needs. */
struct run {
    struct sums held;
    float *turns; /* finished sums stay in the first-level cache: two blocks in turn */
    int turn;
    tile_config before;
};

static void begin(struct run *run, float *turns) {
    run->held = (struct sums){turns, 0, 0, 0}, run->turns = turns, run->turn = 0;
    tiles_begin(&run->before);
}

/* Rows that pass together: even shares of at most PASSING, so that no small one reads all of the weight for itself. */
INLINE int64_t share(int64_t rows) {
    int64_t shares = (rows + PASSING - 1) / PASSING;
    return shares ? ((rows + shares - 1) / shares + 31) / 32 * 32 : 32;
}

/* Rows m0 to m1 times one part of the inner dimension and some panels.
 * `between`: sums of these rows and panels while parts are missing. `tail`: the last rows of x, if copied. */
INLINE void sweep(const struct product *p, const enum kind kind, const enum finish finish, struct run *run, int64_t m0,
                  int64_t m1, struct parts parts, int64_t part, int64_t first_panel, int64_t end_panel, int first,
                  int last, float *between, const char *tail) {
    const int64_t steps = steps_of(parts, part), size = steps * 2048, blocks = (m1 - m0 + 31) / 32;
    const int64_t lines = (32 + blocks - 1) / blocks; /* of the next panel, that are asked for per step */
    const int64_t at = part * parts.size * p->x.step, whole = tail ? p->rows / 16 : p->rows / 16 + 1;
    const char *w = p->weight + part * parts.size * 2048 * (p->columns / 32) + first_panel * size;
#define TILE(t) ((t) < whole ? p->x.base + (t) * p->x.tile : tail)
#define BLOCK_OF(two, streams) \
    block(p, kind, finish, two, streams, x0, x1, w, steps, first, sums, &run->held, w + size + b * lines * steps * 64, lines)
    int streams = 0; /* the first panel brings x into the second-level cache, which a stream would pass by */
    for (int64_t panel = first_panel; panel < end_panel; panel++, w += size, streams = 1)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t row = m0 + b * 32, rows = m1 - row < 32 ? m1 - row : 32;
            float *sums = between + ((panel - first_panel) * blocks + b) * BLOCK;
            const char *x0 = TILE(row / 16) + at, *x1 = rows > 16 ? TILE(row / 16 + 1) + at : x0;
            if (rows <= 16) BLOCK_OF(0, 0);
            else if (streams) BLOCK_OF(1, 1);
            else BLOCK_OF(1, 0);
            run->held = (struct sums){last ? run->turns + (run->turn ^= 1) * BLOCK : sums, row, last ? rows : 0, panel};
        }
}

/* Finishes what the tiles hold, before another product. */
INLINE void drain(const struct product *p, const enum kind kind, const enum finish finish, struct run *run) {
    float *at = run->held.at;
    tile_store(0, at, 128);
    tile_store(1, at + 16, 128);
    tile_store(2, at + 512, 128);
    tile_store(3, at + 528, 128);
    finish_rows(finishing(p, kind, &run->held), kind, finish, 0, run->held.rows);
    run->held.rows = 0;
}

static float *room(int64_t bytes) {
    return aligned_alloc(ALIGNMENT, (size_t)(bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

/* Tiles are read whole: if x is rows (a step of 64 bytes) and the last ones do not fill one, they are copied to where
 * they do. In tiles, x has all 16 rows. */
INLINE int64_t tail_bytes(const struct product *p) { return p->rows % 16 && p->x.step == 64 ? 16 * p->x.row : 0; }
static char *copy_tail(const struct product *p, char *to) {
    if (!tail_bytes(p)) return NULL;
    memset(to, 0, (size_t)tail_bytes(p));
    memcpy(to, p->x.base + p->rows / 16 * p->x.tile, (size_t)(p->rows % 16 * p->x.row));
    return to;
}

/* Some panels of a product. */
INLINE int32_t multiply(const struct product *p, const enum kind kind, const enum finish finish, int64_t first_panel,
                        int64_t end_panel) {
    const struct parts parts = parts_of(p->inner, kind);
    const int64_t most = share(p->rows);
    const int64_t kept = parts.count > 1 && !p->scaled_parts ? (end_panel - first_panel) * most / 32 : 0;
    float *turns = room((2 + kept) * BLOCK * 4 + tail_bytes(p));
    if (turns == NULL) return 1;
    char *tail = copy_tail(p, (char *)(turns + (2 + kept) * BLOCK));
    struct run run;
    begin(&run, turns);
    for (int64_t m0 = 0; m0 < p->rows; m0 += most)
        for (int64_t part = 0; part < parts.count; part++) {
            struct product now = *p;
            const int alone = p->scaled_parts != 0;
            if (alone) now.row_scales += part * p->rows, now.bias += part * p->columns;
            sweep(&now, kind, finish, &run, m0, m0 + most < p->rows ? m0 + most : p->rows, parts, part, first_panel, end_panel,
                  alone || part == 0, alone || part == parts.count - 1, turns + 2 * BLOCK, tail);
            if (alone || (part == parts.count - 1 && m0 + most >= p->rows)) drain(&now, kind, finish, &run);
        }
    tiles_end(&run.before);
    free(turns);
    return 0;
}

#define EXPORT(name, kind, finish)                                                            \
    int32_t polyhead_amx_##name(const struct product *p, int64_t first_panel, int64_t end_panel) { \
        return multiply(p, kind, finish, first_panel, end_panel);                             \
    }
EXPORT(bf16_to_bf16, BF16, TO_BF16)
EXPORT(bf16_to_float, BF16, TO_FLOAT)
EXPORT(bf16_add_bf16, BF16, ADD_BF16)
EXPORT(bf16_add_float, BF16, ADD_FLOAT)
EXPORT(bf16_gelu, BF16, GELU_BF16)
EXPORT(int8_to_bf16, INT8, TO_BF16)
EXPORT(int8_to_float, INT8, TO_FLOAT)
EXPORT(int8_add_float, INT8, ADD_FLOAT)
EXPORT(int8_gelu, INT8, GELU_HALF)

/* ==== An MLP =======================================================================================================
 * A part of the inner columns is made and used for PASSING rows at a time, so that it never leaves the second-level
 * cache. Each result is the same, bit for bit, as that of the two products one after the other.
 */

/* Half-precision rows, read by part, to uint8 tiles with a scale per row: value ~ q * scale - GELU_FLOOR. */
static void quantise_halves(const uint16_t *x, int64_t stride, char *to, int64_t tile, float *scales, int64_t rows,
                            int64_t columns) {
    for (int64_t r = 0; r < rows; r++, x += stride) {
        uint16_t largest = 0; /* magnitudes compare as integers, NaN above all */
        for (int64_t c = 0; c < columns; c++) largest = (x[c] & 0x7fff) > largest ? x[c] & 0x7fff : largest;
        uint16_t row[16] = {largest};
        const float range = load_half(row)[0] + GELU_FLOOR, factor = LEVELS / range;
        char *at = to + r / 16 * tile + r % 16 * 64;
        for (int64_t c = 0; c < columns; c += 16)
            *(bytes16 *)(at + c / 64 * 1024 + c % 64) = __builtin_convertvector(
                __builtin_convertvector(load_half(x + c) * factor + (GELU_FLOOR * factor + 0.5f), ivec), bytes16);
        scales[r] = range / LEVELS;
    }
}
/* Some parts of half-precision rows (rows, inner), for a product whose parts are scaled: tiles, and scales (parts, rows). */
void polyhead_amx_quantise_halves(const uint16_t *x, char *to, float *scales, int64_t rows, int64_t inner,
                                  int64_t first_part, int64_t end_part) {
    const struct parts parts = parts_of(inner, INT8);
    for (int64_t part = first_part; part < end_part; part++)
        quantise_halves(x + part * parts.size * 64, inner, to + part * parts.size * 1024, inner * 16, scales + part * rows,
                        rows, steps_of(parts, part) * 64);
}
/* Inner values per part: down's bias has a row for each part, less what GELU_FLOOR adds there. */
int64_t polyhead_amx_int8_part(int64_t inner) { return parts_of(inner, INT8).size * 64; }

/* down->y += gelu(up->x @ up->weight + bias) @ down->weight + bias. up->y and down->x are not read. */
INLINE int32_t mlp(const struct product *up, const struct product *down, const enum kind kind,
                   const enum finish finish) {
    const enum finish gelu_finish = kind == BF16 ? GELU_BF16 : GELU_HALF;
    const struct parts inner = parts_of(up->inner, kind), parts = parts_of(down->inner, kind);
    const int64_t rows = up->rows, most = share(rows), blocks = most / 32;
    const int64_t step_columns = kind == BF16 ? 32 : 64, width = parts.size * step_columns; /* hidden columns per part */
    const int64_t up_sums = inner.count > 1 ? width / 32 * blocks : 0;
    const int64_t down_sums = kind == BF16 ? down->columns / 32 * blocks : 0;
    const int64_t tiles_bytes = most * parts.size * 64;
    const int64_t halves_bytes = kind == BF16 ? 0 : most * width * 2, scale_bytes = kind == BF16 ? 0 : most * 4;
    float *turns = room((2 + up_sums + down_sums) * BLOCK * 4 + tiles_bytes + halves_bytes + scale_bytes + tail_bytes(up));
    if (turns == NULL) return 1;
    float *up_between = turns + 2 * BLOCK, *down_between = up_between + up_sums * BLOCK;
    char *hidden = (char *)(down_between + down_sums * BLOCK), *halves = hidden + tiles_bytes;
    float *scales = (float *)(halves + halves_bytes);
    char *tail = copy_tail(up, (char *)scales + scale_bytes);
    struct run run;
    begin(&run, turns);
    for (int64_t m0 = 0; m0 < rows; m0 += most) {
        const int64_t m1 = m0 + most < rows ? m0 + most : rows, tile = parts.size * 1024;
        for (int64_t part = 0; part < parts.count; part++) {
            const int64_t first_panel = part * width / 32;
            const int64_t end_panel = first_panel + steps_of(parts, part) * step_columns / 32;
            struct product first = *up, second = *down;
            /* Rows m0 and the part's first column stand at the start of the buffers. */
            second.x = (struct matrix){hidden - m0 / 16 * tile - part * tile, 64, tile, 1024};
            if (kind == BF16) first.y = (struct matrix){second.x.base, 64, tile, 1024};
            else first.y = (struct matrix){halves - m0 * width * 2 - first_panel * 64, width * 2, width * 32, 64};
            for (int64_t p = 0; p < inner.count; p++)
                sweep(&first, kind, gelu_finish, &run, m0, m1, inner, p, first_panel, end_panel, p == 0, p == inner.count - 1,
                      up_between, tail);
            drain(&first, kind, gelu_finish, &run);
            if (kind == INT8) {
                quantise_halves((const uint16_t *)halves, width, hidden, tile, scales, m1 - m0,
                                steps_of(parts, part) * step_columns);
                second.row_scales = scales - m0, second.bias = down->bias + part * down->columns;
            }
            sweep(&second, kind, finish, &run, m0, m1, parts, part, 0, down->columns / 32, kind == INT8 || part == 0,
                  kind == INT8 || part == parts.count - 1, down_between, NULL);
            if (kind == INT8 || part == parts.count - 1) drain(&second, kind, finish, &run);
        }
    }
    tiles_end(&run.before);
    free(turns);
    return 0;
}

#define EXPORT_MLP(name, kind, finish) \
    int32_t polyhead_amx_mlp_##name(const struct product *up, const struct product *down) { \
        return mlp(up, down, kind, finish);                                                  \
    }
EXPORT_MLP(bf16_add_bf16, BF16, ADD_BF16)
EXPORT_MLP(bf16_add_float, BF16, ADD_FLOAT)
EXPORT_MLP(int8_add_float, INT8, ADD_FLOAT)
