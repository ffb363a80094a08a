// Block-sparse attention for one instruction set: a source file defines ISA and LANES and includes this one, after a
// pragma that allows the instructions. Everything stays inside that file but the table of entry points `ISA`.
//
// Everything is one product, C(r, lanes) += sum over s of A(r, s) B(s, lanes), with A read one number at a time in
// either direction and B a row of W lanes. A query block is held transposed, its queries along the lanes, so that
// keys and values are read as they stand and no sum runs across lanes.
#pragma once

#include "block_sparse_levels.hpp"

#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE [[gnu::always_inline]] static inline

namespace {

// Aligned floats for one thread.
struct Scratch {
    float* at;
    explicit Scratch(int64_t numbers)
        : at(static_cast<float*>(std::aligned_alloc(64, (numbers * sizeof(float) + 63) / 64 * 64))) {
        if (!at) std::abort();
    }
    ~Scratch() { std::free(at); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));

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
    // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold.
    const Vec shifter = all(12582912.0f);
    const Vec moved = x + shifter;
    const Vec whole = moved - shifter;
    const Vec part = x - whole;
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

INLINE float sum_of(Vec x) {
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += x[i];
    return total;
}

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
INLINE void interleave(const Vec* from, Vec* to) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; ++i) {
        to[2 * i] = __builtin_shufflevector(from[i], from[i + LANES / 2], LOW);
        to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + LANES / 2], HIGH);
    }
}
#undef LOW
#undef HIGH
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

// to (dim, W) = from (rows, dim)^T, with zeros where there are fewer than W rows.
template <int W>
static void turn_in(const float* from, int64_t rows, int64_t dim, float* to) {
    for (int64_t i = 0; i < W; i += LANES)
        for (int64_t d = 0; d < dim; d += LANES) {
            Vec x[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r) x[r] = i + r < rows ? load(from + (i + r) * dim + d) : Vec{};
            turn(x);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r) store(to + (d + r) * W + i, x[r]);
        }
}

// to (rows, dim) = from (dim, W)^T, its column i times by[i].
template <int W>
static void turn_out(const float* from, const float* by, int64_t rows, int64_t dim, float* to) {
    for (int64_t i = 0; i < rows; i += LANES)
        for (int64_t d = 0; d < dim; d += LANES) {
            const Vec factor = load(by + i);
            Vec x[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r) x[r] = load(from + (d + r) * W + i) * factor;
            turn(x);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r)
                if (i + r < rows) store(to + (i + r) * dim + d, x[r]);
        }
}

// R rows of the product, V vectors wide; `end(r, c, x)` takes each vector of it.
template <int R, int V, class End>
INLINE void product(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, int64_t steps,
                    End end) {
    Vec sum[R][V] = {};
    for (int64_t s = 0; s < steps; ++s, a += a_step, b += b_step) {
        Vec row[V];
#pragma GCC unroll 4
        for (int c = 0; c < V; ++c) row[c] = load(b + c * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vec x = all(a[r * a_row]);
#pragma GCC unroll 4
            for (int c = 0; c < V; ++c) sum[r][c] = fused(x, row[c], sum[r][c]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < V; ++c) end(r, c, sum[r][c]);
}

// As many rows at a time as the registers hold.
constexpr int ROWS = LANES == 16 ? 8 : 4;

// Each tile is summed on its own and then added to what is there: shorter sums are rounded less.
template <int V, class End>
INLINE void multiply(int64_t rows, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step,
                     int64_t steps, End end) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS)
        product<ROWS, V>(a + r * a_row, a_row, a_step, b, b_step, steps,
                         [&](int i, int c, Vec x) { end(r + i, c, x); });
    for (; r < rows; ++r)
        product<1, V>(a + r * a_row, a_row, a_step, b, b_step, steps, [&](int, int c, Vec x) { end(r, c, x); });
}

INLINE void add_to(float* at, Vec x) { store(at, load(at) + x); }

// A block of `numbers` floats that is wanted soon.
INLINE void fetch(const float* from, int64_t numbers) {
    for (int64_t i = 0; i < numbers; i += 16) __builtin_prefetch(from + i, 0, 3);
}

constexpr float LN2 = 0.693147180559945309f, LOG2E = 1.44269504088896341f;
constexpr float LOWEST = -__builtin_inff();

// The keys (or queries) whose weights are held at a time.
constexpr int64_t PART = 64;

struct alignas(64) Tile {
    float at[PART * 32];
};

