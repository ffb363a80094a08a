// The choice of block_choice.py on a GPU, a block of threads for each head.
//
// A pair has a 32-bit rank: forced pairs come first, then the best of each row, then the others, each by what its logit
// lacks of its row's best. Rank and place (x K + y) make every pair different. The last pair to be chosen is found by
// counting in bins, first in bins that fit logits, then again and again in equal parts of the bin that holds it. The
// chosen pairs become bits, and the bits of a row become pairs in order.
#pragma once

#include <ptx.cuh>

#include "zoo_cuda.hpp"

namespace {

// A bin for each thread, of at least so many. Neighbouring lanes count in copies of their own: they often want one bin.
constexpr int BINS = 512, COPIES = 4;
// Pairs that are looked at alone once so few are left.
constexpr uint32_t NEAR = 2048;

// Ranks: what forced pairs lack, then from BEST and from OTHER on. Nothing lacks more than NAN_BITS, a quiet NaN. NEVER
// is the rank of a pair that is not of real blocks.
constexpr uint32_t NAN_BITS = 0x7fc00000, BEST = 0x7fd00000, OTHER = 0x80000000, NEVER = 0xffffffff;
// The bins of the first count: forced, best, then 8 to an octave of what is lacking, from 2^-46 to 2^17.
constexpr int BITS = 20, LOWEST_OCTAVE = (127 - 46) << (23 - BITS);

DEVICE uint32_t lacking(float top, float logit) {
    const float less = top - logit;
    uint32_t bits;
    memcpy(&bits, &less, sizeof bits);
    return less == less ? bits & 0x7fffffff : NAN_BITS;
}

DEVICE uint32_t rank_of_best(uint32_t lost) { return BEST + (lost >> 12); }

DEVICE int bin_of_other(uint32_t lost) {
    const int bin = static_cast<int>(lost >> BITS) - LOWEST_OCTAVE;
    return 2 + (bin < 0 ? 0 : bin > BINS - 3 ? BINS - 3 : bin);
}

// The least rank of a bin.
DEVICE uint32_t bin_start(int bin) {
    if (bin == 0) return 0;
    if (bin == 1) return BEST;
    if (bin == 2) return OTHER;
    return bin == BINS ? NEVER : OTHER + (static_cast<uint32_t>(bin - 2 + LOWEST_OCTAVE) << BITS);
}

struct Head {
    int count, words;        // words = ceil(count / 32)
    int first, reach;        // forced: x < first, y < first, |x - y| <= reach
    const float* logits;     // (K, K)
    const uint32_t* real;    // bits: block 1024 g + 32 i + l is bit i of word 32 g + l
    // A row of real blocks holds ranks, at the end the bits of its chosen pairs and, in word `words`, first how many
    // they are and then how many the rows before it have.
    uint32_t* ranks;
    int64_t stride;

    DEVICE bool is_real(int block) const { return real[block / 1024 * 32 + block % 32] >> block / 32 % 32 & 1; }
    DEVICE int place_bits() const { return 32 - __clz(static_cast<int>(static_cast<uint32_t>(count) * count - 1)); }
};

struct Row {
    const float* logits;
    uint32_t* ranks;
    int edge, low, width;    // forced: y < edge, low <= y <= low + width

