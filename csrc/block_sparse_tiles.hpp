// A tile is the logits, or what belongs to them, of up to QUERIES queries (its rows) and of up to WIDE pieces of keys
// (its lanes), and the two products that go into a tile and out of it.
//
// A piece is LANES keys of one block, fewer at the block's end. Keys and values of a head are held turned, (pieces,
// dim, LANES), so that a tile may take its pieces from anywhere. Both products have the form C(r, lanes) += sum over s
// of A(r, s) B(s, lanes), with A read one number at a time and B in rows of lanes. R rows of V vectors take R + V loads
// for R V multiplications, and loads are what there is too little of: so a tile is wide.
#pragma once

#include "block_sparse.hpp"
#include "block_sparse_lanes.hpp"

namespace {

// The rows of a tile, its pieces, and how many of them go through a product at a time.
constexpr int QUERIES = 32, MOST = 64 / LANES, WIDE = LANES == 8 ? 2 : 4;

// As many rows at a time as hide the latency of the sums, with registers left for B.
template <int V>
constexpr int ROWS = (LANES == 16 ? 16 : 8) / V;

struct Piece {
    int64_t place, first, keys;  // which one of the head, its first token, its tokens
};

// How the tokens of a head are cut into pieces.
struct Cut {
    int64_t length, size, each;

    explicit Cut(const ZooShape& s)
        : length(s.length), size(s.block_size), each((least(s.block_size, s.length) + LANES - 1) / LANES) {}

    // Appends the pieces of a block.
    int64_t add(int64_t block, Piece* pieces, int64_t number) const {
        const int64_t over = least(length, (block + 1) * size);
        int64_t first = block * size;
        for (int64_t i = 0; i < each && first < over; ++i, first += LANES)
            pieces[number++] = {block * each + i, first, least(LANES, over - first)};
        return number;
    }
};

struct alignas(64) Tile {
    float at[QUERIES * MOST * LANES];
};

// Where some pieces begin: among a head's turned ones, or as the columns of a tile.
struct Columns {
    float* at[MOST];
    Columns(float* turned, const Piece* pieces, int64_t number, int64_t dim) {
        for (int64_t i = 0; i < number; ++i) at[i] = turned + pieces[i].place * dim * LANES;
    }
    explicit Columns(float* tile) {
        for (int i = 0; i < MOST; ++i) at[i] = tile + i * LANES;
    }
};

// What a product brings into the cache between its steps, a line every second one: the numbers that the next product
// reads, dim * LANES of them for each piece.
struct Ahead {
    static constexpr int64_t EACH = 8;
    const float* at[MOST];
    int64_t numbers;

    Ahead(const float* from, const Piece* pieces, int64_t number, int64_t dim, bool turned) : numbers(dim * LANES) {
        for (int64_t i = 0; i < MOST; ++i) {
            const Piece& piece = pieces[i < number ? i : 0];
            at[i] = from + (turned ? piece.place * LANES : piece.first) * dim;
        }
    }
    // Where to begin at a step, counted over all steps of `number` pieces from piece `first`.
    const float* from(int64_t step, int64_t first, int64_t number) const {
        return at[first + step * EACH / numbers % number] + step * EACH % numbers;
    }
};

// R rows of a product of V pieces, each piece of B and C with an address of its own.
// Each tile is summed on its own before it is added: shorter sums are rounded less.
template <int R, int V, bool ADD>
INLINE void into_pieces(const float* a, int64_t a_row, int64_t a_step, float* const* b, int64_t b_step,
                        int64_t steps, float* const* c, int64_t c_row, int64_t from, const float* ahead) {
    Vec sum[R][V] = {};
    const float* at[V];
#pragma GCC unroll 4
    for (int i = 0; i < V; ++i) at[i] = b[i];
    const auto step = [&](int64_t s) {
        Vec row[V];
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) row[i] = load(at[i] + s * b_step);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vec x = all(a[r * a_row + s * a_step]);
#pragma GCC unroll 4
            for (int i = 0; i < V; ++i) sum[r][i] = fused(x, row[i], sum[r][i]);
        }
    };
    int64_t s = 0;
    for (; s + 2 <= steps; s += 2) {
        __builtin_prefetch(ahead + s * Ahead::EACH);
        step(s);
        step(s + 1);
    }
    if (s < steps) step(s);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) {
            float* to = c[i] + (from + r) * c_row;
            store(to, ADD ? load(to) + sum[r][i] : sum[r][i]);
        }
}

