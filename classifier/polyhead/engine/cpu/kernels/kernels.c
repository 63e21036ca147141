/* The steps between the matrix products of a GPT-2 block, each in one pass over data that is in the cache.
 *
 * Plain C without dependencies. hatch_build.py compiles it once for AVX-512 and once for AVX2; __init__.py calls it
 * through ctypes and checks shapes and types, because nothing here does. Every function runs on the calling thread
 * only, and computes a row the same way whatever the other rows are.
 */
#include "vectors.h"

#ifdef __AVX512F__
#define WIDE 4 /* vectors of the output row that one pass of a product computes; ROWS * WIDE fit into the registers */
#else
#define WIDE 2
#endif
#define ROWS 6   /* queries that pass over the keys together */
#define WIDTH 64 /* channels per head, as in every size of GPT-2 */
#ifndef SOURCE
#define SOURCE ""
#endif
#define GELU_FLOOR 0.1701f /* gelu(y) > -0.1701 */

const char *polyhead_source(void) { return SOURCE; } /* the sources' hash; shows whether a library is stale */

/* Row by row: vectors and the remainder after them round differently, so every row must be cut the same way. */
void polyhead_gelu_float32(float *x, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++, x += columns)
        for (int64_t i = 0; i < columns; i++) x[i] = gelu(x[i]);
}

void polyhead_gelu_bfloat16(uint16_t *x, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++, x += columns)
        for (int64_t i = 0; i < columns; i++) x[i] = to_bf16(gelu(from_bf16(x[i])));
}

/* The sum of a row, or of its squared distances from `mean`. Several sums stand side by side, because each addition waits
 * for the one before. */
static inline float row_sum(const float *row, int64_t columns, float mean, const int squares) {
    vector sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= columns; i += 4 * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            vector x = load(row + i + s * LANES) - mean;
            sums[s] += squares ? x * x : x;
        }
    float sum = 0.0f;
    for (; i < columns; i++) sum += squares ? (row[i] - mean) * (row[i] - mean) : row[i] - mean;
    vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int l = 0; l < LANES; l++) sum += all[l];
    return sum;
}

/* Layer norm of rows of float32 or bf16 to the same type; statistics are float32. Returns 0, or 1 if memory is short. */
int32_t polyhead_layer_norm(const void *x, const float *restrict weight, const float *restrict bias, void *out, int64_t rows,
                            int64_t columns, float epsilon, int32_t is_bf16) {
    float *wide = malloc(4 * (size_t)columns);
    if (wide == NULL) return 1;
    for (int64_t at = 0; at < rows * columns; at += columns) {
        const float *row = is_bf16 ? wide : (const float *)x + at;
        float *to = is_bf16 ? wide : (float *)out + at;
        if (is_bf16)
            for (int64_t i = 0; i < columns; i++) wide[i] = from_bf16(((const uint16_t *)x)[at + i]);
        const float mean = row_sum(row, columns, 0.0f, 0) / (float)columns;
        const float factor = 1.0f / sqrtf(row_sum(row, columns, mean, 1) / (float)columns + epsilon);
#pragma GCC ivdep
        for (int64_t i = 0; i < columns; i++) to[i] = (row[i] - mean) * factor * weight[i] + bias[i];
        if (is_bf16)
            for (int64_t i = 0; i < columns; i++) ((uint16_t *)out)[at + i] = to_bf16(wide[i]);
    }
    free(wide);
    return 0;
}

static inline void to_levels(const float *restrict x, uint8_t *restrict q, int64_t values, float factor, float shift) {
    for (int64_t i = 0; i < values; i++) q[i] = (uint8_t)(int32_t)(x[i] * factor + shift);
}

/* Rows to 8 bits, with a scale per row: x ~ (q - middle) * scale, |q - middle| <= steps, middle = steps + 1. */
void polyhead_quantise(const float *x, uint8_t *q, float *scales, int64_t rows, int64_t columns, int32_t steps) {
    for (int64_t row = 0; row < rows; row++, x += columns, q += columns) {
        float largest = largest_magnitude(x, columns) + 1e-12f;
        to_levels(x, q, columns, (float)steps / largest, (float)steps + 1.5f); /* plus half a step, because the conversion truncates */
        scales[row] = largest / (float)steps;
    }
}

/* gelu(product * scale + bias) to 8 bits: gelu ~ q * scale - GELU_FLOOR, 0 <= q <= levels. Overwrites `product`. */
void polyhead_gelu_quantise(float *product, const float *row_scales, const float *restrict bias, uint8_t *q,
                            float *scales, int64_t rows, int64_t columns, int32_t levels) {
    for (int64_t row = 0; row < rows; row++, product += columns, q += columns) {
        float *restrict y = product, scale = row_scales[row];
        for (int64_t i = 0; i < columns; i++) y[i] = gelu(y[i] * scale + bias[i]);
        float range = largest_magnitude(y, columns) + GELU_FLOOR, factor = (float)levels / range;
        to_levels(y, q, columns, factor, GELU_FLOOR * factor + 0.5f);
        scales[row] = range / (float)levels;
    }
}

/* out = product * scale + bias with a scale per row; with `adds`, added to `out`. `out` may be `product`. */
void polyhead_rescale(const float *product, const float *row_scales, const float *bias, float *out, int64_t rows,
                      int64_t columns, int32_t adds) {
    for (int64_t row = 0; row < rows; row++, product += columns, out += columns) {
        float scale = row_scales[row];
        if (adds)
#pragma GCC ivdep
            for (int64_t i = 0; i < columns; i++) out[i] += product[i] * scale + bias[i];
        else
#pragma GCC ivdep
            for (int64_t i = 0; i < columns; i++) out[i] = product[i] * scale + bias[i];
    }
}

