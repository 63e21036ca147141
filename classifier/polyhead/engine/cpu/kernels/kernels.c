/* The steps between the matrix products of a GPT-2 block, each in one pass over data that is in the cache.
 *
 * Plain C without dependencies. hatch_build.py compiles it once for AVX-512 and once for AVX2; __init__.py calls it
 * through ctypes and checks shapes and types, because nothing here does. Every function runs on the calling thread
 * only, and computes a row the same way whatever the other rows are.
 * bf16 values are uint16_t; all sums are float32.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define WIDE 4 /* vectors of the output row that one pass of a product computes; ROWS * WIDE fit into the registers */
#else
#define LANES 8
#define WIDE 2
#endif
#define ROWS 6       /* queries that pass over the keys together */
#define WIDTH 64     /* channels per head, as in every size of GPT-2 */
#define ALIGNMENT 64
#ifndef SOURCE
#define SOURCE ""
#endif
#define GELU_FLOOR 0.1701f /* gelu(y) > -0.1701 */

const char *polyhead_source(void) { return SOURCE; } /* this file's hash; shows whether a library is stale */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vector load(const float *from) { return *(const unaligned *)from; }
static inline void store(float *to, vector value) { *(unaligned *)to = value; }

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline int32_t to_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Maxima compare bits as integers: that order is total, so compilers use vector instructions for it. */
static inline float largest_magnitude(const float *restrict x, int64_t values) { /* NaN if any value is NaN */
    int32_t largest = 0;
    for (int64_t i = 0; i < values; i++) {
        int32_t bits = to_bits(x[i]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return from_bits((uint32_t)largest);
}

static inline float from_bf16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

static inline uint16_t to_bf16(float value) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits = (uint32_t)to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

/* exp for -87 <= x <= 88 and clamped beyond; Cody and Waite's reduction, Taylor's polynomial: relative error below 5e-7. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

/* gelu_new: y * (1 + tanh(z)) / 2 == y / (1 + exp(-2 z)) with z = sqrt(2 / pi) * (y + 0.044715 y^3). */
static inline float gelu(float y) {
    y = y < -100.0f ? -100.0f : y; /* gelu is zero there; below, the clamped exponential would not outgrow y */
    float doubled = y * (1.59576912f + 0.0713548163f * y * y);
    return y / (1.0f + exponential(-doubled));
}

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

static void read_row(const void *packed, int64_t at, int is_bf16, float factor, float *row) {
    if (is_bf16)
        for (int c = 0; c < WIDTH; c++) row[c] = factor * from_bf16(((const uint16_t *)packed)[at + c]);
    else
        for (int c = 0; c < WIDTH; c++) row[c] = factor * ((const float *)packed)[at + c];
}

static void write_row(void *packed, int64_t at, int is_bf16, float factor, const float *row) {
    if (is_bf16)
        for (int c = 0; c < WIDTH; c++) ((uint16_t *)packed)[at + c] = to_bf16(factor * row[c]);
    else
        for (int c = 0; c < WIDTH; c++) ((float *)packed)[at + c] = factor * row[c];
}

/* scores[r][j] = query[r] . key[j] for the columns up to `columns`, a multiple of 2 * LANES. */
static void multiply_keys(const float *queries, const float *keys, int64_t stride, int64_t columns, float *scores) {
    for (int64_t j = 0; j < columns; j += 2 * LANES) {
        vector sum[ROWS][2] = {};
        const float *key = keys + j;
        for (int c = 0; c < WIDTH; c++, key += stride) {
            vector left = load(key), right = load(key + LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                sum[r][0] += queries[r * WIDTH + c] * left;
                sum[r][1] += queries[r * WIDTH + c] * right;
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            store(scores + r * stride + j, sum[r][0]);
            store(scores + r * stride + j + LANES, sum[r][1]);
        }
    }
}

/* contexts[r] = sum of scores[r][j] * value[j] over the first `rows` values. */
static void multiply_values(const float *scores, int64_t stride, const float *values, int64_t rows, float *contexts) {
    for (int at = 0; at < WIDTH; at += WIDE * LANES) {
        vector sum[ROWS][WIDE] = {};
        for (int64_t j = 0; j < rows; j++) {
            vector value[WIDE];
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++) value[v] = load(values + j * WIDTH + at + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) sum[r][v] += scores[r * stride + j] * value[v];
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++) store(contexts + r * WIDTH + at + v * LANES, sum[r][v]);
    }
}

/* Scores to exp(score - largest) over the first `seen` columns, zero up to `columns`; returns their sum. */
static float soften(float *restrict scores, int64_t seen, int64_t columns) {
    int32_t highest = INT32_MIN;
    for (int64_t j = 0; j < seen; j++) {
        int32_t bits = to_bits(scores[j]), order = bits ^ ((bits >> 31) & 0x7fffffff);
        highest = order > highest ? order : highest;
    }
    float largest = from_bits((uint32_t)(highest ^ ((highest >> 31) & 0x7fffffff))), sum = 0.0f;
    for (int64_t j = 0; j < seen; j++) {
        scores[j] = exponential(scores[j] - largest);
        sum += scores[j];
    }
    for (int64_t j = seen; j < columns; j++) scores[j] = 0.0f;
    return sum;
}

/* qkv: rows of 3 * heads * WIDTH values; out: rows of heads * WIDTH; starts: texts + 1 rows. Returns 0, or 1 if memory is short. */
int32_t polyhead_attention(const void *qkv, void *out, const int64_t *starts, int64_t texts, int64_t heads,
                           int64_t first_head, int64_t end_head, float scale, int32_t is_bf16) {
    int64_t longest = 0, channels = heads * WIDTH;
    for (int64_t t = 0; t < texts; t++) longest = starts[t + 1] - starts[t] > longest ? starts[t + 1] - starts[t] : longest;
    /* An odd number of cache lines: rows whose stride is a power of two would evict each other from the cache. */
    int64_t block = 2 * LANES, most = (longest + block - 1) / block * block + ALIGNMENT / 4;
    float *keys = aligned_alloc(ALIGNMENT, 4 * (WIDTH * most + WIDTH * (longest + 1) + ROWS * (most + 2 * WIDTH)) / ALIGNMENT * ALIGNMENT + ALIGNMENT);
    if (keys == NULL) return 1;
    float *values = keys + WIDTH * most, *scores = values + WIDTH * (longest + 1), *queries = scores + ROWS * most;
    float *contexts = queries + ROWS * WIDTH, row[WIDTH];
    for (int64_t t = 0; t < texts; t++) {
        int64_t start = starts[t], length = starts[t + 1] - start;
        int64_t stride = (length + block - 1) / block * block + ALIGNMENT / 4;
        for (int64_t head = first_head; head < end_head; head++) {
            int64_t at = head * WIDTH;
            for (int64_t j = 0; j < length; j++) {
                int64_t token = (start + j) * 3 * channels + at;
                read_row(qkv, token + channels, is_bf16, 1.0f, row);
                for (int c = 0; c < WIDTH; c++) keys[c * stride + j] = row[c];
                read_row(qkv, token + 2 * channels, is_bf16, 1.0f, values + j * WIDTH);
            }
            for (int c = 0; c < WIDTH; c++) /* columns after the last key are multiplied too, but their scores are never read */
                for (int64_t j = length; j < stride - ALIGNMENT / 4; j++) keys[c * stride + j] = 0.0f;
            for (int64_t i = 0; i < length; i += ROWS) {
                int64_t last = i + ROWS <= length ? i + ROWS : length; /* a short block repeats its last query */
                for (int r = 0; r < ROWS; r++) {
                    int64_t place = i + r < last ? i + r : last - 1;
                    read_row(qkv, (start + place) * 3 * channels + at, is_bf16, scale, queries + r * WIDTH);
                }
                multiply_keys(queries, keys, stride, (last + block - 1) / block * block, scores);
                float sums[ROWS];
                for (int r = 0; r < ROWS; r++)
                    sums[r] = soften(scores + r * stride, (i + r < last ? i + r : last - 1) + 1, last);
                multiply_values(scores, stride, values, last, contexts);
                for (int r = 0; i + r < last; r++)
                    write_row(out, (start + i + r) * channels + at, is_bf16, 1.0f / sums[r], contexts + r * WIDTH);
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
            read_row(query, t * channels + at, is_bf16, scale, row);
            for (int64_t j = 0; j < length; j++) {
                read_row(kv, (start + j) * 2 * channels + at, is_bf16, 1.0f, other);
                scores[j] = 0.0f;
                for (int c = 0; c < WIDTH; c++) scores[j] += row[c] * other[c];
            }
            float sum = soften(scores, length, length);
            for (int c = 0; c < WIDTH; c++) row[c] = 0.0f;
            for (int64_t j = 0; j < length; j++) {
                read_row(kv, (start + j) * 2 * channels + channels + at, is_bf16, scores[j], other);
                for (int c = 0; c < WIDTH; c++) row[c] += other[c];
            }
            write_row(out, t * channels + at, is_bf16, 1.0f / sum, row);
        }
    }
    free(scores);
    return 0;
}
