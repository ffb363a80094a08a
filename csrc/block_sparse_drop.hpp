// Dropout of the weights of a tile. Its pieces are the keys of one block of 64, in order, and its first query is even.
//
// Pairs (query, key) of head g draw 16 bits of Philox4x32-10 under the key `seed`: of word w of the counter
// (16 (key / 64) + l, 2^32 g + query / 2), where key % 64 = 16 w + l, the lower half if the query is even, else the
// upper.
#pragma once

#include "block_sparse_tiles.hpp"
#include "philox_lanes.hpp"

namespace {

// Calls `work(factor, row, place)` for each vector of the tile: its lanes are `scale` where a weight is kept, and 0
// where it is dropped. A row beyond the last one has a place too.
template <class Work>
INLINE void drop(const ZooDrop& by, int64_t head, int64_t query, int64_t rows, int64_t width, const Piece* pieces,
                 const Work& work) {
    const Vec scale = all(by.scale);
    const auto factor = [&](Bits bits) { return (Vec)((Bits)(bits >= all_bits(by.threshold)) & (Bits)scale); };
    for (int64_t i = 0; i < rows; i += 2)
        for (int64_t half = 0; half < 16; half += LANES) {
            const Words words = philox(by.seed, static_cast<uint64_t>(pieces->first / 64 * 16 + half),
                                       (static_cast<uint64_t>(head) << 32) + static_cast<uint64_t>((query + i) / 2));
            for (int64_t w = 0; w < 4; ++w) {
                const int64_t column = 16 * w + half;
                if (column >= width) continue;
                work(factor(words.at[w] & 0xFFFFu), i, i * width + column);
                work(factor(words.at[w] >> 16), i + 1, (i + 1) * width + column);
            }
        }
}

static void drop_weights(const ZooDrop& by, int64_t head, int64_t query, int64_t rows, int64_t width,
                         const Piece* pieces, float* weights) {
    drop(by, head, query, rows, width, pieces,
         [&](Vec factor, int64_t, int64_t at) { store(weights + at, load(weights + at) * factor); });
}

// As `weigh_again`, of weights that were dropped after they were normalised.
static void weigh_dropped(const ZooDrop& by, int64_t head, int64_t query, int64_t rows, int64_t width,
                          const Piece* pieces, float factor, float scale, const float* totals, const float* shifts,
                          float* weights, float* d_logits) {
    drop(by, head, query, rows, width, pieces, [&](Vec kept, int64_t i, int64_t at) {
        const int64_t row = least(i, rows - 1);
        const Vec weight = exp2(fused(load(weights + at), all(factor), all(-totals[row])));
        store(weights + at, weight * kept);
        store(d_logits + at, fused(load(d_logits + at), kept, all(-shifts[row])) * (weight * all(scale)));
    });
}

}  // namespace
