/* AMX in software, for a processor that has AVX-512 but no tiles. Test only.
 *
 * Preloaded (LD_PRELOAD), it emulates the tile instructions that trap as undefined (SIGILL), as Intel's manual describes
 * them, volume 2. It is as strict as the processor: where that would raise #UD or #GP, the process ends with a line on
 * stderr. So it does for any other undefined instruction, and if the process has not asked Linux for tiles.
 *
 * Each thread has its own tiles. Only what the kernels use is emulated: no start row, and of the products only
 * TDPBF16PS and TDPBUSD.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <immintrin.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };

/* ==== What tests read and set ====================================================================================== */

/* In amx_emulator_counts' order. */
enum kind { LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED, TDPBF16PS, TDPBUSD, KINDS };
static const char *const names[KINDS] = {"ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd",
                                         "tileloaddt1", "tilestored", "tdpbf16ps", "tdpbusd"};
uint64_t amx_emulator_counts[KINDS]; /* instructions of all threads */
#define FEATURES (1u << 22 | 1u << 24 | 1u << 25) /* CPUID 7.0 EDX: amx_bf16, amx_tile, amx_int8 */
uint32_t amx_emulator_features = FEATURES;        /* those that the processor seems to have */
int32_t amx_emulator_is_granted = 1;              /* whether Linux grants tiles to who asks */

/* Instructions for tests of what a call leaves: these trap, too. `config` has 64 bytes. */
void amx_emulator_ldtilecfg(const uint8_t *config) { __asm__ volatile("ldtilecfg %0" ::"m"(*(const uint8_t(*)[64])config)); }
void amx_emulator_sttilecfg(uint8_t *config) { __asm__ volatile("sttilecfg %0" : "=m"(*(uint8_t(*)[64])config)); }

/* ==== State ======================================================================================================== */

static int is_requested; /* by this process */

static __thread struct {
    uint8_t config[64]; /* the first byte is 0 if no tiles are configured */
    uint8_t tiles[TILES][ROWS][BYTES];
} own __attribute__((tls_model("initial-exec"), aligned(64)));

static int rows_of(int tile) { return own.config[48 + tile]; }
static int bytes_of(int tile) { return own.config[16 + 2 * tile] | own.config[17 + 2 * tile] << 8; }

static __attribute__((noreturn)) void fail(const uint8_t *at, const char *fault, const char *name, const char *why) {
    Dl_info place = {0};
    dladdr(at, &place);
    const char *symbol = place.dli_sname ? place.dli_sname : "?";
    const long offset = place.dli_saddr ? (long)(at - (const uint8_t *)place.dli_saddr) : 0;
    dprintf(2, "AMX emulator: %s at %s+0x%lx: %s: %s\n", name, symbol, offset, fault, why);
    signal(SIGABRT, SIG_DFL);
    abort();
}

/* ==== Instructions ================================================================================================= */

struct instruction {
    const uint8_t *at;
    enum kind kind;
    int length, reg, rm, vvvv;
    char *base;
    int64_t stride;
};

static void ud(const struct instruction *i, int is_wrong, const char *why) {
    if (is_wrong) fail(i->at, "#UD", names[i->kind], why);
}
static void gp(const struct instruction *i, int is_wrong, const char *why) {
    if (is_wrong) fail(i->at, "#GP", names[i->kind], why);
}

static void check_tile(const struct instruction *i, int tile) {
    ud(i, !own.config[0], "no tiles are configured on this thread");
    ud(i, tile >= TILES, "no such tile");
    ud(i, !rows_of(tile), "the tile is not configured");
}