// A function of its own: within a larger one the sums would not all stay in registers.
template <int V, bool ADD>
[[gnu::noinline]] static void multiply_some(int64_t rows, const float* a, int64_t a_row, int64_t a_step,
                                            const Columns& b, int64_t b_step, int64_t steps, const Columns& c,
                                            int64_t c_row, int64_t first, const Ahead& ahead) {
    float *const *from = b.at + first, *const *to = c.at + first;
    int64_t r = 0;
    for (; r + ROWS<V> <= rows; r += ROWS<V>)
        into_pieces<ROWS<V>, V, ADD>(a + r * a_row, a_row, a_step, from, b_step, steps, to, c_row, r,
                                     ahead.from(r / ROWS<V> * steps, first, V));
    for (; r < rows; ++r)
        into_pieces<1, V, ADD>(a + r * a_row, a_row, a_step, from, b_step, steps, to, c_row, r, ahead.at[first]);
}

// C (rows, pieces) = or += A (rows, steps) B (steps, pieces).
template <bool ADD>
static void multiply(int64_t rows, const float* a, int64_t a_row, int64_t a_step, const Columns& b, int64_t b_step,
                     int64_t steps, const Columns& c, int64_t c_row, int64_t number, const Ahead& ahead) {
    int64_t i = 0;
    for (; i + WIDE <= number; i += WIDE)
        multiply_some<WIDE, ADD>(rows, a, a_row, a_step, b, b_step, steps, c, c_row, i, ahead);
    for (; i + 2 <= number; i += 2)
        multiply_some<2, ADD>(rows, a, a_row, a_step, b, b_step, steps, c, c_row, i, ahead);
    if (i < number) multiply_some<1, ADD>(rows, a, a_row, a_step, b, b_step, steps, c, c_row, i, ahead);
}

// into (R rows, V LANES of dim) = by (row) into + tile x (tokens, dim), over the tokens of the pieces.
template <int R, int V>
INLINE void out_of_tile(const float* tile, int64_t width, const Piece* pieces, int64_t number, const float* x,
                        int64_t dim, const float* by, float* into, const float* ahead) {
    Vec sum[R][V] = {};
    for (int64_t i = 0; i < number; ++i, tile += LANES) {
        const float* row = x + pieces[i].first * dim;
        const auto step = [&](int64_t s) {
            Vec some[V];
#pragma GCC unroll 4
            for (int c = 0; c < V; ++c) some[c] = load(row + s * dim + c * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Vec factor = all(tile[r * width + s]);
#pragma GCC unroll 4
                for (int c = 0; c < V; ++c) sum[r][c] = fused(factor, some[c], sum[r][c]);
            }
        };
        int64_t s = 0;
        for (; s + 2 <= pieces[i].keys; s += 2, ahead += 2 * Ahead::EACH) {
            __builtin_prefetch(ahead);
            step(s);
            step(s + 1);
        }
        if (s < pieces[i].keys) step(s);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < V; ++c) {
            float* to = into + r * dim + c * LANES;
            store(to, fused(load(to), all(by[r]), sum[r][c]));
        }
}

template <int V>
[[gnu::noinline]] static void mix_some(int64_t rows, const float* tile, int64_t width, const Piece* pieces,
                                       int64_t number, const float* x, int64_t dim, const float* by, float* into,
                                       const Ahead& ahead) {
    int64_t r = 0;
    for (; r + ROWS<V> <= rows; r += ROWS<V>)
        out_of_tile<ROWS<V>, V>(tile + r * width, width, pieces, number, x, dim, by + r, into + r * dim,
                                ahead.from(r / ROWS<V> * number * LANES, 0, number));
    for (; r < rows; ++r)
        out_of_tile<1, V>(tile + r * width, width, pieces, number, x, dim, by + r, into + r * dim, ahead.at[0]);
}

