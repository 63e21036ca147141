/* Matrix products in float32, bf16 and 8 bits: rows times a weight that is packed into panels of STEP columns.
 *
 * The inner values of an element are added in one order, whatever the number of rows and the place of a row. Sums of
 * PART values are added up, which halves the rounding error of one long sum. bf16 and 8 bits are multiplied where the
 * processor has instructions for it. These multiply two or four neighbours at once, so here a value is a pair of bf16, or
 * four bytes, in the bits of a float.
 */
#include "vectors.h"
#ifdef __AVX512BF16__ /* such processors also have VNNI, for 8 bits */
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define TILE_ROWS 12 /* rows that pass over a panel together; their sums fill the registers */
#else
#define TILE_ROWS 6
#endif
#define PART 256
#define BLOCK 1024 /* inner values of a panel that pass together, so that it stays in the second-level cache */
#define GROUP 192  /* rows whose block stays there too */
#define ROW (BLOCK + ALIGNMENT / 4) /* stride of copied rows: a power of two would evict them from the cache */
#define AHEAD 2048 /* values of the weight that are fetched while others are multiplied */

enum kind { FLOAT, BF16, INT8 };
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef int32_t unaligned_whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* out[r][c] = sum of x[r][k] * weight[k][c], plus bias, plus out if `adds`, then GELU if `gelu`. Of 8 bits the sum is less
 * offsets[c], times scales[c], times row_scales[r]. Strides are in values, those of `out` in its own. `weight` is packed;
 * what stands for columns is as long as those of all panels; what is NULL is left out. */
struct product {
    const float *x;
    int64_t row, step; /* strides of x; step is 1 but in float32 */
    const float *weight, *bias, *scales, *row_scales;
    const int32_t *offsets;
    void *out; /* bf16 like x, else float32 */
    int64_t out_row, rows, inner, columns;
    int32_t adds, gelu;
};

/* Some panels of a weight (inner, columns) with any strides; columns after the last are zero. */
void polyhead_pack(const float *weight, int64_t row, int64_t column, float *panels, int64_t inner, int64_t columns,
                   int64_t first_panel, int64_t end_panel) {
    for (int64_t panel = first_panel; panel < end_panel; panel++) {
        float *to = panels + panel * inner * STEP;
        const float *from = weight + panel * STEP * column;
        const int64_t real = columns - panel * STEP < STEP ? columns - panel * STEP : STEP;
        if (real < STEP) memset(to, 0, 4 * (size_t)(inner * STEP));
        if (column == 1)
            for (int64_t k = 0; k < inner; k++) memcpy(to + k * STEP, from + k * row, 4 * (size_t)real);
        else
            for (int64_t k0 = 0; k0 < inner; k0 += LANES) /* whole cache lines of a transposed weight */
                for (int64_t c = 0; c < real; c++)
                    for (int64_t k = k0; k < k0 + LANES && k < inner; k++) to[k * STEP + c] = from[k * row + c * column];
    }
}

#ifdef __AVX512BF16__
/* The same for float32 weights that become pairs of bf16; `inner` counts pairs. */
void polyhead_pack_bf16(const float *weight, int64_t row, int64_t column, uint32_t *panels, int64_t inner, int64_t columns,
                        int64_t first_panel, int64_t end_panel) {
    for (int64_t panel = first_panel; panel < end_panel; panel++)
        for (int64_t k = 0; k < inner; k++) {
            const float *from = weight + 2 * k * row + panel * STEP * column;
            uint32_t *to = panels + (panel * inner + k) * STEP;
            for (int64_t c = 0; c < STEP; c++)
                to[c] = panel * STEP + c < columns
                            ? to_bf16(from[c * column]) | (uint32_t)to_bf16(from[c * column + row]) << 16
                            : 0;
        }
}

