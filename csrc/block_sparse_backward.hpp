// Backward: the weights again, from lse, and the products with them; by rows with or without columns, or by columns.
#pragma once

#include "block_sparse_drop.hpp"

namespace {

// shift = d_out.out - d_lse and total = lse in base 2; +inf where a query has no key, so that its weights are 0.
static void shift(const ZooBackward& p, int64_t begin, int64_t end) {
    const int64_t dim = p.shape.dim;
    dots(end - begin, dim, p.out + begin * dim, dim, p.d_out + begin * dim, dim, p.shift + begin);
    for (int64_t token = begin; token < end; ++token) {
        const bool alive = p.lse[token] != LOWEST;
        p.shift[token] = alive ? p.shift[token] - p.d_lse[token] : 0.0f;
        p.total[token] = alive ? p.lse[token] * LOG2E : -LOWEST;
    }
}

// Turns two tiles, the products of q and k and those of d_out and v, into weights and gradients of the logits.
static void weigh_again(int64_t rows, int64_t width, float factor, float scale, const float* totals,
                        const float* shifts, float* weights, float* d_logits) {
    for (int64_t i = 0; i < rows; ++i) {
        const Vec less = all(-totals[i]), shift = all(shifts[i]);
        for (int64_t at = i * width; at < (i + 1) * width; at += LANES) {
            const Vec weight = exp2(fused(load(weights + at), all(factor), less));
            store(weights + at, weight);
            store(d_logits + at, (load(d_logits + at) - shift) * (weight * all(scale)));
        }
    }
}

// Keys and values in turned pieces, and their gradients, which may be null.
struct Turned {
    float *k, *v, *d_k, *d_v;
};

// Both tiles of `rows` queries from `token` on and `number` pieces; then d_k and d_v of the pieces. `ahead` is what
// follows.
template <bool COARSE>
static void weigh_tile(const ZooBackward& p, int64_t token, int64_t rows, const Piece* pieces, int64_t number,
                       const uint8_t* mask, const float* bias, int64_t bias_row, const Turned& turned,
                       const Ahead& ahead, Tile* tiles) {
    const int64_t dim = p.shape.dim, width = number * LANES;
    const float scale = p.shape.scale, to_base_2 = scale * LOG2E;
    const float *q = p.q + token * dim, *d_out = p.d_out + token * dim;
    const Columns weights(tiles[0].at), d_logits(tiles[1].at);
    const auto of = [&](float* from) { return Columns(from, pieces, number, dim); };
    const auto next = [&](float* from) { return Ahead(from, pieces, number, dim, true); };
    multiply<false>(rows, q, dim, 1, of(turned.k), LANES, dim, weights, width, number, next(turned.v));
    multiply<false>(rows, d_out, dim, 1, of(turned.v), LANES, dim, d_logits, width, number,
                    turned.d_v ? next(turned.d_v) : ahead);
    if (COARSE)
        weigh_blocks(rows, width, pieces, to_base_2, bias, bias_row, tiles[0].at);
    else
        hide(rows, width, pieces, mask, tiles[0].at);
    if (!COARSE && p.drop.threshold)
        weigh_dropped(p.drop, token / p.shape.length, token % p.shape.length, rows, width, pieces, to_base_2, scale,
                      p.total + token, p.shift + token, tiles[0].at, tiles[1].at);
    else
        weigh_again(rows, width, COARSE ? 1.0f : to_base_2, scale, p.total + token, p.shift + token, tiles[0].at,
                    tiles[1].at);
    if (!turned.d_k) return;
    multiply<true>(dim, d_out, 1, dim, weights, width, rows, of(turned.d_v), LANES, number, next(turned.d_k));
    multiply<true>(dim, q, 1, dim, d_logits, width, rows, of(turned.d_k), LANES, number, ahead);
}

// d_k and d_v of `number` pieces of a head, as they are returned.
static void write_columns(const ZooBackward& p, int64_t head, const Turned& turned, const Piece* pieces,
                          int64_t number) {
    const int64_t dim = p.shape.dim;
    for (int64_t i = 0; i < number; ++i) {
        const int64_t from = pieces[i].place * dim * LANES, to = (head * p.shape.length + pieces[i].first) * dim;
        turn_out(turned.d_k + from, pieces[i].keys, dim, p.d_k + to);
        turn_out(turned.d_v + from, pieces[i].keys, dim, p.d_v + to);
    }
}

// The gradients of the virtual key of query block `item`, from its queries `token` on.
static void add_virtual(const ZooBackward& p, int64_t item, int64_t token, int64_t rows) {
    const int64_t dim = p.shape.dim;
    const float logit = p.prior_logit[item] * LOG2E, *d_out = p.d_out + token * dim;
    if (logit == LOWEST) return;
    alignas(64) float gain[QUERIES], share[QUERIES];
    dots(rows, dim, d_out, dim, p.prior_value + item * dim, 0, gain);
    for (int64_t i = 0; i < QUERIES; ++i) share[i] = logit - (i < rows ? p.total[token + i] : -LOWEST);
    for (int64_t i = 0; i < QUERIES; i += LANES) store(share + i, exp2(load(share + i)));
    float sum = 0.0f;
    for (int64_t i = 0; i < rows; ++i) sum += (gain[i] - p.shift[token + i]) * share[i];
    p.d_prior_logit[item] += sum;
    for (int64_t d = 0; d < dim; d += LANES) {
        Vec value = load(p.d_prior_value + item * dim + d);
        for (int64_t i = 0; i < rows; ++i) value = fused(all(share[i]), load(d_out + i * dim + d), value);
        store(p.d_prior_value + item * dim + d, value);
    }
}

// Rows: d_q and the virtual keys. With COLUMNS, for whole heads, d_k and d_v too. COARSE is as in `forward`.
template <bool COLUMNS, bool COARSE>
static void backward_rows(const ZooBackward& p, const float* logs, int64_t begin, int64_t end) {
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const Cut cut(p.shape);
    const int64_t places = count * cut.each, numbers = places * LANES * dim, bias_row = places * LANES;
    Scratch<float> room((COLUMNS ? 4 : 2) * numbers + (COARSE ? QUERIES * bias_row : 0));
    Scratch<Piece> pieces(places);
    float* bias = room.at + (COLUMNS ? 4 : 2) * numbers;
    const Turned turned = {room.at, room.at + numbers, COLUMNS ? room.at + 2 * numbers : nullptr,
                           COLUMNS ? room.at + 3 * numbers : nullptr};
    Tile tiles[2] = {};
    float ones[QUERIES];
    for (float& one : ones) one = 1.0f;
    int64_t there = -1;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count, x = item % count, last = least(length, (x + 1) * size);
        const float* k = p.k + head * length * dim;
        const uint8_t* mask = p.mask ? p.mask + head * length : nullptr;
        const int32_t *starts = p.pairs.row_start + head * ((COARSE ? length : count) + 1);
        const int32_t* keys = p.pairs.keys + head * pairs;
        if (head != there) {
            turn_pieces(cut, count, k, dim, pieces.at, turned.k);
            turn_pieces(cut, count, p.v + head * length * dim, dim, pieces.at, turned.v);
            if (COLUMNS) __builtin_memset(turned.d_k, 0, 2 * numbers * sizeof(float));
        }
        there = head;
        int64_t number = 0;
        if (COARSE) number = cut.add(0, pieces.at, 0);
        for (int32_t pair = starts[x]; !COARSE && pair < starts[x + 1]; ++pair)
            number = cut.add(keys[pair], pieces.at, number);
        if (p.prior_logit) {
            p.d_prior_logit[item] = 0.0f;
            __builtin_memset(p.d_prior_value + item * dim, 0, dim * sizeof(float));
        }
        for (int64_t first = x * size; first < last; first += QUERIES) {
            const int64_t rows = least(QUERIES, last - first), token = head * length + first;
            float* d_q = p.d_q + token * dim;
            if (COARSE) fill_bias(logs + head * length, starts, keys, first, rows, length, bias_row, bias);
            __builtin_memset(d_q, 0, rows * dim * sizeof(float));
            by_tiles(pieces.at, number, [&, dim = dim](const Piece* some, int64_t several, int64_t rest) {
                const Ahead next(turned.k, rest ? some + several : some, rest ? rest : several, dim, true);
                weigh_tile<COARSE>(p, token, rows, some, several, mask, bias, bias_row, turned,
                                   Ahead(k, some, several, dim, false), tiles);
                mix(rows, tiles[1].at, several * LANES, some, several, k, dim, ones, d_q, next);
            });
            if (p.prior_logit) add_virtual(p, item, token, rows);
        }
        if (!COLUMNS || x + 1 < count) continue;
        for (int64_t block = 0; block < count; ++block)
            write_columns(p, head, turned, pieces.at, cut.add(block, pieces.at, 0));
    }
}

