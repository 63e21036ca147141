/* Training's steps between the matrix products, forwards and backwards: attention of packed texts, GELU and dropout.
 *
 * Plain C, compiled as kernels.c is, into the same library. training.py calls it and checks shapes and types, because
 * nothing here does. Every function runs on the calling thread only.
 * Nothing is kept for the way back: scores and dropped places are computed again, with the same bits.
 */
#include "vectors.h"

#ifdef __AVX512F__
#define QUERIES 8 /* pass over the keys together; QUERIES * STEP sums fit into the registers */
#else
#define QUERIES 6
#endif

/* -- Dropout --------------------------------------------------------------------------------------------------------
 * Whether a place is kept depends on the seed and the place alone (lowbias32 by C. Wellons), so nothing is stored.
 */

INLINE uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

INLINE int is_kept(uint32_t seed, uint32_t place, uint32_t threshold) {
    return mixed(seed + place * 0x9e3779b9u) >= threshold;
}

INLINE uint32_t threshold_of(float share) { return (uint32_t)((double)share * 4294967295.0); }

/* to = from / (1 - share) at kept places, zero at others; `first` is the place of the first value. */
void polyhead_dropout(const void *from, void *to, int64_t first, int64_t count, float share, uint32_t seed, int32_t is_bf16) {
    uint32_t threshold = threshold_of(share), start = (uint32_t)first;
    float factor = 1.0f / (1.0f - share);
    if (is_bf16)
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) {
            float value = factor * from_bf16(((const uint16_t *)from)[i]);
            ((uint16_t *)to)[i] = to_bf16(is_kept(seed, start + (uint32_t)i, threshold) ? value : 0.0f);
        }
    else
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++)
            ((float *)to)[i] = is_kept(seed, start + (uint32_t)i, threshold) ? factor * ((const float *)from)[i] : 0.0f;
}

/* -- GELU's tanh form -----------------------------------------------------------------------------------------------*/

INLINE float gelu_slope(float y) {
    y = y < -100.0f ? -100.0f : y;
    float share = 1.0f / (1.0f + exponential(-y * (1.59576912f + 0.0713548163f * y * y)));
    return share + y * share * (1.0f - share) * (1.59576912f + 0.2140644489f * y * y);
}

void polyhead_gelu_forward(const void *x, void *y, int64_t count, int32_t is_bf16) {
    if (is_bf16)
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) ((uint16_t *)y)[i] = to_bf16(gelu(from_bf16(((const uint16_t *)x)[i])));
    else
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) ((float *)y)[i] = gelu(((const float *)x)[i]);
}

void polyhead_gelu_backward(const void *x, const void *y_grad, void *x_grad, int64_t count, int32_t is_bf16) {
    if (is_bf16)
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)x_grad)[i] = to_bf16(from_bf16(((const uint16_t *)y_grad)[i]) * gelu_slope(from_bf16(((const uint16_t *)x)[i])));
    else
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) ((float *)x_grad)[i] = ((const float *)y_grad)[i] * gelu_slope(((const float *)x)[i]);
}

/* -- Causal attention of packed texts -------------------------------------------------------------------------------
 * One text and head after the other; QUERIES rows of the score matrix at a time, up to the diagonal. Everything is
 * float32 in between. Rows of a head are padded with zeros to a multiple of STEP, so a head may have any width.
 */

struct attention {
    const void *qkv;       /* rows of 3 * heads * width values */
    void *out;             /* rows of heads * width: one per token; with only_last, one per text, for its last token */
    const void *out_grad;  /* as out */
    void *qkv_grad;        /* as qkv; with only_last, queries of other tokens are left as they are */
    const int32_t *starts; /* texts + 1 rows */
    int64_t texts, heads, width;
    int32_t only_last, is_bf16;
    float scale, dropout;
    uint32_t seed;
};

/* One head of one text, as float32. `stride` is that of scores and of what is laid out by channel. */
struct head {
    float *keys_by_channel, *values_by_channel, *keys, *values, *key_grads, *value_grads;
    float *queries, *contexts, *query_grads, *scores, *score_grads, *factors;
    int64_t length, stride, padded;
    int64_t query_count, first_row, out_row; /* of the queries; the row of the first token, and of the first result */
    uint32_t seed;
};

