// Forward: online softmax over the pairs of a query block, which starts with the virtual key.
#pragma once

#include "block_sparse_drop.hpp"

namespace {

// Per query, in base 2: the largest logit so far, and the sums of the weights relative to it, lane by lane.
struct Softmax {
    alignas(64) float top[QUERIES];
    Vec total[QUERIES];
};

// Turns a tile of products, times `factor` logits in base 2, into weights; what was weighed before is to be
// multiplied by `before` (rows).
static void weigh(int64_t rows, int64_t width, float factor, float* tile, Softmax& softmax, float* before) {
    alignas(64) float base[QUERIES];
    for (int64_t first = 0; first < rows; first += LANES) {
        Vec high[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            const float* row = tile + (first + i) * width;
            high[i] = load(row);
            for (int64_t j = LANES; j < width; j += LANES) high[i] = larger(high[i], load(row + j));
        }
        const Vec above = load(softmax.top + first);
        const Vec top = larger(above, fold(high, larger) * all(factor));
        const Vec finite = top == all(LOWEST) ? Vec{} : top;
        store(softmax.top + first, top);
        store(base + first, finite);
        store(before + first, exp2(above - finite));
    }
    for (int64_t i = 0; i < rows; ++i) {
        const Vec less = all(-base[i]);
        Vec sum = {};
        for (float* at = tile + i * width; at < tile + (i + 1) * width; at += LANES) {
            const Vec weight = exp2(fused(load(at), all(factor), less));
            store(at, weight);
            sum += weight;
        }
        softmax.total[i] = fused(softmax.total[i], all(before[i]), sum);
    }
}

// With COARSE, `logs` takes the place of the mask, there is one block, and `pairs` lists what is left out of it.
template <bool COARSE>
static void forward(const ZooForward& p, const float* logs, int64_t begin, int64_t end) {
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const Cut cut(p.shape);
    const int64_t places = count * cut.each, bias_row = places * LANES;
    Scratch<float> room((places * LANES + QUERIES) * dim + (COARSE ? QUERIES * bias_row : 0));
    Scratch<Piece> pieces(places);
    float *turned = room.at, *mixed = turned + places * LANES * dim, *bias = mixed + QUERIES * dim;
    const float to_base_2 = scale * LOG2E;
    Tile tile = {};
    int64_t there = -1;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count, x = item % count, last = least(length, (x + 1) * size);
        const float *k = p.k + head * length * dim, *v = p.v + head * length * dim;
        const uint8_t* mask = p.mask ? p.mask + head * length : nullptr;
        const int32_t *starts = p.pairs.row_start + head * ((COARSE ? length : count) + 1);
        const int32_t* keys = p.pairs.keys + head * pairs;
        if (head != there) turn_pieces(cut, count, k, dim, pieces.at, turned);
        there = head;
        int64_t number = 0;
        if (COARSE) number = cut.add(0, pieces.at, 0);
        for (int32_t pair = starts[x]; !COARSE && pair < starts[x + 1]; ++pair)
            number = cut.add(keys[pair], pieces.at, number);
        const float virtual_logit = p.prior_logit ? p.prior_logit[item] * LOG2E : LOWEST;
        // 1, where there is a virtual key, or its NaN.
        const bool odd = virtual_logit != virtual_logit;
        const float virtual_weight = virtual_logit == LOWEST ? 0.0f : odd ? virtual_logit : 1.0f;
        for (int64_t first = x * size; first < last; first += QUERIES) {
            const int64_t rows = least(QUERIES, last - first), token = head * length + first;
            if (COARSE) fill_bias(logs + head * length, starts, keys, first, rows, length, bias_row, bias);
            Softmax softmax;
            for (int64_t i = 0; i < QUERIES; ++i) {
                softmax.top[i] = virtual_logit;
                softmax.total[i] = Vec{virtual_weight};
            }
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t d = 0; d < dim; d += LANES)
                    store(mixed + i * dim + d, virtual_weight == 0.0f ? Vec{} : load(p.prior_value + item * dim + d));
            by_tiles(pieces.at, number, [&, dim = dim](const Piece* some, int64_t several, int64_t rest) {
                const int64_t width = several * LANES;
                const Ahead values(v, some, several, dim, false);
                const Ahead next(turned, rest ? some + several : some, rest ? rest : several, dim, true);
                alignas(64) float before[QUERIES];
                multiply<false>(rows, p.q + token * dim, dim, 1, Columns(turned, some, several, dim), LANES, dim,
                                Columns(tile.at), width, several, values);
                if (COARSE)
                    weigh_blocks(rows, width, some, to_base_2, bias, bias_row, tile.at);
                else
                    hide(rows, width, some, mask, tile.at);
                weigh(rows, width, COARSE ? 1.0f : to_base_2, tile.at, softmax, before);
                if (!COARSE && p.drop.threshold) drop_weights(p.drop, head, first, rows, width, some, tile.at);
                mix(rows, tile.at, width, some, several, v, dim, before, mixed, next);
            });
            alignas(64) float total[QUERIES];
            for (int64_t i = 0; i < QUERIES; i += LANES)
                store(total + i, fold(softmax.total + i, [](Vec y, Vec z) { return y + z; }));
            for (int64_t i = 0; i < rows; ++i) {
                const bool real = total[i] != 0.0f && (!mask || mask[first + i]);
                const float by = real ? 1.0f / total[i] : 0.0f;
                p.lse[token + i] = real ? LN2 * (softmax.top[i] + __builtin_log2f(total[i])) : LOWEST;
                for (int64_t d = 0; d < dim; d += LANES)
                    store(p.out + (token + i) * dim + d, real ? load(mixed + i * dim + d) * all(by) : Vec{});
            }
        }
    }
}

}  // namespace