// 0 for a real key and -inf for a padded one.
static void fill_keep(const uint8_t* mask, int64_t length, float* keep) {
    for (int64_t i = 0; i < length; ++i) keep[i] = !mask || mask[i] ? 0.0f : LOWEST;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// What is added to the logits of the coarse part, (K, W), for W query blocks from `first`.
template <int W>
static void fill_bias(const float* logs, const int32_t* row_start, const int32_t* keys, int64_t first, int64_t rows,
                      int64_t count, float* bias) {
    for (int64_t j = 0; j < count; ++j)
        for (int64_t i = 0; i < W; i += LANES) store(bias + j * W + i, all(logs[j]));
    for (int64_t i = 0; i < rows; ++i)
        for (int32_t pair = row_start[first + i]; pair < row_start[first + i + 1]; ++pair)
            bias[keys[pair] * W + i] = LOWEST;
}

// With COARSE, `logs` takes the place of the mask, there is one block, and `pairs` lists what is left out of it.
template <int V, bool COARSE>
static void forward(const ZooForward& p, const float* logs, int64_t begin, int64_t end) {
    constexpr int W = V * LANES;
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    Scratch room(2 * dim * W + length * (COARSE ? W : 1));
    float *query = room.at, *mixed = query + dim * W, *keep = mixed + dim * W;
    Tile tile;
    const Vec to_base_2 = all(scale * LOG2E);
    int64_t kept = -1;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count, x = item % count;
        if (!COARSE && head != kept) fill_keep(p.mask ? p.mask + head * length : nullptr, length, keep);
        kept = head;
        const int64_t last = least(length, (x + 1) * size);
        const float *k = p.k + head * length * dim, *v = p.v + head * length * dim;
        const int32_t *starts = p.pairs.row_start + head * ((COARSE ? length : count) + 1);
        const int32_t* keys = p.pairs.keys + head * pairs;
        const int32_t from = COARSE ? 0 : starts[x], to = COARSE ? 1 : starts[x + 1];
        const float virtual_logit = p.prior_logit ? p.prior_logit[item] * LOG2E : LOWEST;
        for (int64_t first = x * size; first < last; first += W) {
            const int64_t rows = least(W, last - first), token = head * length + first;
            if (COARSE) fill_bias<W>(logs + head * length, starts, keys, first, rows, length, keep);
            turn_in<W>(p.q + token * dim, rows, dim, query);
            Vec top[V], total[V];
            for (int c = 0; c < V; ++c) {
                top[c] = all(virtual_logit);
                total[c] = all(virtual_logit == LOWEST ? 0.0f : virtual_logit == virtual_logit ? 1.0f : virtual_logit);
            }
            for (int64_t d = 0; d < dim; ++d) {
                const float value = virtual_logit == LOWEST ? 0.0f : p.prior_value[item * dim + d];
                for (int c = 0; c < V; ++c) store(mixed + d * W + c * LANES, all(value));
            }
            for (int32_t pair = from; pair < to; ++pair) {
                const int64_t block = COARSE ? 0 : keys[pair], over = least(length, (block + 1) * size);
                if (!COARSE && pair + 1 < to) {
                    const int64_t next = keys[pair + 1] * size, rows = least(size, length - next);
                    fetch(k + next * dim, rows * dim);
                    fetch(v + next * dim, rows * dim);
                }
                for (int64_t key = block * size; key < over; key += PART) {
                    const int64_t part = least(PART, over - key);
                    Vec above[V];
                    for (int c = 0; c < V; ++c) above[c] = top[c];
                    multiply<V>(
                        part, k + key * dim, dim, 1, query, W, dim, [&](int64_t j, int c, Vec sum) {
                            const Vec bias = COARSE ? load(keep + (key + j) * W + c * LANES) : all(keep[key + j]);
                            const Vec logit = fused(sum, to_base_2, bias);
                            top[c] = larger(top[c], logit);
                            store(tile.at + j * W + c * LANES, logit);
                        });
                    Vec base[V], before[V];
                    for (int c = 0; c < V; ++c) {
                        base[c] = top[c] == all(LOWEST) ? Vec{} : top[c];
                        before[c] = exp2(above[c] - base[c]);
                    }
                    Vec added[V] = {};
                    for (int64_t j = 0; j < part; ++j)
                        for (int c = 0; c < V; ++c) {
                            const Vec weight = exp2(load(tile.at + j * W + c * LANES) - base[c]);
                            added[c] += weight;
                            store(tile.at + j * W + c * LANES, weight);
                        }
                    for (int c = 0; c < V; ++c) total[c] = fused(total[c], before[c], added[c]);
                    multiply<V>(dim, v + key * dim, 1, dim, tile.at, W, part, [&](int64_t d, int c, Vec sum) {
                        float* at = mixed + d * W + c * LANES;
                        store(at, fused(load(at), before[c], sum));
                    });
                }
            }
            alignas(64) float by[W], logs[W];
            for (int c = 0; c < V; ++c) {
                store(by + c * LANES, total[c]);
                store(logs + c * LANES, top[c]);
            }
            for (int64_t i = 0; i < W; ++i) {
                const bool real = i < rows && (!p.mask || p.mask[token + i]);
                if (i < rows) p.lse[token + i] = real && by[i] != 0.0f ? LN2 * (logs[i] + __builtin_log2f(by[i])) : LOWEST;
                by[i] = real && by[i] != 0.0f ? 1.0f / by[i] : 0.0f;
            }
            turn_out<W>(mixed, by, rows, dim, p.out + token * dim);
            if (p.mask)
                for (int64_t i = 0; i < rows; ++i)
                    if (!p.mask[token + i]) __builtin_memset(p.out + (token + i) * dim, 0, dim * sizeof(float));
        }
    }
}