/* -- Causal attention of packed texts -------------------------------------------------------------------------------
 * One text and head after the other. Keys are laid out by channel, values by token, both float32 and dense. Then ROWS
 * queries pass over the keys up to their own position. All scores of a query are kept: texts have at most 1,024
 * tokens, so the scores of ROWS queries stay in the first-level cache.
 */

/* qkv: rows of 3 * heads * WIDTH values; out: rows of heads * WIDTH; starts: texts + 1 rows. Returns 0, or 1 if memory is short. */
int32_t polyhead_attention(const void *qkv, void *out, const int64_t *starts, int64_t texts, int64_t heads,
                           int64_t first_head, int64_t end_head, float scale, int32_t is_bf16) {
    int64_t longest = 0, channels = heads * WIDTH;
    for (int64_t t = 0; t < texts; t++) longest = starts[t + 1] - starts[t] > longest ? starts[t + 1] - starts[t] : longest;
    int64_t most = stride_of(longest);
    float *keys = aligned_alloc(ALIGNMENT, 4 * (WIDTH * most + WIDTH * (longest + 1) + ROWS * (most + 2 * WIDTH)) / ALIGNMENT * ALIGNMENT + ALIGNMENT);
    if (keys == NULL) return 1;
    float *values = keys + WIDTH * most, *scores = values + WIDTH * (longest + 1), *queries = scores + ROWS * most;
    float *contexts = queries + ROWS * WIDTH, row[WIDTH];
    for (int64_t t = 0; t < texts; t++) {
        int64_t start = starts[t], length = starts[t + 1] - start;
        int64_t stride = stride_of(length);
        for (int64_t head = first_head; head < end_head; head++) {
            int64_t at = head * WIDTH;
            for (int64_t j = 0; j < length; j++) {
                int64_t token = (start + j) * 3 * channels + at;
                read_values(qkv, token + channels, is_bf16, 1.0f, row, WIDTH);
                for (int c = 0; c < WIDTH; c++) keys[c * stride + j] = row[c];
                read_values(qkv, token + 2 * channels, is_bf16, 1.0f, values + j * WIDTH, WIDTH);
            }
            for (int c = 0; c < WIDTH; c++) /* columns after the last key are multiplied too, but their scores are never read */
                for (int64_t j = length; j < stride - ALIGNMENT / 4; j++) keys[c * stride + j] = 0.0f;
            for (int64_t i = 0; i < length; i += ROWS) {
                int64_t last = i + ROWS <= length ? i + ROWS : length; /* a short block repeats its last query */
                for (int r = 0; r < ROWS; r++) {
                    int64_t place = i + r < last ? i + r : last - 1;
                    read_values(qkv, (start + place) * 3 * channels + at, is_bf16, scale, queries + r * WIDTH, WIDTH);
                }
                multiply_columns(queries, WIDTH, ROWS, WIDTH, keys, stride, rounded_up(last, STEP), scores);
                float sums[ROWS];
                for (int r = 0; r < ROWS; r++)
                    sums[r] = soften(scores + r * stride, (i + r < last ? i + r : last - 1) + 1, last);
                multiply_rows(scores, stride, ROWS, values, WIDTH, last, WIDE, contexts);
                for (int r = 0; i + r < last; r++)
                    write_values(out, (start + i + r) * channels + at, is_bf16, 1.0f / sums[r], contexts + r * WIDTH, WIDTH);
            }
        }
    }
    free(keys);
    return 0;
}

/* The same for only each text's last token. query, out: rows of heads * WIDTH, one per text; kv: rows of twice that. */
int32_t polyhead_attention_last(const void *query, const void *kv, void *out, const int64_t *starts, int64_t texts,
                                int64_t heads, float scale, int32_t is_bf16) {
    int64_t longest = 1, channels = heads * WIDTH;
    for (int64_t t = 0; t < texts; t++) longest = starts[t + 1] - starts[t] > longest ? starts[t + 1] - starts[t] : longest;
    float *scores = malloc(4 * (size_t)longest), row[WIDTH], other[WIDTH];
    if (scores == NULL) return 1;
    for (int64_t t = 0; t < texts; t++) {
        int64_t start = starts[t], length = starts[t + 1] - start;
        for (int64_t at = 0; at < channels; at += WIDTH) {
            read_values(query, t * channels + at, is_bf16, scale, row, WIDTH);
            for (int64_t j = 0; j < length; j++) {
                read_values(kv, (start + j) * 2 * channels + at, is_bf16, 1.0f, other, WIDTH);
                scores[j] = 0.0f;
                for (int c = 0; c < WIDTH; c++) scores[j] += row[c] * other[c];
            }
            float sum = soften(scores, length, length);
            for (int c = 0; c < WIDTH; c++) row[c] = 0.0f;
            for (int64_t j = 0; j < length; j++) {
                read_values(kv, (start + j) * 2 * channels + channels + at, is_bf16, scores[j], other, WIDTH);
                for (int c = 0; c < WIDTH; c++) row[c] += other[c];
            }
            write_values(out, t * channels + at, is_bf16, 1.0f / sum, row, WIDTH);
        }
    }
    free(scores);
    return 0;
}
