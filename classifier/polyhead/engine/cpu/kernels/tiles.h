/* AMX's tile instructions and the vectors beside them.
 *
 * Eight tiles of 16 rows of 64 bytes: 16 x 32 bf16 or 16 x 64 uint8 (left operand), 16 x 16 pairs of bf16 or fours of
 * int8 (right operand), 16 x 16 float32 or int32 (sums). Numbers of tiles must be literals.
 *
 * With -DSCALAR_TILES the tile instructions are plain C, in Intel's order of sums: any CPU with AVX2 then computes the
 * bits that AMX would. Tests compile that; it is not for use, because it is slow. The vectors need AVX2, and are
 * fastest with AVX-512 bf16, which every CPU with AMX has.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(64), may_alias));
typedef int32_t ivec __attribute__((vector_size(64), may_alias));
typedef float unaligned_vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t unaligned_ivec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint8_t bytes16 __attribute__((vector_size(16), aligned(1), may_alias));

/* ==== Tiles ======================================================================================================== */
#ifndef SCALAR_TILES
#include <sys/syscall.h>
#include <unistd.h>

/* Own assembly, because GCC 12's _tile_loadd does not tell the compiler that it reads memory. */
#define tile_load(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) : "memory")
/* Leaves in the first-level cache what ordinary loads brought there. */
#define tile_stream(tile, from, stride) \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define tile_store(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define tile_zero(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define tile_dot_bf16(sums, left, right) __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sums ::)
#define tile_dot_int8(sums, left, right) __asm__ volatile("tdpbusd %%tmm" #right ", %%tmm" #left ", %%tmm" #sums ::)

/* oneDNN keeps its own configuration of the tiles from call to call, so each call here saves and restores it. */
typedef struct {
    uint8_t bytes[64];
} tile_config;

static void tiles_begin(tile_config *before) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("sttilecfg %0" : "=m"(*before));
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

static void tiles_end(const tile_config *before) {
    if (before->bytes[0]) __asm__ volatile("ldtilecfg %0" ::"m"(*before));
    else __asm__ volatile("tilerelease" ::); /* otherwise each switch of threads saves 8 KiB */
}

static uint32_t cpuid7(uint32_t leaf, int is_edx) {
    uint32_t a = 7, b, c = leaf, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return is_edx ? d : a;
}

/* Asks Linux for the use of tiles; once per process, before its first tile instruction.
 * Returns 0, 1 if the CPU lacks amx_tile, amx_bf16, amx_int8 or avx512_bf16, or 2 if Linux refuses. */
static int32_t tiles_request(void) {
    const uint32_t needed = 1u << 22 | 1u << 24 | 1u << 25;
    if ((cpuid7(0, 1) & needed) != needed || !(cpuid7(1, 0) >> 5 & 1)) return 1;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) ? 2 : 0;
}

#else /* ---- The same in plain C ---------------------------------------------------------------------------------- */

static __thread union {
    float sums[16][16];
    int32_t whole[16][16];
    uint16_t half[16][32];
    uint8_t byte[16][64];
} tiles[8];
typedef struct {
    uint8_t bytes[1];
} tile_config;

static inline float bf16_operand(uint16_t bits) { /* AMX takes denormals for zero */
    uint32_t wide = bits & 0x7f80 ? (uint32_t)bits << 16 : (uint32_t)(bits & 0x8000) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
static inline float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }

static __attribute__((noinline)) void tile_load_(int tile, const void *from, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy(tiles[tile].byte[r], (const char *)from + r * stride, 64);
}
static __attribute__((noinline)) void tile_store_(int tile, void *to, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy((char *)to + r * stride, tiles[tile].byte[r], 64);
}
/* Intel's manual: products of even and of odd values are summed apart by fused multiply-adds, then added up, then
 * added to the accumulator. */
static __attribute__((noinline)) void tile_dot_bf16_(int sums, int left, int right) {
    float even_row[16][16], odd_row[16][16];
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < 16; n++) {
            even_row[k][n] = bf16_operand(tiles[right].half[k][2 * n]);
            odd_row[k][n] = bf16_operand(tiles[right].half[k][2 * n + 1]);
        }
    for (int m = 0; m < 16; m++) {
        float even[16] = {0}, odd[16] = {0}, *sum = tiles[sums].sums[m];
        for (int k = 0; k < 16; k++) {
            float first = bf16_operand(tiles[left].half[m][2 * k]), second = bf16_operand(tiles[left].half[m][2 * k + 1]);
            for (int n = 0; n < 16; n++) {
                even[n] = flushed(fmaf(first, even_row[k][n], even[n]));
                odd[n] = flushed(fmaf(second, odd_row[k][n], odd[n]));
            }
        }
        for (int n = 0; n < 16; n++) sum[n] = flushed(flushed(sum[n]) + flushed(even[n] + odd[n]));
    }
}
static __attribute__((noinline)) void tile_dot_int8_(int sums, int left, int right) {
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 64; k++) {
            int32_t x = tiles[left].byte[m][k], *sum = tiles[sums].whole[m];
            const uint8_t *w = tiles[right].byte[k / 4] + k % 4;
            for (int n = 0; n < 16; n++) sum[n] += x * (int8_t)w[4 * n];
        }
}
#define tile_load(tile, from, stride) tile_load_(tile, from, stride)
#define tile_stream(tile, from, stride) tile_load_(tile, from, stride)
#define tile_store(tile, to, stride) tile_store_(tile, to, stride)
#define tile_zero(tile) memset(&tiles[tile], 0, sizeof tiles[tile])
#define tile_dot_bf16(sums, left, right) tile_dot_bf16_(sums, left, right)
#define tile_dot_int8(sums, left, right) tile_dot_int8_(sums, left, right)
static void tiles_begin(tile_config *before) { (void)before; }
static void tiles_end(const tile_config *before) { (void)before; }
static int32_t tiles_request(void) { return 0; }
#endif