static void load_config(const struct instruction *i) {
    uint8_t config[64];
    memcpy(config, i->base, 64);
    gp(i, config[0] > 1, "unknown palette");
    if (config[0]) {
        gp(i, config[1], "a start row, which is not emulated");
        for (int byte = 2; byte < 16; byte++) gp(i, config[byte], "a reserved byte is not 0");
        for (int byte = 16 + 2 * TILES; byte < 48; byte++) gp(i, config[byte], "a reserved byte is not 0");
        for (int byte = 48 + TILES; byte < 64; byte++) gp(i, config[byte], "a reserved byte is not 0");
        for (int tile = 0; tile < TILES; tile++) {
            const int rows = config[48 + tile], bytes = config[16 + 2 * tile] | config[17 + 2 * tile] << 8;
            gp(i, rows > ROWS, "more than 16 rows");
            gp(i, bytes > BYTES, "more than 64 bytes per row");
            gp(i, !rows != !bytes, "a tile with rows or bytes alone");
        }
    } else memset(config, 0, 64);
    memcpy(own.config, config, 64);
    memset(own.tiles, 0, sizeof own.tiles);
}

/* Rows and bytes beyond a tile's shape are always 0. */
static void load_tile(const struct instruction *i) {
    check_tile(i, i->reg);
    for (int r = 0; r < rows_of(i->reg); r++) memcpy(own.tiles[i->reg][r], i->base + r * i->stride, (size_t)bytes_of(i->reg));
}
static void store_tile(const struct instruction *i) {
    check_tile(i, i->reg);
    for (int r = 0; r < rows_of(i->reg); r++) memcpy(i->base + r * i->stride, own.tiles[i->reg][r], (size_t)bytes_of(i->reg));
}

static void check_product(const struct instruction *i) {
    const int sums = i->reg, left = i->rm, right = i->vvvv;
    check_tile(i, sums), check_tile(i, left), check_tile(i, right);
    ud(i, sums == left || sums == right || left == right, "a tile is named twice");
    ud(i, bytes_of(sums) % 4 || bytes_of(left) % 4 || bytes_of(right) % 4, "rows are not whole groups of 4 bytes");
    ud(i, rows_of(sums) != rows_of(left), "sums and left operand have other numbers of rows");
    ud(i, bytes_of(sums) != bytes_of(right), "sums and right operand have other numbers of columns");
    ud(i, bytes_of(left) / 4 != rows_of(right), "left operand's columns are not the right operand's rows");
}

/* Even and odd values are summed apart by fused multiply-adds, then together, then added to the tile. Denormals are zero. */
static void dot_bf16(const struct instruction *i) {
    check_product(i);
    _mm_setcsr(0x9fc0); /* to the nearest, denormals to zero, no exceptions; the return from the signal undoes it */
    const __m512i odd_bits = _mm512_set1_epi32((int)0xffff0000);
    __m512 even_row[ROWS], odd_row[ROWS];
    for (int k = 0; k < ROWS; k++) {
        const __m512i row = _mm512_load_si512(own.tiles[i->vvvv][k]);
        even_row[k] = (__m512)_mm512_slli_epi32(row, 16), odd_row[k] = (__m512)_mm512_and_si512(row, odd_bits);
    }
    for (int m = 0; m < rows_of(i->reg); m++) {
        __m512 even = _mm512_setzero_ps(), odd = even;
        for (int k = 0; k < bytes_of(i->rm) / 4; k++) {
            int32_t pair;
            memcpy(&pair, own.tiles[i->rm][m] + 4 * k, 4);
            const __m512i pairs = _mm512_set1_epi32(pair);
            even = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(pairs, 16), even_row[k], even);
            odd = _mm512_fmadd_ps((__m512)_mm512_and_si512(pairs, odd_bits), odd_row[k], odd);
        }
        const __m512 old = _mm512_load_ps(own.tiles[i->reg][m]);
        _mm512_store_ps(own.tiles[i->reg][m], _mm512_add_ps(old, _mm512_add_ps(even, odd)));
    }
}

/* Unsigned left bytes, signed right bytes; sums wrap around. */
static void dot_int8(const struct instruction *i) {
    check_product(i);
    for (int m = 0; m < rows_of(i->reg); m++) {
        __m512i sums = _mm512_load_si512(own.tiles[i->reg][m]);
        for (int k = 0; k < bytes_of(i->rm); k++) { /* the right operand's column n holds four values side by side */
            const __m512i row = _mm512_load_si512(own.tiles[i->vvvv][k / 4]);
            const __m512i byte = _mm512_srai_epi32(_mm512_sllv_epi32(row, _mm512_set1_epi32(24 - 8 * (k % 4))), 24);
            sums = _mm512_add_epi32(sums, _mm512_mullo_epi32(byte, _mm512_set1_epi32(own.tiles[i->rm][m][k])));
        }
        _mm512_store_si512(own.tiles[i->reg][m], sums);
    }
}