// Columns: the keys of one block at a time. Each number is what the rows would add up, in the same order.
static void backward_columns(const ZooBackward& p, int64_t begin, int64_t end) {
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const Cut cut(p.shape);
    const int64_t numbers = cut.each * LANES * dim;
    Scratch<float> room(4 * numbers);
    Scratch<Piece> pieces(cut.each);
    const Turned turned = {room.at, room.at + numbers, room.at + 2 * numbers, room.at + 3 * numbers};
    Tile tiles[2] = {};
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count, y = item % count;
        const uint8_t* mask = p.mask ? p.mask + head * length : nullptr;
        const int32_t *starts = p.pairs.column_start + head * (count + 1), *queries = p.pairs.queries + head * pairs;
        const int64_t number = cut.add(y, pieces.at, 0);
        for (int64_t i = 0; i < number; ++i) {
            Piece& piece = pieces.at[i];
            piece.place = i;
            const int64_t from = (head * length + piece.first) * dim, to = i * dim * LANES;
            turn_in(p.k + from, piece.keys, dim, turned.k + to);
            turn_in(p.v + from, piece.keys, dim, turned.v + to);
        }
        __builtin_memset(turned.d_k, 0, 2 * numbers * sizeof(float));
        for (int32_t pair = starts[y]; pair < starts[y + 1]; ++pair) {
            const int64_t over = least(length, (queries[pair] + 1) * size);
            for (int64_t first = queries[pair] * size; first < over; first += QUERIES)
                by_tiles(pieces.at, number, [&, token = head * length + first, dim = dim](const Piece* some,
                                                                                          int64_t several, int64_t) {
                    weigh_tile<false>(p, token, least(QUERIES, over - first), some, several, mask, nullptr, 0, turned,
                                      Ahead(turned.k, some, several, dim, true), tiles);
                });
        }
        write_columns(p, head, turned, pieces.at, number);
    }
}

}  // namespace
