/* What kernels.c and training.c share: vectors, bf16, exp, GELU, and the parts of attention.
 *
 * bf16 values are uint16_t; all sums are float32. Functions with constant arguments are inlined, so that loops over
 * these unroll.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define STEP (2 * LANES) /* columns of a product that are computed together */
#define ALIGNMENT 64
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vector load(const float *from) { return *(const unaligned *)from; }
INLINE void store(float *to, vector value) { *(unaligned *)to = value; }

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE int32_t to_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Maxima compare bits as integers: that order is total, so compilers use vector instructions for it. */
INLINE float largest_magnitude(const float *restrict x, int64_t values) { /* NaN if any value is NaN */
    int32_t largest = 0;
    for (int64_t i = 0; i < values; i++) {
        int32_t bits = to_bits(x[i]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return from_bits((uint32_t)largest);
}

INLINE float from_bf16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

INLINE uint16_t to_bf16(float value) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits = (uint32_t)to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

/* exp for -87 <= x <= 88 and clamped beyond; Cody and Waite's reduction, Taylor's polynomial: relative error below 5e-7. */
INLINE float exponential(float x) {
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
INLINE float gelu(float y) {
    y = y < -100.0f ? -100.0f : y; /* gelu is zero there; below, the clamped exponential would not outgrow y */
    float doubled = y * (1.59576912f + 0.0713548163f * y * y);
    return y / (1.0f + exponential(-doubled));
}

/* `count` values of float32 or bf16 from a place on, times a factor, as float32. */
INLINE void read_values(const void *from, int64_t at, int is_bf16, float factor, float *restrict row, int64_t count) {
    if (is_bf16)
        for (int64_t c = 0; c < count; c++) row[c] = factor * from_bf16(((const uint16_t *)from)[at + c]);
    else
        for (int64_t c = 0; c < count; c++) row[c] = factor * ((const float *)from)[at + c];
}

INLINE void write_values(void *to, int64_t at, int is_bf16, float factor, const float *restrict row, int64_t count) {
    if (is_bf16)
        for (int64_t c = 0; c < count; c++) ((uint16_t *)to)[at + c] = to_bf16(factor * row[c]);
    else
        for (int64_t c = 0; c < count; c++) ((float *)to)[at + c] = factor * row[c];
}

INLINE int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }
/* An odd number of cache lines: rows whose stride is a power of two would evict each other from the cache. */
INLINE int64_t stride_of(int64_t length) { return rounded_up(length, STEP) + ALIGNMENT / 4; }

#define MOST_ROWS 8 /* that a product computes together */

/* products[r][j] = the sum over `width` channels of rows[r][c] * by_channel[c][j], for `count` rows and the columns up to
 * `columns`, a multiple of STEP. `stride` is that of by_channel and products. */
INLINE void multiply_columns(const float *rows, int64_t row_stride, const int count, int64_t width, const float *by_channel,
                             int64_t stride, int64_t columns, float *products) {
    for (int64_t j = 0; j < columns; j += STEP) {
        vector sum[MOST_ROWS][2] = {};
        const float *column = by_channel + j;
        for (int64_t c = 0; c < width; c++, column += stride) {
            vector left = load(column), right = load(column + LANES);
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) {
                sum[r][0] += rows[r * row_stride + c] * left;
                sum[r][1] += rows[r * row_stride + c] * right;
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            store(products + r * stride + j, sum[r][0]);
            store(products + r * stride + j + LANES, sum[r][1]);
        }
    }
}

/* sums[r] = the sum of shares[r][j] * rows[j] over the first `rows_seen` rows, for `count` rows of shares. Rows and sums
 * have `width` channels, a multiple of `wide` (at most 4) vectors. */
INLINE void multiply_rows(const float *shares, int64_t stride, const int count, const float *rows, int64_t width,
                          int64_t rows_seen, const int wide, float *sums) {
    for (int64_t at = 0; at < width; at += wide * LANES) {
        vector sum[MOST_ROWS][4] = {};
        for (int64_t j = 0; j < rows_seen; j++) {
            vector row[4];
#pragma GCC unroll 4
            for (int v = 0; v < wide; v++) row[v] = load(rows + j * width + at + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < count; r++)
#pragma GCC unroll 4
                for (int v = 0; v < wide; v++) sum[r][v] += shares[r * stride + j] * row[v];
        }
#pragma GCC unroll 8
        for (int r = 0; r < count; r++)
#pragma GCC unroll 4
            for (int v = 0; v < wide; v++) store(sums + r * width + at + v * LANES, sum[r][v]);
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