static void run(const struct instruction *i) {
    ud(i, !is_requested, "the process has not asked Linux for tiles");
    switch (i->kind) {
    case LDTILECFG: load_config(i); break;
    case STTILECFG: memcpy(i->base, own.config, 64); break;
    case TILERELEASE: memset(&own, 0, sizeof own); break;
    case TILEZERO: check_tile(i, i->reg), memset(own.tiles[i->reg], 0, sizeof own.tiles[0]); break;
    case TILELOADD:
    case TILELOADDT1: load_tile(i); break;
    case TILESTORED: store_tile(i); break;
    case TDPBF16PS: dot_bf16(i); break;
    case TDPBUSD: dot_int8(i); break;
    case KINDS: break;
    }
    __atomic_fetch_add(&amx_emulator_counts[i->kind], 1, __ATOMIC_RELAXED);
}

/* ==== Decoding ===================================================================================================== */

/* The kernel's places of the registers 0 (rax) to 15 (r15). */
static const int registers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/* Opcode, prefix (0 none, 1 66, 2 F3, 3 F2), and whether the operand is in memory. */
static enum kind kind_of(uint8_t opcode, int prefix, int is_memory) {
    if (opcode == 0x49 && is_memory) return prefix == 0 ? LDTILECFG : prefix == 1 ? STTILECFG : KINDS;
    if (opcode == 0x49) return prefix == 0 ? TILERELEASE : prefix == 3 ? TILEZERO : KINDS;
    if (opcode == 0x4b && is_memory) return prefix == 3 ? TILELOADD : prefix == 1 ? TILELOADDT1 : prefix == 2 ? TILESTORED : KINDS;
    if (opcode == 0x5c && !is_memory && prefix == 2) return TDPBF16PS;
    if (opcode == 0x5e && !is_memory && prefix == 1) return TDPBUSD;
    return KINDS;
}

/* All of AMX's have VEX with three bytes and the map 0F 38. */
static int is_amx(const uint8_t *at) {
    return at[0] == 0xc4 && (at[1] & 31) == 2 && kind_of(at[3], at[2] & 3, at[4] >> 6 != 3) != KINDS;
}

/* C4, then R' X' B' and the map (0F 38), then W vvvv' L and the prefix, opcode, ModRM, perhaps SIB and displacement. */
static struct instruction decode(const uint8_t *at, const greg_t *values) {
    if (!is_amx(at)) fail(at, "#UD", "an instruction", "it is not emulated, and this processor lacks it");
    const int mod = at[4] >> 6, prefix = at[2] & 3;
    struct instruction i = {.at = at, .kind = kind_of(at[3], prefix, mod != 3), .length = 5, .reg = at[4] >> 3 & 7,
                            .rm = at[4] & 7, .vvvv = ~at[2] >> 3 & 15};
    const int is_product = i.kind == TDPBF16PS || i.kind == TDPBUSD, is_sib = at[3] == 0x4b;
    ud(&i, at[2] & 0x84, "W or L is not 0");
    ud(&i, !is_product && i.vvvv, "vvvv is not 1111");
    ud(&i, !(at[1] & 0x80), "a tile beyond 7");
    ud(&i, mod == 3 && !(at[1] & 0x20), "a tile beyond 7");
    ud(&i, at[3] == 0x49 && mod != 3 && i.reg, "reg is not 0");
    ud(&i, i.kind == TILERELEASE && at[4] != 0xc0, "ModRM is not C0");
    ud(&i, i.kind == TILEZERO && i.rm, "rm is not 0");
    ud(&i, is_sib && i.rm != 4, "no SIB");
    if (mod == 3) return i;
    const int high_base = at[1] & 0x20 ? 0 : 8, high_index = at[1] & 0x40 ? 0 : 8;
    int has_base = 1, base = i.rm | high_base, is_relative = 0;
    if (i.rm == 4) {
        const uint8_t sib = at[i.length++];
        const int index = (sib >> 3 & 7) | high_index;
        base = (sib & 7) | high_base, has_base = mod || (sib & 7) != 5;
        const int64_t scaled = index == 4 ? 0 : values[registers[index]] * (1 << (sib >> 6));
        if (is_sib) i.stride = scaled;
        else i.base += scaled;
    } else if (!mod && i.rm == 5) has_base = 0, is_relative = 1;
    if (mod == 1) i.base += (int8_t)at[i.length], i.length += 1;
    else if (mod == 2 || !has_base) {
        int32_t displacement;
        memcpy(&displacement, at + i.length, 4);
        i.base += displacement, i.length += 4;
    }
    if (has_base) i.base += values[registers[base]];
    if (is_relative) i.base += (uintptr_t)at + (uintptr_t)i.length;
    return i;
}

