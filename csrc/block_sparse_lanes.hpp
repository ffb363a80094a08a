// Vectors of LANES floats in the instructions that the including file allows, powers of two, transposes.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE [[gnu::always_inline]] static inline

namespace {

// Aligned memory for one thread.
template <class Number>
struct Scratch {
    Number* at;
    explicit Scratch(int64_t numbers)
        : at(static_cast<Number*>(std::aligned_alloc(64, (numbers * sizeof(Number) + 64) / 64 * 64))) {
        if (!at) std::abort();
    }
    ~Scratch() { std::free(at); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

INLINE Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
INLINE void store(float* to, Vec x) { *reinterpret_cast<Loose*>(to) = x; }

#if LANES == 16
INLINE Vec all(float x) { return _mm512_set1_ps(x); }
INLINE Vec fused(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
#elif LANES == 8
INLINE Vec all(float x) { return _mm256_set1_ps(x); }
INLINE Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
#else
INLINE Vec all(float x) { return Vec{x, x, x, x}; }
#if defined(__ARM_NEON) && defined(__aarch64__)
INLINE Vec fused(Vec a, Vec b, Vec c) { return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
INLINE Vec fused(Vec a, Vec b, Vec c) { return a * b + c; }
#endif
INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }
#endif

// 2^x for x <= 127: at most 1.5 ulp off, exactly 1 at 0, exactly 0 below 2^-126 and at -inf, NaN at NaN.
INLINE Vec exp2(Vec x) {
#if LANES == 16
    const Vec part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT), whole = x - part;
#else
    // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold.
    const Vec shifter = all(12582912.0f), moved = x + shifter, whole = moved - shifter, part = x - whole;
#endif
    Vec power = fused(part, all(0x1.41fbbc00p-13f), all(0x1.5f3e5400p-10f));
    power = fused(part, power, all(0x1.3b2d4c00p-7f));
    power = fused(part, power, all(0x1.c6aee800p-5f));
    power = fused(part, power, all(0x1.ebfbdc00p-3f));
    power = fused(part, power, all(0x1.62e43000p-1f));
    power = fused(part, power, all(1.0f));
#if LANES == 16
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, all(-126.0f), _CMP_NLT_UQ), power, whole);
#else
    const Vec scaled = (Vec)((Bits)power + ((Bits)moved << 23));
    const Vec number = x < all(-126.0f) ? Vec{} : scaled;
    return x == x ? number : x;
#endif
}

constexpr float LN2 = 0.693147180559945309f, LOG2E = 1.44269504088896341f;
constexpr float LOWEST = -__builtin_inff();

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// LANES x LANES numbers, `from` and `to` with their own strides. Interleaving the halves log2(LANES) times transposes.
#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
INLINE Vec low(Vec a, Vec b) { return __builtin_shufflevector(a, b, LOW); }
INLINE Vec high(Vec a, Vec b) { return __builtin_shufflevector(a, b, HIGH); }
#undef LOW
#undef HIGH
INLINE void interleave(const Vec* from, Vec* to) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; ++i) {
        to[2 * i] = low(from[i], from[i + LANES / 2]);
        to[2 * i + 1] = high(from[i], from[i + LANES / 2]);
    }
}
INLINE void turn(Vec* x) {
    Vec y[LANES];
    interleave(x, y);
    interleave(y, x);
#if LANES >= 8
    interleave(x, y);
#if LANES == 16
    interleave(y, x);
#else
#pragma GCC unroll 8
    for (int i = 0; i < LANES; ++i) x[i] = y[i];
#endif
#endif
}

// Lane i is what `both` makes of all lanes of x[i], for LANES vectors.
template <class Both>
INLINE Vec fold(Vec* x, Both both) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) x[i] = both(low(x[i], x[i + half]), high(x[i], x[i + half]));
    return x[0];
}

// to (dim, LANES) = from (rows, dim)^T, with zeros where there are fewer than LANES rows.
static void turn_in(const float* from, int64_t rows, int64_t dim, float* to) {
    for (int64_t d = 0; d < dim; d += LANES) {
        Vec x[LANES];
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) x[r] = r < rows ? load(from + r * dim + d) : Vec{};
        turn(x);
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) store(to + (d + r) * LANES, x[r]);
    }
}

// to (rows, dim) = from (dim, LANES)^T.
static void turn_out(const float* from, int64_t rows, int64_t dim, float* to) {
    for (int64_t d = 0; d < dim; d += LANES) {
        Vec x[LANES];
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) x[r] = load(from + (d + r) * LANES);
        turn(x);
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r)
            if (r < rows) store(to + r * dim + d, x[r]);
    }
}

}  // namespace
