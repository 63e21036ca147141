/* float32 matrix products: rows times a weight that is packed into panels of STEP columns.
 *
 * The inner values of an element are added in one order, whatever the number of rows and the place of a row. Sums of
 * PART values are added up, which halves the rounding error of one long sum.
 */
#include "vectors.h"

#ifdef __AVX512F__
#define TILE_ROWS 12 /* rows that pass over a panel together; their sums fill the registers */
#else
#define TILE_ROWS 6
#endif
#define PART 256
#define BLOCK 1024 /* inner values of a panel that pass together, so that it stays in the second-level cache */
#define GROUP 192  /* rows whose block stays there too */
#define ROW (BLOCK + ALIGNMENT / 4) /* stride of copied rows: a power of two would evict them from the cache */

/* What `polyhead_product` computes: out[r][c] = sum of x[r][k] * weight[k][c], plus bias, plus out if `adds`, then GELU if
 * `gelu`. Strides are in values. `weight` is packed; `bias` is as long as the columns of all panels, or NULL. */
struct product {
    const float *x;
    int64_t row, step; /* strides of x */
    const float *weight, *bias;
    float *out;
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

/* `count` dense rows times `steps` inner values of a panel. */
INLINE void multiply_tile(const float *x, int64_t row, const int count, const float *panel, int64_t steps,
                          vector total[TILE_ROWS][2]) {
    for (int64_t part = 0; part < steps; part += PART) {
        const int64_t end = part + PART < steps ? part + PART : steps;
        vector sum[TILE_ROWS][2] = {};
#pragma GCC unroll 1
        for (int64_t k = part; k < end; k++, panel += STEP) {
            vector left = load(panel), right = load(panel + LANES);
#pragma GCC unroll 12
            for (int r = 0; r < count; r++) {
                sum[r][0] += x[r * row + k] * left;
                sum[r][1] += x[r * row + k] * right;
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < count; r++) total[r][0] += sum[r][0], total[r][1] += sum[r][1];
    }
}

/* Adds bias and the old values, applies GELU, and stores the first `real` columns of a row of a tile. */
INLINE void finish_row(vector left, vector right, float *out, int64_t real, const float *bias, int adds, int gelus) {
    float row[STEP];
    if (bias) left += load(bias), right += load(bias + LANES);
    if (real == STEP) {
        if (adds) left += load(out), right += load(out + LANES);
        store(gelus ? row : out, left);
        store((gelus ? row : out) + LANES, right);
        if (gelus)
            for (int c = 0; c < STEP; c++) out[c] = gelu(row[c]);
        return;
    }
    if (adds) {
        memset(row, 0, sizeof row);
        memcpy(row, out, 4 * (size_t)real);
        left += load(row), right += load(row + LANES);
    }
    store(row, left);
    store(row + LANES, right);
    if (gelus)
        for (int c = 0; c < STEP; c++) row[c] = gelu(row[c]);
    memcpy(out, row, 4 * (size_t)real);
}

/* Some inner values of a group of rows. */
struct block {
    const float *x; /* dense */
    int64_t row;    /* stride of x */
    int64_t first_row, rows, first, steps;
};

INLINE void tile(const struct product *p, const struct block *b, const int count, int64_t row, int64_t panel) {
    const int64_t column = panel * STEP, real = p->columns - column < STEP ? p->columns - column : STEP;
    vector total[TILE_ROWS][2] = {};
    multiply_tile(b->x + row * b->row, b->row, count, p->weight + (panel * p->inner + b->first) * STEP, b->steps, total);
    const float *bias = b->first == 0 && p->bias ? p->bias + column : NULL;
    float *out = p->out + (b->first_row + row) * p->out_row + column;
    for (int r = 0; r < count; r++)
        finish_row(total[r][0], total[r][1], out + r * p->out_row, real, bias, p->adds || b->first > 0,
                   p->gelu && b->first + b->steps == p->inner);
}

static void multiply_block(const struct product *p, const struct block *b, int64_t panel) {
#define TILE(count) tile(p, b, count, row, panel)
    int64_t row = 0;
    for (; row + TILE_ROWS <= b->rows; row += TILE_ROWS) TILE(TILE_ROWS);
    switch (b->rows - row) {
#if TILE_ROWS > 6
    case 11: TILE(11); break;
    case 10: TILE(10); break;
    case 9: TILE(9); break;
    case 8: TILE(8); break;
    case 7: TILE(7); break;
    case 6: TILE(6); break;
#endif
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
            for (int64_t panel = first_panel; panel < end_panel; panel++) multiply_block(p, &b, panel);
        }
    free(copy);
    return 0;
}