// shift = d_out.out - d_lse and total = lse in base 2; +inf where a query has no key, so that its weights are 0.
static void shift(const ZooBackward& p, int64_t begin, int64_t end) {
    const int64_t dim = p.shape.dim;
    for (int64_t token = begin; token < end; ++token) {
        const bool alive = p.lse[token] > LOWEST;
        Vec sum = {};
        for (int64_t d = 0; d < dim; d += LANES)
            sum = fused(load(p.out + token * dim + d), load(p.d_out + token * dim + d), sum);
        p.shift[token] = alive ? sum_of(sum) - p.d_lse[token] : 0.0f;
        p.total[token] = alive ? p.lse[token] * LOG2E : -LOWEST;
    }
}

// Rows: the queries of query block x along the lanes. With columns, d_k and d_v of the head are added to as well.
// COARSE is as in `forward`.
template <int V, bool COLUMNS, bool COARSE>
static void backward_row(const ZooBackward& p, const float* logs, int64_t item, float* keep, float* room, Tile* tiles) {
    constexpr int W = V * LANES;
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const int64_t head = item / count, x = item % count;
    float *query = room, *upstream = query + dim * W, *d_query = upstream + dim * W;
    float *weights = tiles[0].at, *d_logits = tiles[1].at;
    const Vec to_base_2 = all(scale * LOG2E), scales = all(scale);
    const int64_t last = least(length, (x + 1) * size);
    const float *k = p.k + head * length * dim, *v = p.v + head * length * dim;
    float *d_k = p.d_k + head * length * dim, *d_v = p.d_v + head * length * dim;
    const int32_t *starts = p.pairs.row_start + head * ((COARSE ? length : count) + 1);
    const int32_t* keys = p.pairs.keys + head * pairs;
    const int32_t from = COARSE ? 0 : starts[x], to = COARSE ? 1 : starts[x + 1];
    alignas(64) float ones[W];
    for (float& one : ones) one = 1.0f;
    float d_virtual = 0.0f;
    const float virtual_logit = p.prior_logit ? p.prior_logit[item] * LOG2E : LOWEST;
    float* d_value = p.prior_logit ? p.d_prior_value + item * dim : nullptr;
    if (d_value) __builtin_memset(d_value, 0, dim * sizeof(float));

    for (int64_t first = x * size; first < last; first += W) {
        const int64_t rows = least(W, last - first), token = head * length + first;
        const float *q = p.q + token * dim, *d_out = p.d_out + token * dim;
        if (COARSE) fill_bias<W>(logs + head * length, starts, keys, first, rows, length, keep);
        turn_in<W>(q, rows, dim, query);
        turn_in<W>(d_out, rows, dim, upstream);
        __builtin_memset(d_query, 0, dim * W * sizeof(float));
        alignas(64) float ends[2][W];
        for (int64_t i = 0; i < W; ++i) {
            ends[0][i] = i < rows ? p.shift[token + i] : 0.0f;
            ends[1][i] = i < rows ? p.total[token + i] : -LOWEST;
        }
        Vec shifts[V], totals[V];
        for (int c = 0; c < V; ++c) shifts[c] = load(ends[0] + c * LANES), totals[c] = load(ends[1] + c * LANES);

        for (int32_t pair = from; pair < to; ++pair) {
            const int64_t block = COARSE ? 0 : keys[pair], over = least(length, (block + 1) * size);
            if (!COARSE && pair + 1 < to) {
                const int64_t next = keys[pair + 1] * size, rows = least(size, length - next);
                fetch(k + next * dim, rows * dim);
                fetch(v + next * dim, rows * dim);
                if (COLUMNS) {
                    fetch(d_k + next * dim, rows * dim);
                    fetch(d_v + next * dim, rows * dim);
                }
            }
            for (int64_t key = block * size; key < over; key += PART) {
                const int64_t part = least(PART, over - key);
                multiply<V>(
                    part, k + key * dim, dim, 1, query, W, dim, [&](int64_t j, int c, Vec sum) {
                        const Vec bias = COARSE ? load(keep + (key + j) * W + c * LANES) : all(keep[key + j]);
                        store(weights + j * W + c * LANES, exp2(fused(sum, to_base_2, bias - totals[c])));
                    });
                multiply<V>(
                    part, v + key * dim, dim, 1, upstream, W, dim, [&](int64_t j, int c, Vec sum) {
                        const Vec weight = load(weights + j * W + c * LANES);
                        store(d_logits + j * W + c * LANES, (sum - shifts[c]) * (weight * scales));
                    });
                multiply<V>(
                    dim, k + key * dim, 1, dim, d_logits, W, part,
                    [&](int64_t d, int c, Vec sum) { add_to(d_query + d * W + c * LANES, sum); });
                if constexpr (COLUMNS) {
                    const auto add = [&](float* into, const float* tile, const float* with) {
                        int64_t d = 0;
                        for (; d + 2 * LANES <= dim; d += 2 * LANES)
                            multiply<2>(
                                part, tile, W, 1, with + d, dim, rows,
                                [&](int64_t j, int c, Vec sum) { add_to(into + j * dim + d + c * LANES, sum); });
                        for (; d < dim; d += LANES)
                            multiply<1>(
                                part, tile, W, 1, with + d, dim, rows,
                                [&](int64_t j, int, Vec sum) { add_to(into + j * dim + d, sum); });
                    };
                    add(d_v + key * dim, weights, d_out);
                    add(d_k + key * dim, d_logits, q);
                }
            }
        }
        turn_out<W>(d_query, ones, rows, dim, p.d_q + token * dim);

        if (virtual_logit == LOWEST) continue;
        const float* value = p.prior_value + item * dim;
        alignas(64) float share[W];
        for (int c = 0; c < V; ++c) {
            const Vec weight = exp2(all(virtual_logit) - totals[c]);
            Vec gain = {};
            for (int64_t d = 0; d < dim; ++d)
                gain = fused(all(value[d]), load(upstream + d * W + c * LANES), gain);
            d_virtual += sum_of((gain - shifts[c]) * weight);
            store(share + c * LANES, weight);
        }
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t d = 0; d < dim; d += LANES)
                store(d_value + d, fused(all(share[i]), load(d_out + i * dim + d), load(d_value + d)));
    }
    if (p.prior_logit) p.d_prior_logit[item] = d_virtual;
}

