// A warp's tile of 16 rows in registers, and the products that attention is made of. Lanes share a tile as mma.sync
// wants it for the half types, four to a row; in float32, eight to a row, so that four rows share what is read of the
// other factor. Rows of shared memory end with 16 bytes of nothing: then eight rows below each other lie in different
// banks.
#pragma once

#include "zoo_cuda.hpp"

#include <cmath>
#include <cstdint>

#include <ptx.cuh>

constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;
constexpr uint32_t WARP = 0xFFFFFFFFu;

template <class Number, int D>
constexpr int STRIDE = D * static_cast<int>(sizeof(Number)) + 16;
// Of 16 bytes, in a row.
template <class Number, int D>
constexpr int PIECES = D * static_cast<int>(sizeof(Number)) / 16;
// Bytes that a warp needs to hand a left factor of 16 x C around.
template <class Number, int C>
constexpr int HANDOVER = sizeof(Number) == 4 ? 16 * (C + 8) * 4 : 0;

// 16 x COLUMNS. A lane holds EACH numbers of each of ROWS rows, and ACROSS lanes share a row.
template <class Number, int COLUMNS>
struct Tile {
    static constexpr int ROWS = 2, ACROSS = 4, EACH = COLUMNS / ACROSS;
    float at[COLUMNS / 8][4] = {};

    DEVICE float& operator()(int i, int n) { return at[n / 2][2 * i + n % 2]; }
    static DEVICE int row(int lane, int i) { return lane / 4 + 8 * i; }
    // The column of a lane's n-th number, in a sum over keys, and in logits.
    static DEVICE int column(int lane, int n) { return n / 2 * 8 + lane % 4 * 2 + n % 2; }
    static DEVICE int key(int lane, int n) { return column(lane, n); }
};

template <int COLUMNS>
struct Tile<float, COLUMNS> {
    static constexpr int ROWS = 4, ACROSS = 8, EACH = COLUMNS / ACROSS, RUN = EACH < 4 ? EACH : 4;
    float at[ROWS][EACH] = {};

    DEVICE float& operator()(int i, int n) { return at[i][n]; }
    static DEVICE int row(int lane, int i) { return lane / 8 + 4 * i; }
    static DEVICE int column(int lane, int n) { return (n / RUN * 8 + lane % 8) * RUN + n % RUN; }
    static DEVICE int key(int lane, int n) { return lane % 8 + 8 * n; }
};

// The largest, or the sum, over the lanes of a row.
template <int ACROSS>
DEVICE float row_largest(float x) {
#pragma unroll
    for (int m = 1; m < ACROSS; m *= 2) x = fmaxf(x, __shfl_xor_sync(WARP, x, m));
    return x;
}
template <int ACROSS>
DEVICE float row_sum(float x) {
#pragma unroll
    for (int m = 1; m < ACROSS; m *= 2) x += __shfl_xor_sync(WARP, x, m);
    return x;
}

// 16 rows of shared memory as the left factor of a product, in registers if HELD.
template <class Number, int D, bool HELD>
struct Left {
    uint32_t held[D / 16][4];

    DEVICE void take(const unsigned char* rows, int lane) {
        rows += lane % 16 * STRIDE<Number, D> + lane / 16 * 16;
#pragma unroll
        for (int k = 0; k < D / 16; ++k) load_matrices(held[k], rows + 32 * k);
    }
    DEVICE void part(int k, uint32_t (&a)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = held[k][i];
    }
};

template <class Number, int D>
struct Left<Number, D, false> {
    const unsigned char* at;

    DEVICE void take(const unsigned char* rows, int lane) {
        at = rows + lane % 16 * STRIDE<Number, D> + lane / 16 * 16;
    }
    DEVICE void part(int k, uint32_t (&a)[4]) const { load_matrices(a, at + 32 * k); }
};

template <int D>
struct Left<float, D, false> {
    const unsigned char* at;

    DEVICE void take(const unsigned char* rows, int lane) { at = rows + lane / 8 * STRIDE<float, D>; }
};

// The 16 x C products of the left rows and C rows of shared memory.
template <class Number, int D, int C, bool HELD>
DEVICE Tile<Number, C> products(const Left<Number, D, HELD>& left, const unsigned char* right, int lane) {
    Tile<Number, C> sum;
    right += (lane % 8 + lane / 16 * 8) * STRIDE<Number, D> + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        uint32_t a[4];
        left.part(k, a);
#pragma unroll
        for (int n = 0; n < C / 16; ++n) {
            uint32_t b[4];
            load_matrices(b, right + 16 * n * STRIDE<Number, D> + 32 * k);
            const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
            multiply_add<Number>(sum.at[2 * n], a, low);
            multiply_add<Number>(sum.at[2 * n + 1], a, high);
        }
    }
    return sum;
}