static float *make_room(const struct attention *a, struct head *h) {
    int64_t longest = 1;
    for (int64_t t = 0; t < a->texts; t++) longest = a->starts[t + 1] - a->starts[t] > longest ? a->starts[t + 1] - a->starts[t] : longest;
    int64_t stride = stride_of(longest), padded = rounded_up(a->width, STEP);
    int64_t by_channel = a->width * stride, rows = longest * padded, block = QUERIES * padded;
    float *at = aligned_alloc(ALIGNMENT, (size_t)rounded_up(4 * (2 * by_channel + 4 * rows + 3 * block + (2 * QUERIES + 1) * stride), ALIGNMENT));
    float *room = at;
    if (room == NULL) return NULL;
    h->padded = padded;
    h->keys_by_channel = at, at += by_channel;
    h->values_by_channel = at, at += by_channel;
    h->keys = at, at += rows;
    h->values = at, at += rows;
    h->key_grads = at, at += rows;
    h->value_grads = at, at += rows;
    h->queries = at, at += block;
    h->contexts = at, at += block;
    h->query_grads = at, at += block;
    h->scores = at, at += QUERIES * stride;
    h->score_grads = at, at += QUERIES * stride;
    h->factors = at;
    return room;
}

/* A part of the packed row of a token: 0 query, 1 key, 2 value. */
static int64_t place_of(const struct attention *a, int64_t row, int64_t head, int64_t part) {
    return row * 3 * a->heads * a->width + part * a->heads * a->width + head * a->width;
}

static void read_rows(const struct attention *a, struct head *h, int64_t head, int64_t part, float *rows, float *by_channel) {
    for (int64_t j = 0; j < h->length; j++) {
        float *row = rows + j * h->padded;
        read_values(a->qkv, place_of(a, h->first_row + j, head, part), a->is_bf16, 1.0f, row, a->width);
        for (int64_t c = a->width; c < h->padded; c++) row[c] = 0.0f;
        if (by_channel != NULL)
            for (int64_t c = 0; c < a->width; c++) by_channel[c * h->stride + j] = row[c];
    }
    if (by_channel != NULL) /* columns after the last key are multiplied too, but never read */
        for (int64_t c = 0; c < a->width; c++)
            for (int64_t j = h->length; j < h->stride; j++) by_channel[c * h->stride + j] = 0.0f;
}

static void begin(const struct attention *a, struct head *h, int64_t unit, int is_backward) {
    int64_t text = unit / a->heads, head = unit % a->heads;
    h->first_row = a->starts[text];
    h->length = a->starts[text + 1] - h->first_row;
    h->stride = stride_of(h->length);
    h->query_count = a->only_last ? 1 : h->length;
    h->out_row = a->only_last ? text : h->first_row;
    h->seed = mixed(mixed(a->seed) + (uint32_t)unit); /* so that the next seed is not the next head's */
    read_rows(a, h, head, 1, h->keys, h->keys_by_channel);
    read_rows(a, h, head, 2, h->values, is_backward ? h->values_by_channel : NULL);
}

/* Reads QUERIES rows, those after the last one as zeros, so that their scores and gradients are zero too. */
static void read_block(const void *from, int64_t at, int64_t step, int64_t count, const struct attention *a,
                       const struct head *h, float factor, float *rows) {
    memset(rows, 0, sizeof(float) * (size_t)(QUERIES * h->padded));
    for (int64_t r = 0; r < count; r++) read_values(from, at + r * step, a->is_bf16, factor, rows + r * h->padded, a->width);
}

/* sums[j] += sum of scores[r][j] * rows[r], for the first `count` sums. */
static void add_outer(const float *scores, int64_t stride, const float *rows, int64_t padded, int64_t count, float *sums) {
    for (int64_t at = 0; at < padded; at += STEP) {
        vector row[QUERIES][2];
#pragma GCC unroll 8
        for (int r = 0; r < QUERIES; r++) row[r][0] = load(rows + r * padded + at), row[r][1] = load(rows + r * padded + at + LANES);
        for (int64_t j = 0; j < count; j++) {
            float *sum = sums + j * padded + at;
            vector left = load(sum), right = load(sum + LANES);
#pragma GCC unroll 8
            for (int r = 0; r < QUERIES; r++) {
                left += scores[r * stride + j] * row[r][0];
                right += scores[r * stride + j] * row[r][1];
            }
            store(sum, left);
            store(sum + LANES, right);
        }
    }
}

static void forward(const struct attention *a, struct head *h, int64_t head) {
    int64_t channels = a->heads * a->width, before = h->length - h->query_count;
    uint32_t threshold = threshold_of(a->dropout);
    for (int64_t i = 0; i < h->query_count; i += QUERIES) {
        int64_t count = h->query_count - i < QUERIES ? h->query_count - i : QUERIES, last = before + i + count;
        read_block(a->qkv, place_of(a, h->first_row + before + i, head, 0), 3 * channels, count, a, h, a->scale, h->queries);
        multiply_columns(h->queries, h->padded, QUERIES, a->width, h->keys_by_channel, h->stride, rounded_up(last, STEP), h->scores);
        float sums[QUERIES];
        for (int64_t r = 0; r < count; r++) {
            float *restrict scores = h->scores + r * h->stride;
            int64_t seen = before + i + r + 1;
            sums[r] = soften(scores, seen, last) * (1.0f - a->dropout);
            uint32_t seed = mixed(h->seed + (uint32_t)(before + i + r));
            if (threshold)
                for (int64_t j = 0; j < seen; j++) scores[j] = is_kept(seed, (uint32_t)j, threshold) ? scores[j] : 0.0f;
        }
        multiply_rows(h->scores, h->stride, QUERIES, h->values, h->padded, last, 2, h->contexts);
        for (int64_t r = 0; r < count; r++)
            write_values(a->out, (h->out_row + i + r) * channels + head * a->width, a->is_bf16, 1.0f / sums[r], h->contexts + r * h->padded, a->width);
    }
}