template <int V, bool COLUMNS, bool COARSE>
static void backward_rows(const ZooBackward& p, const float* logs, int64_t begin, int64_t end) {
    const int64_t length = p.shape.length, count = p.shape.count;
    Scratch room(3 * p.shape.dim * V * LANES + length * (COARSE ? V * LANES : 1));
    float* keep = room.at + 3 * p.shape.dim * V * LANES;
    Tile tiles[2];
    int64_t kept = -1;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count;
        if (!COARSE && head != kept) fill_keep(p.mask ? p.mask + head * length : nullptr, length, keep);
        kept = head;
        backward_row<V, COLUMNS, COARSE>(p, logs, item, keep, room.at, tiles);
    }
}

// Columns: the keys of key block y along the lanes. Each number is what the rows would add up, in the same order.
template <int V>
static void backward_columns(const ZooBackward& p, int64_t begin, int64_t end) {
    constexpr int W = V * LANES;
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    Scratch room(4 * dim * W + length);
    float *turned_k = room.at, *turned_v = turned_k + dim * W, *d_k = turned_v + dim * W, *d_v = d_k + dim * W;
    float* keep = d_v + dim * W;
    Tile tiles[2];
    float *weights = tiles[0].at, *d_logits = tiles[1].at;
    const Vec to_base_2 = all(scale * LOG2E), scales = all(scale);
    alignas(64) float ones[W];
    for (float& one : ones) one = 1.0f;
    int64_t kept = -1;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count, y = item % count;
        if (head != kept) fill_keep(p.mask ? p.mask + head * length : nullptr, length, keep);
        kept = head;
        const int64_t last = least(length, (y + 1) * size);
        const float *q = p.q + head * length * dim, *d_out = p.d_out + head * length * dim;
        const float *shifts = p.shift + head * length, *totals = p.total + head * length;
        const int32_t *starts = p.pairs.column_start + head * (count + 1), *queries = p.pairs.queries + head * pairs;
        for (int64_t first = y * size; first < last; first += W) {
            const int64_t rows = least(W, last - first), token = head * length + first;
            turn_in<W>(p.k + token * dim, rows, dim, turned_k);
            turn_in<W>(p.v + token * dim, rows, dim, turned_v);
            __builtin_memset(d_k, 0, 2 * dim * W * sizeof(float));
            alignas(64) float ends[W];
            for (int64_t j = 0; j < W; ++j) ends[j] = j < rows ? keep[first + j] : LOWEST;
            Vec kept_keys[V];
            for (int c = 0; c < V; ++c) kept_keys[c] = load(ends + c * LANES);
            for (int32_t pair = starts[y]; pair < starts[y + 1]; ++pair) {
                const int64_t over = least(length, (queries[pair] + 1) * size);
                // As many at a time as the rows have along their lanes, so that the sums are the same.
                for (int64_t query = queries[pair] * size; query < over; query += W) {
                    const int64_t part = least(W, over - query);
                    multiply<V>(
                        part, q + query * dim, dim, 1, turned_k, W, dim, [&](int64_t i, int c, Vec sum) {
                            const Vec base = kept_keys[c] - all(totals[query + i]);
                            store(weights + i * W + c * LANES, exp2(fused(sum, to_base_2, base)));
                        });
                    multiply<V>(
                        part, d_out + query * dim, dim, 1, turned_v, W, dim, [&](int64_t i, int c, Vec sum) {
                            const Vec weight = load(weights + i * W + c * LANES);
                            store(d_logits + i * W + c * LANES, (sum - all(shifts[query + i])) * (weight * scales));
                        });
                    const auto add = [&](float* into, const float* from, const float* tile) {
                        multiply<V>(
                            dim, from, 1, dim, tile, W, part,
                            [&](int64_t d, int c, Vec sum) { add_to(into + d * W + c * LANES, sum); });
                    };
                    add(d_v, d_out + query * dim, weights);
                    add(d_k, q + query * dim, d_logits);
                }
            }
            turn_out<W>(d_k, ones, rows, dim, p.d_k + token * dim);
            turn_out<W>(d_v, ones, rows, dim, p.d_v + token * dim);
        }
    }
}

