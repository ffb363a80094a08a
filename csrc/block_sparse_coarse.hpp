// The coarse part: means of blocks, their attention, and the logits by which blocks are chosen.
#pragma once

#include "block_sparse_backward.hpp"
#include "block_sparse_forward.hpp"

namespace {

INLINE int64_t real_tokens(const uint8_t* mask, int64_t first, int64_t rows) {
    int64_t real = 0;
    for (int64_t i = 0; i < rows; ++i) real += !mask || mask[first + i];
    return real;
}

// to (C vectors) = the sum of the real rows, times `by`.
template <int C>
INLINE void sum_rows(const float* from, const uint8_t* mask, int64_t rows, int64_t dim, float by, float* to) {
    Vec sum[C] = {};
    for (int64_t i = 0; i < rows; ++i)
        if (!mask || mask[i])
            for (int c = 0; c < C; ++c) sum[c] += load(from + i * dim + c * LANES);
    for (int c = 0; c < C; ++c) store(to + c * LANES, sum[c] * by);
}

static void coarse_means(const ZooCoarse& p, int64_t begin, int64_t end) {
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const float* tokens[] = {p.q, p.k, p.v};
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count, x = item % count, first = head * length + x * size;
        const int64_t rows = least(length - x * size, size), real = real_tokens(p.mask, first, rows);
        const uint8_t* mask = p.mask ? p.mask + first : nullptr;
        const float by = real ? 1.0f / real : 0.0f;
        p.logs[item] = real ? __builtin_log2f(real) : LOWEST;
        for (int which = 0; which < 3; ++which) {
            const float* from = tokens[which] + first * dim;
            float* to = p.means + (which * heads * count + item) * dim;
            int64_t d = 0;
            for (; d + 2 * LANES <= dim; d += 2 * LANES) sum_rows<2>(from + d, mask, rows, dim, by, to + d);
            for (; d < dim; d += LANES) sum_rows<1>(from + d, mask, rows, dim, by, to + d);
        }
    }
}

// The shape of the coarse part: its tokens are the blocks, all of them in one block.
static ZooShape coarse_shape(const ZooShape& s) {
    return {s.heads, s.count, s.dim, s.count, 1, s.pairs, s.scale};
}

static void coarse_forward(const ZooCoarse& p, int64_t begin, int64_t end) {
    const int64_t numbers = p.shape.heads * p.shape.count * p.shape.dim;
    const ZooForward coarse = {coarse_shape(p.shape), p.pairs, p.means, p.means + numbers, p.means + 2 * numbers,
                               nullptr, nullptr, nullptr, p.prior_value, p.prior_logit};
    forward<true>(coarse, p.logs, begin, end);
}

static void coarse_backward(const ZooCoarse& p, int64_t begin, int64_t end) {
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const int64_t numbers = heads * count * dim;
    const float *q = p.means, *k = q + numbers, *v = k + numbers;
    float *d_q = p.d_means, *d_k = d_q + numbers, *d_v = d_k + numbers;
    const ZooBackward coarse = {coarse_shape(p.shape), p.pairs, q, k, v, p.prior_value, p.prior_logit, p.d_prior_value,
                                p.d_prior_logit, nullptr, nullptr, nullptr, p.shift, p.total, d_q, d_k, d_v,
                                nullptr, nullptr};
    shift(coarse, begin * count, end * count);
    backward_rows<true, true>(coarse, p.logs, begin, end);
    float* tokens[] = {p.d_q, p.d_k, p.d_v};
    for (int64_t item = begin * count; item < end * count; ++item) {
        const int64_t head = item / count, x = item % count, first = head * length + x * size;
        const int64_t rows = least(length - x * size, size), real = real_tokens(p.mask, first, rows);
        if (!real) continue;
        for (int which = 0; which < 3; ++which) {
            float* d_mean = p.d_means + (which * heads * count + item) * dim;
            for (int64_t d = 0; d < dim; d += LANES) store(d_mean + d, load(d_mean + d) * (1.0f / real));
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t d = 0; (!p.mask || p.mask[first + i]) && d < dim; d += LANES) {
                    float* at = tokens[which] + (first + i) * dim + d;
                    store(at, load(at) + load(d_mean + d));
                }
        }
    }
}

typedef double Twice __attribute__((vector_size(4 * LANES)));
typedef double Apart __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
typedef float Half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));

INLINE Twice twice(const double* from) { return *reinterpret_cast<const Apart*>(from); }

// sums (dim) of the real rows, in float64.
static void sum_exactly(const float* from, const uint8_t* mask, int64_t rows, int64_t dim, double* sums) {
    constexpr int EACH = LANES / 2;
    for (int64_t d = 0; d < dim; d += LANES) {
        Twice sum[2] = {};
        for (int64_t i = 0; i < rows; ++i)
            for (int c = 0; c < 2 && (!mask || mask[i]); ++c)
                sum[c] += __builtin_convertvector(*reinterpret_cast<const Half*>(from + i * dim + d + c * EACH), Twice);
        for (int c = 0; c < 2; ++c) *reinterpret_cast<Apart*>(sums + d + c * EACH) = sum[c];
    }
}

// R rows of logits, LANES of each: to = query (R, dim) key (dim, wide) / root.
template <int R>
INLINE void some_logits(const double* query, const double* key, int64_t dim, int64_t wide, double root, int64_t some,
                        int64_t count, float* to) {
    Twice sum[R][2] = {};
    for (int64_t d = 0; d < dim; ++d)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < 2; ++c) sum[r][c] += query[r * dim + d] * twice(key + d * wide + c * (LANES / 2));
    for (int r = 0; r < R; ++r) {
        alignas(64) float logit[LANES];
        for (int l = 0; l < LANES; ++l) logit[l] = static_cast<float>(sum[r][l / (LANES / 2)][l % (LANES / 2)] / root);
        __builtin_memcpy(to + r * count, logit, some * sizeof(float));
    }
}

static void block_logits(const ZooCoarse& p, float* logits, int64_t begin, int64_t end) {
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const int64_t wide = (count + LANES - 1) / LANES * LANES;
    Scratch<double> room((count + wide + 1) * dim);
    double *query = room.at, *key = query + count * dim, *sums = key + wide * dim;
    __builtin_memset(key, 0, wide * dim * sizeof(double));
    for (int64_t head = begin; head < end; ++head) {
        for (int64_t x = 0; x < count; ++x) {
            const int64_t first = head * length + x * size, rows = least(length - x * size, size);
            const int64_t real = real_tokens(p.mask, first, rows);
            const uint8_t* mask = p.mask ? p.mask + first : nullptr;
            sum_exactly(p.q + first * dim, mask, rows, dim, query + x * dim);
            sum_exactly(p.k + first * dim, mask, rows, dim, sums);
            for (int64_t d = 0; d < dim; ++d) {
                query[x * dim + d] /= real ? real : 1;
                key[d * wide + x] = sums[d] / (real ? real : 1);
            }
        }
        for (int64_t y = 0; y < count; y += LANES) {
            float* to = logits + head * count * count + y;
            const int64_t some = least(LANES, count - y);
            int64_t x = 0;
            for (; x + 4 <= count; x += 4)
                some_logits<4>(query + x * dim, key + y, dim, wide, p.root, some, count, to + x * count);
            for (; x < count; ++x)
                some_logits<1>(query + x * dim, key + y, dim, wide, p.root, some, count, to + x * count);
        }
    }
}

}  // namespace