    DEVICE Row(const Head& h, int x)
        : logits(h.logits + static_cast<int64_t>(x) * h.count), ranks(h.ranks + x * h.stride),
          edge(x < h.first ? h.count : h.first), low(h.reach < 0 ? h.count : x - h.reach),
          width(h.reach < 0 ? 0 : 2 * h.reach) {}
    DEVICE bool forced(int y) const { return y < edge || (y >= low && y - low <= width); }
};

// visit(y, whether it is real) of a lane's columns.
template <class Visit>
DEVICE void each_column(const Head& h, Visit visit) {
    for (int from = 0; from < h.count; from += 1024) {
        uint32_t real = h.real[from / 32 + threadIdx.x % 32];
        const int over = from + 1024 < h.count ? from + 1024 : h.count;
#pragma unroll 4
        for (int y = from + threadIdx.x % 32; y < over; y += 32, real >>= 1) visit(y, (real & 1) != 0);
    }
}

// visit(x) of a warp's rows of real blocks.
template <class Visit>
DEVICE void each_row(const Head& h, Visit visit) {
    for (int x = threadIdx.x / 32; x < h.count; x += blockDim.x / 32)
        if (h.is_real(x)) visit(x);
}

// NaN is above all.
DEVICE float larger(float a, float b) { return b > a || b != b ? b : a; }

struct Best {
    int y;
    uint32_t lost;
};

// A row's best pair; visit(y, whether it is real, what it lacks) of a lane's columns on the way.
template <class Visit>
DEVICE Best scan_row(const Head& h, const Row& row, Visit visit) {
    float top = -__builtin_inff();
    each_column(h, [&](int y, bool real) {
        const float logit = row.logits[y];
        top = real ? larger(top, logit) : top;
    });
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) top = larger(top, __shfl_xor_sync(~0u, top, apart));
    Best mine = {h.count, NEVER};
    each_column(h, [&](int y, bool real) {
        const uint32_t lost = lacking(top, row.logits[y]);
        if (real && lost < mine.lost) mine = {y, lost};
        visit(y, real, lost);
    });
    uint32_t lost = mine.lost;
    // A finite top lacks nothing.
    if (top - top == 0.0f) lost = 0;
    else
        for (int apart = 16; apart > 0; apart /= 2) {
            const uint32_t other = __shfl_xor_sync(~0u, lost, apart);
            lost = other < lost ? other : lost;
        }
    int best = mine.lost == lost ? mine.y : h.count;
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        const int other = __shfl_xor_sync(~0u, best, apart);
        best = other < best ? other : best;
    }
    return {best, lost};
}

DEVICE void count_in(uint32_t* counts, int bin, uint32_t number = 1) {
    atomicAdd(counts + bin * COPIES + threadIdx.x % COPIES, number);
}

// The ranks of all pairs, and their counts.
DEVICE void rank_rows(const Head& h, uint32_t* counts) {
    each_row(h, [&](int x) {
        const Row row(h, x);
        const Best best = scan_row(h, row, [&](int y, bool real, uint32_t lost) {
            const bool forced = row.forced(y);
            row.ranks[y] = !real ? NEVER : forced ? lost : OTHER | lost;
            if (real) count_in(counts, forced ? 0 : bin_of_other(lost));
        });
        // Its lane counted it among the others.
        if (best.y % 32 == static_cast<int>(threadIdx.x % 32) && !row.forced(best.y)) {
            row.ranks[best.y] = rank_of_best(best.lost);
            count_in(counts, bin_of_other(best.lost), ~0u);
            count_in(counts, 1);
        }
    });
}

// What the lanes up to this one have.
DEVICE uint32_t sum_up_to(uint32_t mine) {
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
        const uint32_t more = __shfl_up_sync(~0u, mine, apart);
        mine += static_cast<int>(threadIdx.x % 32) >= apart ? more : 0;
    }
    return mine;
}

// What the threads before this one have in `mine`, and all threads in `total`. All of them call it.
DEVICE uint32_t sum_before(uint32_t mine, uint32_t* sums, uint32_t& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t sum = sum_up_to(mine);
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    const uint32_t warps = sum_up_to(sums[lane]);
    total = __shfl_sync(~0u, warps, 31);
    const uint32_t earlier = __shfl_sync(~0u, warps, (warp + 31) % 32);
    __syncthreads();
    return sum - mine + (warp ? earlier : 0);
}

struct Bin {
    uint32_t at, before, inside;
};

// The bin of the pair that `wanted` pairs go up to, 1 or more; BINS if there are fewer. Clears the counts.
DEVICE Bin find_bin(uint32_t* counts, uint32_t wanted, uint32_t* sums, Bin* found) {
    int4 copies = {0, 0, 0, 0};
    if (threadIdx.x < BINS) {
        auto* mine = reinterpret_cast<int4*>(counts) + threadIdx.x;
        copies = *mine;
        *mine = {0, 0, 0, 0};
    }
    const uint32_t inside = static_cast<uint32_t>(copies.x) + static_cast<uint32_t>(copies.y) +
                            static_cast<uint32_t>(copies.z) + static_cast<uint32_t>(copies.w);
    uint32_t total;
    const uint32_t before = sum_before(inside, sums, total);
    if (before < wanted && wanted - before <= inside) *found = {threadIdx.x, before, inside};
    if (threadIdx.x == 0 && total < wanted) *found = {BINS, total, 0};
    __syncthreads();
    const Bin bin = *found;
    __syncthreads();
    return bin;
}