static void powers(const float* x, float* out, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) {
        alignas(64) float some[LANES] = {};
        for (int64_t j = 0; j < LANES && i + j < size; ++j) some[j] = x[i + j];
        store(some, exp2(load(some)));
        for (int64_t j = 0; j < LANES && i + j < size; ++j) out[i + j] = some[j];
    }
}

// One vector of lanes where it holds a whole block, two otherwise.
INLINE bool narrow(const ZooShape& shape) { return least(shape.block_size, shape.length) <= LANES; }

static void run_forward(const ZooForward& p, int64_t begin, int64_t end) {
    narrow(p.shape) ? forward<1, false>(p, nullptr, begin, end) : forward<2, false>(p, nullptr, begin, end);
}

static void run_rows(const ZooBackward& p, int64_t begin, int64_t end) {
    narrow(p.shape) ? backward_rows<1, false, false>(p, nullptr, begin, end)
                    : backward_rows<2, false, false>(p, nullptr, begin, end);
}

static void run_columns(const ZooBackward& p, int64_t begin, int64_t end) {
    narrow(p.shape) ? backward_columns<1>(p, begin, end) : backward_columns<2>(p, begin, end);
}

static void clear_columns(const ZooBackward& p, int64_t begin, int64_t end) {
    const int64_t numbers = p.shape.length * p.shape.dim;
    __builtin_memset(p.d_k + begin * numbers, 0, (end - begin) * numbers * sizeof(float));
    __builtin_memset(p.d_v + begin * numbers, 0, (end - begin) * numbers * sizeof(float));
}