// RUN numbers that lie side by side.
template <int RUN>
DEVICE void read_run(float (&x)[RUN], const unsigned char* at) {
    if constexpr (RUN == 4) {
        const float4 y = *reinterpret_cast<const float4*>(at);
        x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
    } else if constexpr (RUN == 2) {
        const float2 y = *reinterpret_cast<const float2*>(at);
        x[0] = y.x, x[1] = y.y;
    } else {
        x[0] = *reinterpret_cast<const float*>(at);
    }
}
template <int D, int C>
DEVICE Tile<float, C> products_of_floats(const Left<float, D, false>& left, const unsigned char* right, int lane) {
    // Fewer at a time where the sums need the registers.
    constexpr int RUN = D > 32 ? 2 : 4;
    [[maybe_unused]] constexpr int UNROLLED = D > 64 ? 1 : 2;
    Tile<float, C> sum;
    right += lane % 8 * STRIDE<float, D>;
#pragma unroll UNROLLED
    for (int d = 0; d < D; d += RUN) {
        float a[4][RUN];
#pragma unroll
        for (int i = 0; i < 4; ++i) read_run(a[i], left.at + 4 * i * STRIDE<float, D> + 4 * d);
#pragma unroll
        for (int n = 0; n < C / 8; ++n) {
            float b[RUN];
            read_run(b, right + 8 * n * STRIDE<float, D> + 4 * d);
#pragma unroll
            for (int e = 0; e < RUN; ++e)
#pragma unroll
                for (int i = 0; i < 4; ++i) sum(i, n) = fmaf(a[i][e], b[e], sum(i, n));
        }
    }
    return sum;
}
template <class Number, int D, int C>
DEVICE Tile<float, C> products(const Left<float, D, false>& left, const unsigned char* right, int lane) {
    return products_of_floats<D, C>(left, right, lane);
}

// sum (16 x D) += left (16 x C, rounded to Number) times C rows of shared memory.
template <class Number, int D, int C>
DEVICE void add_product(Tile<Number, D>& sum, const Tile<Number, C>& left, const unsigned char* right, unsigned char*,
                        int lane) {
    right += lane % 16 * STRIDE<Number, D> + lane / 16 * 16;
#pragma unroll
    for (int k = 0; k < C / 16; ++k) {
        const auto& x = left.at;
        const uint32_t a[4] = {packed<Number>(x[2 * k][0], x[2 * k][1]), packed<Number>(x[2 * k][2], x[2 * k][3]),
                               packed<Number>(x[2 * k + 1][0], x[2 * k + 1][1]),
                               packed<Number>(x[2 * k + 1][2], x[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            uint32_t b[4];
            load_matrices_turned(b, right + 16 * k * STRIDE<Number, D> + 32 * n);
            const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
            multiply_add<Number>(sum.at[2 * n], a, low);
            multiply_add<Number>(sum.at[2 * n + 1], a, high);
        }
    }
}

template <int D, int C>
DEVICE void add_product(Tile<float, D>& sum, Tile<float, C>& left, const unsigned char* right, unsigned char* handover,
                        int lane) {
    constexpr int RUN = Tile<float, D>::RUN, ROW = C + 8, HELD = D > 64 ? 1 : D > 32 ? 2 : 4;
    float* to = reinterpret_cast<float*>(handover) + lane / 8 * ROW;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int n = 0; n < C / 8; ++n) to[4 * i * ROW + 8 * n + lane % 8] = left(i, n);
    __syncwarp();
    right += lane % 8 * RUN * 4;
#pragma unroll 1
    for (int k = 0; k < C; k += HELD) {
        float a[4][HELD];
#pragma unroll
        for (int i = 0; i < 4; ++i) read_run(a[i], reinterpret_cast<const unsigned char*>(to + 4 * i * ROW + k));
#pragma unroll
        for (int s = 0; s < HELD; ++s)
#pragma unroll
            for (int n = 0; n < D / 8; n += RUN) {
                float b[RUN];
                read_run(b, right + (k + s) * STRIDE<float, D> + 8 * n * 4);
#pragma unroll
                for (int e = 0; e < RUN; ++e)
#pragma unroll
                    for (int i = 0; i < 4; ++i) sum(i, n + e) = fmaf(a[i][s], b[e], sum(i, n + e));
            }
    }
}

// 16 bytes of numbers as floats, and back.
template <class Number>
struct Piece {
    static constexpr int EACH = 16 / static_cast<int>(sizeof(Number));
    float x[EACH];

    DEVICE void read(const Number* from) {
        const uint4 all = *reinterpret_cast<const uint4*>(from);
        const uint32_t part[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
        for (int e = 0; e < EACH; ++e)
            if constexpr (sizeof(Number) == 4)
                x[e] = __uint_as_float(part[e]);
            else
                x[e] = widened(Number{static_cast<uint16_t>(part[e / 2] >> 16 * (e % 2))});
    }
};

// Rows first.. of `to` (length, D), as many as there are of 16, from the tile by way of 16 rows of shared memory.
template <class Number, int D>
DEVICE void write_rows(Tile<Number, D>& x, unsigned char* slab, Number* to, int first, int length, int lane) {
    constexpr int RUN = sizeof(Number) == 4 ? Tile<float, D>::RUN : 2;
    using Held = Tile<Number, D>;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Held::ROWS; ++i)
#pragma unroll
        for (int n = 0; n < Held::EACH; n += RUN) {
            unsigned char* const at = slab + Held::row(lane, i) * STRIDE<Number, D> +
                                      Held::column(lane, n) * static_cast<int>(sizeof(Number));
            if constexpr (sizeof(Number) == 2)
                *reinterpret_cast<uint32_t*>(at) = packed<Number>(x(i, n), x(i, n + 1));
            else if constexpr (RUN == 4)
                *reinterpret_cast<float4*>(at) = {x(i, n), x(i, n + 1), x(i, n + 2), x(i, n + 3)};
            else
                *reinterpret_cast<float2*>(at) = {x(i, n), x(i, n + 1)};
        }
    __syncwarp();
    constexpr int EACH = PIECES<Number, D>;
#pragma unroll 1
    for (int at = lane; at < 16 * EACH; at += 32) {
        const int row = at / EACH, piece = at % EACH;
        if (first + row < length)
            *reinterpret_cast<uint4*>(to + static_cast<int64_t>(first + row) * D + piece * Piece<Number>::EACH) =
                *reinterpret_cast<const uint4*>(slab + row * STRIDE<Number, D> + 16 * piece);
    }
    __syncwarp();
}