/* A row of scores and of the gradients of dropped shares becomes dropped shares, and gradients of scores. */
static void row_backward(float *restrict scores, float *restrict grads, float *restrict factors, int64_t seen, int64_t last,
                         float dropout, uint32_t seed) {
    float share = 1.0f / soften(scores, seen, last), mean = 0.0f, factor = 1.0f / (1.0f - dropout);
    uint32_t threshold = threshold_of(dropout);
    if (threshold)
        for (int64_t j = 0; j < seen; j++) {
            factors[j] = is_kept(seed, (uint32_t)j, threshold) ? factor : 0.0f;
            grads[j] *= factors[j];
        }
    for (int64_t j = 0; j < seen; j++) {
        scores[j] *= share;
        mean += scores[j] * grads[j];
    }
    for (int64_t j = 0; j < seen; j++) grads[j] = scores[j] * (grads[j] - mean);
    if (threshold)
        for (int64_t j = 0; j < seen; j++) scores[j] *= factors[j];
    for (int64_t j = seen; j < last; j++) grads[j] = 0.0f;
}

static void backward(const struct attention *a, struct head *h, int64_t head) {
    int64_t channels = a->heads * a->width, before = h->length - h->query_count;
    memset(h->key_grads, 0, sizeof(float) * (size_t)(h->length * h->padded));
    memset(h->value_grads, 0, sizeof(float) * (size_t)(h->length * h->padded));
    for (int64_t i = 0; i < h->query_count; i += QUERIES) {
        int64_t count = h->query_count - i < QUERIES ? h->query_count - i : QUERIES, last = before + i + count;
        int64_t columns = rounded_up(last, STEP);
        read_block(a->qkv, place_of(a, h->first_row + before + i, head, 0), 3 * channels, count, a, h, a->scale, h->queries);
        read_block(a->out_grad, (h->out_row + i) * channels + head * a->width, channels, count, a, h, 1.0f, h->contexts);
        multiply_columns(h->queries, h->padded, QUERIES, a->width, h->keys_by_channel, h->stride, columns, h->scores);
        multiply_columns(h->contexts, h->padded, QUERIES, a->width, h->values_by_channel, h->stride, columns, h->score_grads);
        for (int64_t r = 0; r < count; r++)
            row_backward(h->scores + r * h->stride, h->score_grads + r * h->stride, h->factors, before + i + r + 1, last,
                         a->dropout, mixed(h->seed + (uint32_t)(before + i + r)));
        multiply_rows(h->score_grads, h->stride, QUERIES, h->keys, h->padded, last, 2, h->query_grads);
        add_outer(h->score_grads, h->stride, h->queries, h->padded, last, h->key_grads); /* queries have the scale */
        add_outer(h->scores, h->stride, h->contexts, h->padded, last, h->value_grads);
        for (int64_t r = 0; r < count; r++)
            write_values(a->qkv_grad, place_of(a, h->first_row + before + i + r, head, 0), a->is_bf16, a->scale, h->query_grads + r * h->padded, a->width);
    }
    for (int64_t j = 0; j < h->length; j++) {
        write_values(a->qkv_grad, place_of(a, h->first_row + j, head, 1), a->is_bf16, 1.0f, h->key_grads + j * h->padded, a->width);
        write_values(a->qkv_grad, place_of(a, h->first_row + j, head, 2), a->is_bf16, 1.0f, h->value_grads + j * h->padded, a->width);
    }
}

/* Computes every `parts`-th head of a text, from `first` to `end` of these parts; neighbours have similar lengths, so
 * parts take equally long. Returns 0, or 1 if memory is short. */
int32_t polyhead_training_attention(const struct attention *a, int64_t first, int64_t end, int64_t parts, int32_t is_backward) {
    struct head h;
    float *room = make_room(a, &h);
    if (room == NULL) return 1;
    for (int64_t part = first; part < end; part++)
        for (int64_t unit = part; unit < a->texts * a->heads; unit += parts) {
            begin(a, &h, unit, is_backward);
            (is_backward ? backward : forward)(a, &h, unit % a->heads);
        }
    free(room);
    return 0;
}