static void run_heads(const ZooBackward& p, int64_t begin, int64_t end) {
    const int64_t count = p.shape.count;
    clear_columns(p, begin, end);
    narrow(p.shape) ? backward_rows<1, true, false>(p, nullptr, begin * count, end * count)
                    : backward_rows<2, true, false>(p, nullptr, begin * count, end * count);
}

static void coarse_means(const ZooCoarse& p, int64_t begin, int64_t end) {
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    const float* tokens[] = {p.q, p.k, p.v};
    for (int64_t item = begin; item < end; ++item) {
        const int64_t head = item / count, x = item % count, first = head * length + x * size;
        const int64_t rows = least(length - x * size, size);
        int64_t real = 0;
        for (int64_t i = 0; i < rows; ++i) real += !p.mask || p.mask[first + i];
        const float by = real ? 1.0f / real : 0.0f;
        p.logs[item] = real ? __builtin_log2f(real) : LOWEST;
        for (int which = 0; which < 3; ++which)
            for (int64_t d = 0; d < dim; d += LANES) {
                Vec sum = {};
                for (int64_t i = 0; i < rows; ++i)
                    if (!p.mask || p.mask[first + i]) sum += load(tokens[which] + (first + i) * dim + d);
                store(p.means + (which * heads * count + item) * dim + d, sum * by);
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
    forward<2, true>(coarse, p.logs, begin, end);
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
    clear_columns(coarse, begin, end);
    backward_rows<2, true, true>(coarse, p.logs, begin, end);
    float* tokens[] = {p.d_q, p.d_k, p.d_v};
    for (int64_t item = begin * count; item < end * count; ++item) {
        const int64_t head = item / count, x = item % count, first = head * length + x * size;
        const int64_t rows = least(length - x * size, size);
        int64_t real = 0;
        for (int64_t i = 0; i < rows; ++i) real += !p.mask || p.mask[first + i];
        if (!real) continue;
        for (int which = 0; which < 3; ++which)
            for (int64_t d = 0; d < dim; d += LANES) {
                const Vec share = load(p.d_means + (which * heads * count + item) * dim + d) * (1.0f / real);
                for (int64_t i = 0; i < rows; ++i) {
                    float* at = tokens[which] + (first + i) * dim + d;
                    if (!p.mask || p.mask[first + i]) store(at, load(at) + share);
                }
            }
    }
}

static void block_logits(const ZooCoarse& p, float* logits, int64_t begin, int64_t end) {
    const double root = p.root;
    const auto [heads, length, dim, size, count, pairs, scale] = p.shape;
    Scratch room(2 * (2 * count * dim + count));
    double *query = reinterpret_cast<double*>(room.at), *key = query + count * dim, *sum = key + count * dim;
    for (int64_t head = begin; head < end; ++head) {
        for (int64_t x = 0; x < count; ++x) {
            const int64_t first = head * length + x * size, rows = least(length - x * size, size);
            int64_t real = 0;
            for (int64_t i = 0; i < rows; ++i) real += !p.mask || p.mask[first + i];
            for (int keys = 0; keys < 2; ++keys) {
                const float* from = keys ? p.k : p.q;
                for (int64_t d = 0; d < dim; d += LANES) {
                    double some[LANES] = {};
                    for (int64_t i = 0; i < rows; ++i)
                        if (!p.mask || p.mask[first + i])
                            for (int l = 0; l < LANES; ++l) some[l] += from[(first + i) * dim + d + l];
                    for (int l = 0; l < LANES; ++l)
                        (keys ? key[(d + l) * count + x] : query[x * dim + d + l]) = some[l] / (real ? real : 1);
                }
            }
        }
        for (int64_t x = 0; x < count; ++x) {
            for (int64_t y = 0; y < count; ++y) sum[y] = 0;
            for (int64_t d = 0; d < dim; ++d) {
                const double factor = query[x * dim + d];
                for (int64_t y = 0; y < count; ++y) sum[y] += factor * key[d * count + y];
            }
            float* to = logits + (head * count + x) * count;
            for (int64_t y = 0; y < count; ++y) to[y] = static_cast<float>(sum[y] / root);
        }
    }
}

}  // namespace

const ZooKernels ISA = {run_forward,  shift,          run_heads,       run_rows,     run_columns,
                        coarse_means, coarse_forward, coarse_backward, block_logits, powers};