/* The same for int8 (inner, columns), dense in rows; `inner` counts groups of four. */
void polyhead_pack_int8(const int8_t *weight, int8_t *panels, int64_t inner, int64_t columns, int64_t first_panel,
                        int64_t end_panel) {
    for (int64_t panel = first_panel; panel < end_panel; panel++)
        for (int64_t k = 0; k < inner; k++) {
            const int8_t *from = weight + 4 * k * columns + panel * STEP;
            int8_t *to = panels + (panel * inner + k) * STEP * 4;
            for (int64_t c = 0; c < STEP; c++)
                for (int n = 0; n < 4; n++) to[4 * c + n] = panel * STEP + c < columns ? from[n * columns + c] : 0;
        }
}
#endif

/* In assembly, because GCC 12 copies the sums around the intrinsics of 8 bits, which halves the speed. */
INLINE vector multiply_add(const enum kind kind, vector sum, float x, vector weight) {
    if (kind == FLOAT) return sum + x * weight;
#ifdef __AVX512BF16__
    const __m512 all = _mm512_set1_ps(x);
    if (kind == BF16) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(all), "v"(weight));
    if (kind == INT8) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(all), "v"(weight));
#endif
    return sum;
}

/* `count` dense rows times `steps` inner values of a panel. */
INLINE void multiply_tile(const enum kind kind, const float *x, int64_t row, const int count, const float *panel, int64_t steps,
                          vector total[TILE_ROWS][2]) {
    const float *at[] = {x, x + 3 * row, x + 6 * row, x + 9 * row}; /* a pointer per row would be more than registers hold */
    for (int64_t part = 0; part < steps; part += PART) {
        const int64_t end = part + PART < steps ? part + PART : steps;
        vector sum[TILE_ROWS][2] = {};
#pragma GCC unroll 1
        for (int64_t k = part; k < end; k++, panel += STEP) {
            vector left = load(panel), right = load(panel + LANES);
            __builtin_prefetch(panel + AHEAD), __builtin_prefetch(panel + AHEAD + LANES);
#pragma GCC unroll 12
            for (int r = 0; r < count; r++) {
                const float value = at[r / 3][r % 3 * row + k];
                sum[r][0] = multiply_add(kind, sum[r][0], value, left);
                sum[r][1] = multiply_add(kind, sum[r][1], value, right);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < count; r++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                total[r][half] = kind == INT8 ? (vector)((whole)total[r][half] + (whole)sum[r][half])
                                              : total[r][half] + sum[r][half];
    }
}

/* Whole sums of 8 bits to floats. */
INLINE vector scaled(vector sum, const int32_t *offsets, const float *scales, int64_t column, float row_scale) {
    whole sums = (whole)sum;
    if (offsets) sums -= *(const unaligned_whole *)(offsets + column);
    return __builtin_convertvector(sums, vector) * load(scales + column) * row_scale;
}

/* Adds the old values, applies GELU, and stores `columns` of a row's sums. */
INLINE void finish_row(const enum kind kind, float *restrict row, void *out, int64_t columns, int adds, int gelus) {
    float *floats = out;
    uint16_t *halves = out;
    if (adds)
        for (int64_t c = 0; c < columns; c++) row[c] += kind == BF16 ? from_bf16(halves[c]) : floats[c];
    if (gelus)
        for (int64_t c = 0; c < columns; c++) row[c] = gelu(row[c]);
    if (kind == BF16)
        for (int64_t c = 0; c < columns; c++) halves[c] = to_bf16(row[c]);
    else
        memcpy(floats, row, 4 * (size_t)columns);
}

/* Some inner values of a group of rows. */
struct block {
    const float *x; /* dense */
    int64_t row;    /* stride of x */
    int64_t first_row, rows, first, steps;
};

INLINE void tile(const struct product *p, const struct block *b, const enum kind kind, const int count, int64_t row,
                 int64_t panel) {
    const int64_t column = panel * STEP, real = p->columns - column < STEP ? p->columns - column : STEP;
    const int adds = p->adds || b->first > 0, gelus = p->gelu && b->first + b->steps == p->inner;
    const int64_t size = kind == BF16 ? 2 : 4;
    vector total[TILE_ROWS][2] = {};
    multiply_tile(kind, b->x + row * b->row, b->row, count, p->weight + (panel * p->inner + b->first) * STEP, b->steps, total);
    char *out = (char *)p->out + ((b->first_row + row) * p->out_row + column) * size;
    for (int r = 0; r < count; r++, out += p->out_row * size) {
        vector left = total[r][0], right = total[r][1];
        if (kind == INT8) {
            const float row_scale = p->row_scales ? p->row_scales[b->first_row + row + r] : 1.0f;
            left = scaled(left, p->offsets, p->scales, column, row_scale);
            right = scaled(right, p->offsets, p->scales, column + LANES, row_scale);
        }
        if (b->first == 0 && p->bias) left += load(p->bias + column), right += load(p->bias + column + LANES);
        float sums[STEP];
        store(sums, left), store(sums + LANES, right);
        if (real == STEP) finish_row(kind, sums, out, STEP, adds, gelus);
        else finish_row(kind, sums, out, real, adds, gelus);
    }
}

INLINE void multiply_block(const struct product *p, const struct block *b, const enum kind kind, int64_t panel) {
#define TILE(count) tile(p, b, kind, count, row, panel)
    int64_t row = 0;
    for (; row + TILE_ROWS <= b->rows; row += TILE_ROWS) TILE(TILE_ROWS);
    if (row + 6 <= b->rows) TILE(6), row += 6; /* 7 to 11 rows together would have too many pointers for the registers */
    switch (b->rows - row) {
    case 5: TILE(5); break;
    case 4: TILE(4); break;
    case 3: TILE(3); break;
    case 2: TILE(2); break;
    case 1: TILE(1); break;
    }
}

/* The block's x if its rows are columns in memory: LANES of them at a time, to dense rows. */
static void copy_columns(const struct product *p, const struct block *b, float *to) {
    const float *from = p->x + b->first_row * p->row + b->first * p->step;
    for (int64_t r0 = 0; r0 < b->rows; r0 += LANES)
        for (int64_t k = 0; k < b->steps; k++)
            for (int64_t r = r0; r < r0 + LANES && r < b->rows; r++) to[r * b->row + k] = from[r * p->row + k * p->step];
}

int64_t polyhead_panel_width(void) { return STEP; }

/* Some panels of a product, on the calling thread. Returns 0, or 1 if memory is short. */
int32_t polyhead_product(const struct product *p, int64_t first_panel, int64_t end_panel) {
    float *copy = p->step == 1 ? NULL : malloc(4 * GROUP * ROW);
    if (p->step != 1 && copy == NULL) return 1;
    for (int64_t first = 0; first < p->inner; first += BLOCK)
        for (int64_t row = 0; row < p->rows; row += GROUP) {
            struct block b = {p->x + row * p->row + first, p->row, row, p->rows - row < GROUP ? p->rows - row : GROUP, first,
                              p->inner - first < BLOCK ? p->inner - first : BLOCK};
            if (copy) {
                b.x = copy, b.row = ROW;
                copy_columns(p, &b, copy);
            }
            for (int64_t panel = first_panel; panel < end_panel; panel++) multiply_block(p, &b, FLOAT, panel);
        }
    free(copy);
    return 0;
}

#ifdef __AVX512BF16__
/* All inner values pass together, because sums between two blocks would be rounded, or are whole numbers. */
INLINE void multiply_whole(const struct product *p, const enum kind kind, int64_t first_panel, int64_t end_panel) {
    for (int64_t row = 0; row < p->rows; row += GROUP) {
        const struct block b = {p->x + row * p->row, p->row, row, p->rows - row < GROUP ? p->rows - row : GROUP, 0, p->inner};
        for (int64_t panel = first_panel; panel < end_panel; panel++) multiply_block(p, &b, kind, panel);
    }
}

int32_t polyhead_product_bf16(const struct product *p, int64_t first_panel, int64_t end_panel) {
    multiply_whole(p, BF16, first_panel, end_panel);
    return 0;
}
int32_t polyhead_product_int8(const struct product *p, int64_t first_panel, int64_t end_panel) {
    multiply_whole(p, INT8, first_panel, end_panel);
    return 0;
}
#endif