/* ==== The processor's and Linux's answers ========================================================================== */

static const uint8_t *cpuids[4];
static int cpuids_known;

/* Makes the CPUID instructions of a function trap, so that they tell of AMX; returns how many it has. */
int32_t amx_emulator_patch_cpuid(void *function) {
    Dl_info place;
    const ElfW(Sym) *symbol = NULL;
    if (!dladdr1(function, &place, (void **)&symbol, RTLD_DL_SYMENT) || symbol == NULL) return -1;
    const uintptr_t page = (uintptr_t)function & ~(uintptr_t)4095;
    uint8_t *code = function;
    if (mprotect((void *)page, (uintptr_t)code + symbol->st_size - page, PROT_READ | PROT_WRITE | PROT_EXEC)) return -1;
    for (size_t byte = 0; byte + 1 < symbol->st_size && cpuids_known < 4; byte++)
        if (code[byte] == 0x0f && code[byte + 1] == 0xa2) {
            code[byte + 1] = 0x0b; /* UD2 has two bytes, too */
            cpuids[cpuids_known++] = code + byte;
        }
    return cpuids_known;
}

static int answer_cpuid(const uint8_t *at, greg_t *values) {
    int is_known = 0;
    for (int place = 0; place < cpuids_known; place++) is_known |= cpuids[place] == at;
    if (!is_known) return 0;
    const uint32_t leaf = (uint32_t)values[REG_RAX], subleaf = (uint32_t)values[REG_RCX];
    uint32_t a = leaf, b, c = subleaf, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (leaf == 7 && subleaf == 0) d = (d & ~FEATURES) | amx_emulator_features;
    values[REG_RAX] = a, values[REG_RBX] = b, values[REG_RCX] = c, values[REG_RDX] = d;
    values[REG_RIP] += 2;
    return 1;
}

/* libc's `syscall`, of which only the request for tiles (ARCH_REQ_XCOMP_PERM of component 18) is answered here. */
long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long), d = va_arg(list, long);
    long e = va_arg(list, long), f = va_arg(list, long), result;
    va_end(list);
    if (number == SYS_arch_prctl && a == 0x1023) {
        is_requested = b == 18 && amx_emulator_is_granted;
        if (is_requested) return 0;
        errno = EINVAL;
        return -1;
    }
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result >= 0 || result < -4095) return result;
    errno = (int)-result;
    return -1;
}

/* ==== The trap ===================================================================================================== */

static void on_undefined(int signal, siginfo_t *information, void *context) {
    (void)signal, (void)information;
    greg_t *values = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)values[REG_RIP];
    if (answer_cpuid(at, values)) return;
    do { /* instructions that follow do not trap again: a trap takes ten times as long as they do */
        const struct instruction instruction = decode(at, values);
        run(&instruction);
        at += instruction.length;
    } while (is_amx(at));
    values[REG_RIP] = (greg_t)at;
}

static __attribute__((constructor)) void begin(void) {
    const struct sigaction action = {.sa_sigaction = on_undefined, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, NULL);
}