/* ==== Vectors ====================================================================================================== */

INLINE vec load(const void *from) { return *(const unaligned_vec *)from; }
INLINE ivec load_whole(const void *from) { return *(const unaligned_ivec *)from; }
INLINE void store(void *to, vec x) { *(unaligned_vec *)to = x; }
INLINE void store_whole(void *to, ivec x) { *(unaligned_ivec *)to = x; }
INLINE vec all(float x) { return (vec){} + x; }

static inline uint16_t to_bf16(float value) { /* to the nearest, ties to even; denormals to zero; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (!(bits & 0x7f800000u)) return (uint16_t)(bits >> 16 & 0x8000u);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* 32 bf16: `left`, then `right`. */
#ifdef __AVX512BF16__
INLINE ivec bf16_of(vec left, vec right) { return (ivec)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left); }
#else
static __attribute__((noinline)) ivec bf16_of(vec left, vec right) {
    uint16_t row[32];
    for (int i = 0; i < 16; i++) row[i] = to_bf16(left[i]), row[16 + i] = to_bf16(right[i]);
    return load_whole(row);
}
#endif
INLINE void store_bf16(void *to, vec left, vec right) { store_whole(to, bf16_of(left, right)); }

/* sums + even values + odd values of 32 bf16 */
INLINE vec add_bf16_pairs(vec sums, ivec values) {
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)values, (__m512bh)_mm512_set1_epi16(0x3f80)); /* times 1 */
#else
    return sums + (vec)(values & ~0xffff) + (vec)(values << 16);
#endif
}

/* 16 bf16 as float32. */
INLINE vec load_bf16(const void *from) {
#ifdef __AVX512F__
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
#else
    ivec wide;
    for (int i = 0; i < 16; i++) wide[i] = (int32_t)((uint32_t)((const uint16_t *)from)[i] << 16);
    return (vec)wide;
#endif
}

/* 16 half-precision values; beyond 65,504 is infinity. */
INLINE void store_half(void *to, vec x) {
#ifdef __AVX512F__
    _mm256_storeu_si256(to, _mm512_cvtps_ph((__m512)x, 0));
#else
    float row[16];
    memcpy(row, &x, 64);
    for (int i = 0; i < 16; i += 8)
        _mm_storeu_si128((__m128i *)((char *)to + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(row + i), 0));
#endif
}
INLINE vec load_half(const void *from) {
#ifdef __AVX512F__
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(from));
#else
    float row[16];
    for (int i = 0; i < 16; i += 8)
        _mm256_storeu_ps(row + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const char *)from + 2 * i))));
    return load(row);
#endif
}

/* gelu_new: y / (1 + 2^t) with t = -2 log2(e) sqrt(2 / pi) (y + 0.044715 y^3). Relative error below 2^-12 for |y| < 5, an
 * eighth of bf16's, and 1.5e-4 at most in absolute terms: fast enough to hide behind tile products. NaN stays NaN. */
#ifdef __AVX512DQ__
INLINE vec gelu(vec y) {
    y = (vec)_mm512_max_ps(_mm512_set1_ps(-100.0f), (__m512)y);
    vec within = (vec)_mm512_range_ps((__m512)y, _mm512_set1_ps(9.0f), 2); /* a denormal power costs hundreds of cycles */
    vec square = within * within, t = within * (square * all(-0.10294324f) + all(-2.30220820f));
    vec f = (vec)_mm512_reduce_ps((__m512)t, 1); /* t - floor(t) */
    vec p = ((all(0.07790716f) * f + all(0.22623319f)) * f + all(0.69577710f)) * f + all(0.99992783f);
    vec e = (vec)_mm512_scalef_ps((__m512)p, (__m512)t); /* p * 2^floor(t) */
    return y * (vec)_mm512_rcp14_ps((__m512)(e + all(1.0f)));
}
#else
static __attribute__((noinline)) vec gelu(vec y) {
    vec result;
    for (int i = 0; i < 16; i++) {
        float x = y[i] < -100.0f ? -100.0f : y[i], within = x > 9.0f ? 9.0f : x < -9.0f ? -9.0f : x;
        result[i] = x / (1.0f + exp2f(within * (within * within * -0.10294324f - 2.30220820f)));
    }
    return result;
}
#endif
