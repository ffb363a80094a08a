// Means of the real tokens of every block, a warp for each block of each array: one pass over the tokens.
#pragma once

#include <ptx.cuh>

#include "zoo_cuda.hpp"

namespace {

struct Tokens {
    const void* arrays[3];   // (G, N, D)
    int64_t number_of_arrays;
    const uint8_t* mask;     // (G, N) or null
    int64_t length, block_size, count, items;  // items = G K
    void* means;             // (number_of_arrays, G, K, D)
    float* logs;             // (G, K) or null
};

constexpr int MEANS_WARPS = 8;

DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Number>
struct alignas(16) Sixteen {
    Number at[16 / sizeof(Number)];
};

// Sum is what is added up and stored: float or double.
template <class Number, class Sum, int D>
__global__ void __launch_bounds__(32 * MEANS_WARPS) block_means(Tokens p) {
    constexpr int NUMBERS = 16 / sizeof(Number), PARTS = D / NUMBERS, ROWS = 32 / PARTS;
    const int lane = threadIdx.x % 32, part = lane % PARTS, line = lane / PARTS;
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * MEANS_WARPS + threadIdx.x / 32;
    if (warp >= p.number_of_arrays * p.items) return;
    const int64_t which = warp / p.items, item = warp % p.items, head = item / p.count;
    const int64_t first = item % p.count * p.block_size, token = head * p.length + first;
    const int rows = static_cast<int>(least(p.length - first, p.block_size));
    const void* array = which == 0 ? p.arrays[0] : which == 1 ? p.arrays[1] : p.arrays[2];
    const auto* from = static_cast<const Sixteen<Number>*>(array) + token * PARTS + part;

    const auto kept = [&](int row) { return row < rows && (!p.mask || p.mask[token + row]); };
    const uint32_t low = __ballot_sync(~0u, kept(lane)), high = __ballot_sync(~0u, kept(lane + 32));
    const uint64_t real = static_cast<uint64_t>(high) << 32 | low;
    const int number = __popc(low) + __popc(high);
    Sum sum[NUMBERS] = {};
#pragma unroll 4
    for (int row = line; row < rows; row += ROWS) {
        if (!(real >> row & 1)) continue;
        const Sixteen<Number> some = from[row * PARTS];
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i) sum[i] += static_cast<Sum>(widened(some.at[i]));
    }
#pragma unroll
    for (int apart = PARTS; apart < 32; apart *= 2)
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i) sum[i] += __shfl_xor_sync(~0u, sum[i], apart);
    // All lanes have the sums; each divides as few of them as there are.
    Sum* to = static_cast<Sum*>(p.means) + warp * D + part * NUMBERS;
#pragma unroll
    for (int start = 0; start < NUMBERS; start += ROWS) {
        Sum mine = sum[start];
#pragma unroll
        for (int i = 1; i < ROWS && start + i < NUMBERS; ++i) mine = line == i ? sum[start + i] : mine;
        if (start + line < NUMBERS) to[start + line] = mine / static_cast<Sum>(number ? number : 1);
    }
    if (p.logs && warp < p.items && lane == 0)
        p.logs[item] = number ? log2f(static_cast<float>(number)) : -__builtin_inff();
}

template <class Number, class Sum>
int launch_means(const Tokens& p, int64_t dim, void* stream) {
    const int64_t blocks = (p.number_of_arrays * p.items + MEANS_WARPS - 1) / MEANS_WARPS;
    const auto kernel = dim == 16   ? block_means<Number, Sum, 16>
                        : dim == 32 ? block_means<Number, Sum, 32>
                        : dim == 64 ? block_means<Number, Sum, 64>
                                    : block_means<Number, Sum, 128>;
    return launch(kernel, blocks, 32 * MEANS_WARPS, 0, stream, p);
}

template <class Sum>
int launch_means(const Tokens& p, int number, int64_t dim, void* stream) {
    if (number == ZOO_FLOAT32) return launch_means<float, Sum>(p, dim, stream);
    if (number == ZOO_BFLOAT16) return launch_means<BFloat16, Sum>(p, dim, stream);
    return launch_means<Float16, Sum>(p, dim, stream);
}

// Whether the kernels here serve these arguments.
inline bool served(const ZooShape& shape, int number) {
    const int64_t dim = shape.dim, size = shape.block_size;
    return (dim == 16 || dim == 32 || dim == 64 || dim == 128) && (size == 16 || size == 32 || size == 64) &&
           number >= ZOO_FLOAT32 && number <= ZOO_FLOAT16 && shape.heads >= 0 && shape.length >= 0 &&
           shape.count == (shape.length + size - 1) / size;
}

}  // namespace
