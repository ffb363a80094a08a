// Philox4x32-10 in vectors: four random words of each of LANES counters, the same on every instruction set.
//
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
#pragma once

#include "block_sparse_lanes.hpp"
#include "dropout.hpp"

namespace {

struct Words {
    Bits at[4];
};

INLINE Bits all_bits(uint32_t x) { return Bits{} + x; }

// The upper and the lower halves of the products of 32-bit numbers.
INLINE void product(Bits a, uint32_t by, Bits& upper, Bits& lower) {
#if LANES == 16
    const __m512i x = (__m512i)a, y = _mm512_set1_epi32(static_cast<int>(by));
    const __m512i even = _mm512_mul_epu32(x, y), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
    upper = (Bits)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    lower = (Bits)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
#elif LANES == 8
    const __m256i x = (__m256i)a, y = _mm256_set1_epi32(static_cast<int>(by));
    const __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
    upper = (Bits)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    lower = (Bits)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
    for (int i = 0; i < LANES; ++i) {
        const uint64_t whole = static_cast<uint64_t>(a[i]) * by;
        upper[i] = static_cast<uint32_t>(whole >> 32);
        lower[i] = static_cast<uint32_t>(whole);
    }
#endif
}

// Of the counters (first + lane, second).
INLINE Words philox(uint64_t key, uint64_t first, uint64_t second) {
    uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
    Bits lane;
    for (int i = 0; i < LANES; ++i) lane[i] = static_cast<uint32_t>(i);
    Words x = {{all_bits(static_cast<uint32_t>(first)) + lane, all_bits(static_cast<uint32_t>(first >> 32)),
                all_bits(static_cast<uint32_t>(second)), all_bits(static_cast<uint32_t>(second >> 32))}};
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        Bits upper0, lower0, upper1, lower1;
        product(x.at[0], 0xD2511F53u, upper0, lower0);
        product(x.at[2], 0xCD9E8D57u, upper1, lower1);
        x = {{upper1 ^ x.at[1] ^ key0, lower1, upper0 ^ x.at[3] ^ key1, lower0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return x;
}

// `scale` where a word is at least `threshold`, 0 elsewhere.
INLINE Vec kept(Bits word, uint32_t threshold, float scale) {
    return (Vec)((Bits)(word >= all_bits(threshold)) & (Bits)all(scale));
}

static void dropout(const ZooDropout& p, int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group)
        for (int64_t half = 0; half < 16; half += LANES) {
            // LANES divides 16, so no lane's counter carries into the upper word.
            const Words words = philox(p.seed, static_cast<uint64_t>(16 * group + half), 0);
            for (int64_t w = 0; w < 4; ++w) {
                const int64_t from = 64 * group + 16 * w + half;
                const Vec factor = kept(words.at[w], p.threshold, p.scale);
                if (from + LANES <= p.size) {
                    store(p.out + from, load(p.x + from) * factor);
                } else {
                    for (int64_t i = 0; from + i < p.size; ++i) p.out[from + i] = p.x[from + i] * factor[i];
                }
            }
        }
}

}  // namespace
