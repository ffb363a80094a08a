// The logits of the means of blocks, in float64.
#pragma once

#include <ptx.cuh>

#include <cstdint>

namespace {

// 16 R x 16 R logits a block of 256 threads; thread (i, j) has rows i + 16 a and columns j + 16 b.
template <int R>
__global__ void __launch_bounds__(256) block_products(const double* means, int64_t numbers, int64_t count, int dim,
                                                      double root, float* logits) {
    constexpr int SIDE = 16 * R, SLICE = 32, STRIDE = SLICE + 1;
    const int64_t tiles = (count + SIDE - 1) / SIDE, head = blockIdx.x / (tiles * tiles);
    const int64_t tile = blockIdx.x % (tiles * tiles), x = tile / tiles * SIDE, y = tile % tiles * SIDE;
    const double *q = means + head * count * dim, *k = q + numbers;
    auto* queries = reinterpret_cast<double*>(shared_memory());
    double* keys = queries + SIDE * STRIDE;
    const int width = dim < SLICE ? dim : SLICE, i = threadIdx.x / 16, j = threadIdx.x % 16;

    double sum[R][R] = {};
    for (int from = 0; from < dim; from += width) {
        for (int at = threadIdx.x; at < SIDE * width; at += 256) {
            const int row = at / width, d = at % width;
            queries[row * STRIDE + d] = x + row < count ? q[(x + row) * dim + from + d] : 0.0;
            keys[row * STRIDE + d] = y + row < count ? k[(y + row) * dim + from + d] : 0.0;
        }
        __syncthreads();
#pragma unroll 4
        for (int d = 0; d < width; ++d) {
            double a[R], b[R];
#pragma unroll
            for (int r = 0; r < R; ++r) {
                a[r] = queries[(i + 16 * r) * STRIDE + d];
                b[r] = keys[(j + 16 * r) * STRIDE + d];
            }
#pragma unroll
            for (int r = 0; r < R; ++r)
#pragma unroll
                for (int c = 0; c < R; ++c) sum[r][c] += a[r] * b[c];
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < R; ++c) {
            const int64_t row = x + i + 16 * r, column = y + j + 16 * c;
            if (row < count && column < count)
                logits[(head * count + row) * count + column] = static_cast<float>(sum[r][c] / root);
        }
}

}  // namespace