// Rank and place, as one number, up to which pairs are chosen: `left` of them, at least 1, or all. `counts` are those
// of rank_rows.
DEVICE uint64_t find_limit(const Head& h, uint32_t left, uint32_t* counts, uint64_t* near, uint32_t* listed,
                           uint32_t* sums, Bin* found) {
    const int place_bits = h.place_bits();
    Bin bin = find_bin(counts, left, sums, found);
    if (bin.at == BINS) return static_cast<uint64_t>(NEVER) << place_bits;
    uint64_t low = static_cast<uint64_t>(bin_start(bin.at)) << place_bits;
    uint64_t high = static_cast<uint64_t>(bin_start(bin.at + 1)) << place_bits;
    left -= bin.before;
    bool alone = false;
    while (bin.inside != left) {
        int shift = 0;
        while ((high - low - 1) >> shift >= BINS) ++shift;
        const bool list = !alone && bin.inside <= NEAR;
        if (alone) {
            for (uint32_t i = threadIdx.x; i < *listed; i += blockDim.x)
                if (near[i] >= low && near[i] < high) count_in(counts, static_cast<int>((near[i] - low) >> shift));
        } else {
            const auto least = static_cast<uint32_t>(low >> place_bits);
            const auto last = static_cast<uint32_t>((high - 1) >> place_bits);
            each_row(h, [&](int x) {
                const uint32_t* ranks = h.ranks + x * h.stride;
#pragma unroll 4
                for (int y = threadIdx.x % 32; y < h.count; y += 32) {
                    const uint32_t rank = ranks[y];
                    if (rank < least || rank > last) continue;
                    const uint32_t place = static_cast<uint32_t>(x) * h.count + y;
                    const uint64_t at = static_cast<uint64_t>(rank) << place_bits | place;
                    if (at < low || at >= high) continue;
                    count_in(counts, static_cast<int>((at - low) >> shift));
                    if (list) near[atomicAdd(listed, 1u)] = at;
                }
            });
        }
        alone = alone || list;
        __syncthreads();
        bin = find_bin(counts, left, sums, found);
        left -= bin.before;
        low += static_cast<uint64_t>(bin.at) << shift;
        const uint64_t over = low + (1ull << shift);
        high = over < high ? over : high;
    }
    return high;
}

// Bits in place of ranks: a word is written once the ranks that were there have been read.
DEVICE void mark_chosen(const Head& h, uint64_t limit, bool fill) {
    const int place_bits = h.place_bits(), lane = threadIdx.x % 32;
    const auto last = static_cast<uint32_t>(limit >> place_bits);
    const auto over = static_cast<uint32_t>(limit - (static_cast<uint64_t>(last) << place_bits));
    each_row(h, [&](int x) {
        uint32_t *ranks = h.ranks + x * h.stride, number = 0;
#pragma unroll 4
        for (int word = 0; word < h.words; ++word) {
            const int y = 32 * word + lane;
            const uint32_t rank = y < h.count ? ranks[y] : NEVER, place = static_cast<uint32_t>(x) * h.count + y;
            const uint32_t bits = __ballot_sync(~0u, rank < last || (rank == last && place < over));
            number += __popc(bits);
            __syncwarp();
            if (lane == 0) ranks[word] = bits;
        }
        if (fill && number == 0) {
            number = 1;
            const int best = scan_row(h, Row(h, x), [](int, bool, uint32_t) {}).y;
            if (lane == 0) ranks[best / 32] = 1u << best % 32;
        }
        if (lane == 0) ranks[h.words] = number;
    });
}