// into (rows, dim) = by (rows) into + tile x.
static void mix(int64_t rows, const float* tile, int64_t width, const Piece* pieces, int64_t number, const float* x,
                int64_t dim, const float* by, float* into, const Ahead& ahead) {
    int64_t d = 0;
    for (; d + WIDE * LANES <= dim; d += WIDE * LANES)
        mix_some<WIDE>(rows, tile, width, pieces, number, x + d, dim, by, into + d, ahead);
    for (; d + 2 * LANES <= dim; d += 2 * LANES)
        mix_some<2>(rows, tile, width, pieces, number, x + d, dim, by, into + d, ahead);
    for (; d < dim; d += LANES) mix_some<1>(rows, tile, width, pieces, number, x + d, dim, by, into + d, ahead);
}

// All pieces of `count` blocks, turned.
static void turn_pieces(const Cut& cut, int64_t count, const float* from, int64_t dim, Piece* pieces, float* to) {
    for (int64_t block = 0; block < count; ++block) {
        const int64_t number = cut.add(block, pieces, 0);
        for (int64_t i = 0; i < number; ++i)
            turn_in(from + pieces[i].first * dim, pieces[i].keys, dim, to + pieces[i].place * dim * LANES);
    }
}

// Calls `work(pieces, their number, how many are left after them)` for one tile after the other.
template <class Work>
INLINE void by_tiles(const Piece* pieces, int64_t number, const Work& work) {
    for (int64_t i = 0; i < number; i += MOST) {
        const int64_t some = least(MOST, number - i);
        work(pieces + i, some, number - i - some);
    }
}

// Lanes of a tile of products without a key, or with a padded one, become -inf.
INLINE void hide(int64_t rows, int64_t width, const Piece* pieces, const uint8_t* mask, float* tile) {
    for (int64_t c = 0; c < width / LANES; ++c) {
        if (!mask && pieces[c].keys == LANES) continue;
        alignas(64) float added[LANES];
        bool hidden = false;
        for (int64_t j = 0; j < LANES; ++j) {
            const bool real = j < pieces[c].keys && (!mask || mask[pieces[c].first + j]);
            added[j] = real ? 0.0f : LOWEST;
            hidden |= !real;
        }
        for (int64_t i = 0; hidden && i < rows; ++i) {
            float* at = tile + i * width + c * LANES;
            store(at, load(at) + load(added));
        }
    }
}

// The same for the coarse part: -inf where a pair is computed exactly, elsewhere the logarithm of the key's weight.
INLINE void weigh_blocks(int64_t rows, int64_t width, const Piece* pieces, float to_base_2, const float* bias,
                         int64_t bias_row, float* tile) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < width / LANES; ++c) {
            float* at = tile + i * width + c * LANES;
            store(at, fused(load(at), all(to_base_2), load(bias + i * bias_row + pieces[c].place * LANES)));
        }
}

// The biases of `rows` query blocks from `first`, (rows, pieces * LANES).
static void fill_bias(const float* logs, const int32_t* row_start, const int32_t* keys, int64_t first, int64_t rows,
                      int64_t count, int64_t bias_row, float* bias) {
    for (int64_t i = 0; i < rows; ++i, bias += bias_row) {
        for (int64_t j = 0; j < bias_row; ++j) bias[j] = j < count ? logs[j] : LOWEST;
        for (int32_t pair = row_start[first + i]; pair < row_start[first + i + 1]; ++pair) bias[keys[pair]] = LOWEST;
    }
}

// out (rows) = the dot products of the rows of a and b, (rows, dim) with their own strides.
static void dots(int64_t rows, int64_t dim, const float* a, int64_t a_row, const float* b, int64_t b_row, float* out) {
    for (int64_t first = 0; first < rows; first += LANES) {
        const int64_t some = least(LANES, rows - first);
        Vec x[LANES] = {};
        for (int64_t i = 0; i < some; ++i)
            for (int64_t d = 0; d < dim; d += LANES)
                x[i] = fused(load(a + (first + i) * a_row + d), load(b + (first + i) * b_row + d), x[i]);
        const Vec sums = fold(x, [](Vec y, Vec z) { return y + z; });
        for (int64_t i = 0; i < some; ++i) out[first + i] = sums[i];
    }
}

}  // namespace