// The chosen pairs in order, and empty ones up to `room`.
DEVICE void write_pairs(const Head& h, int4* pairs, int64_t room, uint32_t* sums) {
    uint32_t all = 0;
    for (int start = 0; start < h.count; start += blockDim.x) {
        const int x = start + threadIdx.x;
        uint32_t* number = x < h.count && h.is_real(x) ? h.ranks + x * h.stride + h.words : nullptr;
        uint32_t total;
        const uint32_t before = sum_before(number ? *number : 0, sums, total);
        if (number) *number = all + before;
        all += total;
    }
    __syncthreads();
    const int lane = threadIdx.x % 32;
    each_row(h, [&](int x) {
        const uint32_t* chosen = h.ranks + x * h.stride;
        uint32_t at = chosen[h.words];
        for (int start = 0; start < h.words; start += 32) {
            const int word = start + lane;
            uint32_t bits = word < h.words ? chosen[word] : 0;
            const uint32_t mine = __popc(bits), sum = sum_up_to(mine);
            for (int4* to = pairs + at + sum - mine; bits; bits &= bits - 1)
                *to++ = int4{x, 0, 32 * word + __ffs(static_cast<int>(bits)) - 1, 0};
            at += __shfl_sync(~0u, sum, 31);
        }
    });
    for (int64_t i = all + threadIdx.x; i < room; i += blockDim.x) pairs[i] = int4{h.count, 0, 0, 0};
}

__host__ __device__ inline int64_t real_words(int64_t count) { return (count + 1023) / 1024 * 32; }

// What a block of threads needs for `count` blocks, without the ranks.
inline int64_t choice_bytes(int64_t count) {
    return 4 * BINS * COPIES + 8 * NEAR + 4 * 32 + sizeof(Bin) + 4 + 4 * real_words(count);
}

// Ranks lie in shared memory, a word more to a row, or in `lost` (G, K, K).
__global__ void __launch_bounds__(1024) choose(ZooChoice p, uint32_t* lost, bool in_shared) {
    const int count = static_cast<int>(p.count), lane = threadIdx.x % 32;
    const int64_t head = blockIdx.x;
    auto* counts = reinterpret_cast<uint32_t*>(shared_memory());
    auto* near = reinterpret_cast<uint64_t*>(counts + BINS * COPIES);
    auto* sums = reinterpret_cast<uint32_t*>(near + NEAR);
    auto* found = reinterpret_cast<Bin*>(sums + 32);
    auto* listed = reinterpret_cast<uint32_t*>(found + 1);
    uint32_t* real = listed + 1;
    const auto clipped = [&](int64_t x) { return static_cast<int>(x < count ? x : count); };
    const Head h = {count,
                    (count + 31) / 32,
                    clipped(p.first_blocks),
                    p.diagonal_blocks ? clipped(p.diagonal_blocks / 2) : -1,
                    p.logits + head * count * count,
                    real,
                    in_shared ? real + real_words(count) : lost + head * count * count,
                    count + in_shared};

    if (threadIdx.x < BINS) reinterpret_cast<int4*>(counts)[threadIdx.x] = int4{0, 0, 0, 0};
    if (threadIdx.x < 32) sums[threadIdx.x] = 0;
    if (threadIdx.x == 0) *listed = 0;
    for (int word = threadIdx.x; word < real_words(count); word += blockDim.x) {
        uint32_t bits = 0;
        for (int block = word / 32 * 1024 + lane, i = 0; i < 32 && block < count; block += 32, ++i)
            bits |= static_cast<uint32_t>(p.real[head * count + block] != 0) << i;
        real[word] = bits;
    }
    __syncthreads();
    rank_rows(h, counts);
    __syncthreads();

    const int64_t most = p.most < p.budget[head] ? p.most : p.budget[head], all = static_cast<int64_t>(count) * count;
    const auto left = static_cast<uint32_t>(most < 0 ? 0 : most < all ? most : all);
    const uint64_t limit = left ? find_limit(h, left, counts, near, listed, sums, found) : 0;
    mark_chosen(h, limit, p.fill);
    __syncthreads();
    write_pairs(h, reinterpret_cast<int4*>(p.pairs) + head * p.room, p.room, sums);
}

}  // namespace
