// The coarse part of MRA-2: attention of the means of blocks, without the pairs that are computed exactly.
//
// A block of threads has a tile of `rows` of its own means and walks over all other means, KEYS at a time. A warp owns
// 2 R rows. For products along D its thread has rows (lane / 16) R + i and means lane % 16 + 16 j of those walked over,
// for products along the walk the same rows and D / 16 columns: a row never leaves its warp.
#pragma once

#include <ptx.cuh>

#include "zoo_cuda.hpp"

namespace {

constexpr float LN2 = 0.693147180559945309f, LOG2E = 1.44269504088896341f;
constexpr float LOWEST = -__builtin_inff();

// Means walked over at a time, and means whose pairs are marked at a time.
constexpr int KEYS = 64, SPAN = 256;
template <int D>
constexpr int R = D == 128 ? 2 : 4;

// From one row to the next in shared memory, of means, weights and marks: what a warp reads at once lies in different
// banks.
template <int D>
constexpr int STRIDE = D + 4;
constexpr int WEIGHTS = KEYS + 4, MARKS = SPAN + 16;

// The D / 16 columns of a thread come in vectors of V, 16 V apart.
template <int D>
constexpr int V = D >= 64 ? 4 : D / 16;

template <int D>
DEVICE int column(int e) {
    return e / V<D> * 16 * V<D> + threadIdx.x % 16 * V<D> + e % V<D>;
}

// The query block and the key block of a pair.
DEVICE int2 pair_at(const ZooCudaCoarse& p, int64_t at) {
    if (!p.wide) return static_cast<const int2*>(p.blocks)[at];
    const int4 both = static_cast<const int4*>(p.blocks)[at];
    return {both.x, both.z};
}

// The first of a head's pairs whose query block is at least `block`, by a whole warp.
DEVICE int64_t first_pair(const ZooCudaCoarse& p, int64_t head, int64_t block) {
    const int64_t start = head * p.shape.pairs;
    int64_t low = 0, high = p.shape.pairs;
    while (low < high) {
        const int64_t step = (high - low + 31) / 32, at = low + threadIdx.x % 32 * step;
        const int before = __popc(__ballot_sync(~0u, at < high && pair_at(p, start + at).x < block));
        if (before == 0) return low;
        const int64_t over = low + before * step;
        low = over - step + 1;
        high = over < high ? over : high;
    }
    return low;
}

struct Tile {
    int64_t head, first;  // its rows are blocks first .. first + rows of the head
    int rows;
    bool columns;         // whether they are key blocks
};

// left_out (rows, MARKS): 1 where the pair of a row and one of the SPAN blocks from `walk` is in the list.
DEVICE void mark(const ZooCudaCoarse& p, const Tile& tile, int64_t walk, unsigned char* left_out, int64_t* range) {
    auto* clear = reinterpret_cast<int4*>(left_out);
    for (int i = threadIdx.x; i < tile.rows * (MARKS / 16); i += blockDim.x) clear[i] = int4{0, 0, 0, 0};
    if (threadIdx.x < 64 && (walk == 0 || tile.columns)) {
        const int64_t from = tile.columns ? walk : tile.first, over = from + (tile.columns ? SPAN : tile.rows);
        const bool end = threadIdx.x >= 32;
        const int64_t found = first_pair(p, tile.head, !end ? from : over < p.shape.count ? over : p.shape.count);
        if (threadIdx.x % 32 == 0) range[end] = found;
    }
    __syncthreads();
    for (int64_t i = range[0] + threadIdx.x; i < range[1]; i += blockDim.x) {
        const int2 pair = pair_at(p, tile.head * p.shape.pairs + i);
        const int64_t own = (tile.columns ? pair.y : pair.x) - tile.first;
        const int64_t other = (tile.columns ? pair.x : pair.y) - walk;
        if (own >= 0 && own < tile.rows && other >= 0 && other < SPAN) left_out[own * MARKS + other] = 1;
    }
}

// Rows first .. first + rows of a head's (K, D) means to shared memory, zeros beyond K.
template <int D>
DEVICE void stage(float* to, const float* head, int64_t first, int rows, int64_t count) {
    for (int i = threadIdx.x; i < rows * (D / 4); i += blockDim.x) {
        const int row = i / (D / 4), part = i % (D / 4) * 4;
        const bool real = first + row < count;
        copy_async(to + row * STRIDE<D> + part, head + (real ? (first + row) * D + part : 0), real);
    }
}

// The products of the thread's rows of `own` with its rows of `walked`.
template <int D>
DEVICE void dots(float (&to)[R<D>][4], const float* own, const float* walked) {
    walked += threadIdx.x % 16 * STRIDE<D>;
#pragma unroll
    for (int i = 0; i < R<D>; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) to[i][j] = 0.0f;
#pragma unroll 2
    for (int d = 0; d < D; d += 4) {
        float4 a[R<D>];
#pragma unroll
        for (int i = 0; i < R<D>; ++i) a[i] = *reinterpret_cast<const float4*>(own + i * STRIDE<D> + d);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float4 b = *reinterpret_cast<const float4*>(walked + 16 * j * STRIDE<D> + d);
#pragma unroll
            for (int i = 0; i < R<D>; ++i) {
                to[i][j] += a[i].x * b.x;
                to[i][j] += a[i].y * b.y;
                to[i][j] += a[i].z * b.z;
                to[i][j] += a[i].w * b.w;
            }
        }
    }
}

template <int D>
DEVICE void load_columns(float (&to)[D / 16], const float* row) {
#pragma unroll
    for (int e = 0; e < D / 16; e += V<D>) {
        const float* from = row + column<D>(e);
        if constexpr (V<D> == 4) {
            const float4 some = *reinterpret_cast<const float4*>(from);
            to[e] = some.x, to[e + 1] = some.y, to[e + 2] = some.z, to[e + 3] = some.w;
        } else if constexpr (V<D> == 2) {
            const float2 some = *reinterpret_cast<const float2*>(from);
            to[e] = some.x, to[e + 1] = some.y;
        } else {
            to[e] = *from;
        }
    }
}

// sum += the thread's rows of `weights` times its columns of the first `keys` rows of `walked`.
template <int D>
DEVICE void mix(float (&sum)[R<D>][D / 16], const float* weights, const float* walked, int keys) {
#pragma unroll 1
    for (int key = 0; key < keys; key += 4) {
        float4 weight[R<D>];
#pragma unroll
        for (int i = 0; i < R<D>; ++i) weight[i] = *reinterpret_cast<const float4*>(weights + i * WEIGHTS + key);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float value[D / 16];
            load_columns<D>(value, walked + (key + j) * STRIDE<D>);
#pragma unroll
            for (int i = 0; i < R<D>; ++i) {
                const float w = j == 0 ? weight[i].x : j == 1 ? weight[i].y : j == 2 ? weight[i].z : weight[i].w;
#pragma unroll
                for (int e = 0; e < D / 16; ++e) sum[i][e] += w * value[e];
            }
        }
    }
}

DEVICE Tile tile_of(const ZooCudaCoarse& p, int rows, int sides) {
    const int64_t tiles = (p.shape.count + rows - 1) / rows, at = blockIdx.x % (tiles * sides);
    return {blockIdx.x / (tiles * sides), at % tiles * rows, rows, at >= tiles};
}

template <int D>
__global__ void __launch_bounds__(256, 2) coarse_forward(ZooCudaCoarse p) {
    const int rows = blockDim.x / 32 * 2 * R<D>, mine = threadIdx.x / 16 * R<D>, lane = threadIdx.x % 16;
    const Tile tile = tile_of(p, rows, 1);
    const int64_t count = p.shape.count, numbers = p.shape.heads * count * D, start = tile.head * count;
    const float *q = p.means + start * D, *k = q + numbers, *v = k + numbers;
    auto* range = reinterpret_cast<int64_t*>(shared_memory());
    auto* own = reinterpret_cast<float*>(range + 2);
    float *keys = own + rows * STRIDE<D>, *values = keys + KEYS * STRIDE<D>, *weights = values + KEYS * STRIDE<D>;
    auto* left_out = reinterpret_cast<unsigned char*>(weights + rows * WEIGHTS);

    const float to_base_2 = p.shape.scale * LOG2E;
    float sum[R<D>][D / 16] = {}, top[R<D>], total[R<D>] = {};
    for (float& x : top) x = LOWEST;
    stage<D>(own, q, tile.first, rows, count);
    for (int64_t walk = 0; walk < count; walk += KEYS) {
        stage<D>(keys, k, walk, KEYS, count);
        stage<D>(values, v, walk, KEYS, count);
        copy_commit();
        if (walk % SPAN == 0) mark(p, tile, walk, left_out, range);
        float bias[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t key = walk + lane + 16 * j;
            bias[j] = key < count ? p.logs[start + key] : LOWEST;
        }
        copy_wait<0>();
        __syncthreads();

        float logit[R<D>][4];
        dots<D>(logit, own + mine * STRIDE<D>, keys);
#pragma unroll
        for (int i = 0; i < R<D>; ++i) {
            const unsigned char* out = left_out + (mine + i) * MARKS + walk % SPAN + lane;
            const float before = top[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                logit[i][j] = bias[j] == LOWEST || out[16 * j] ? LOWEST : logit[i][j] * to_base_2 + bias[j];
                top[i] = fmaxf(top[i], logit[i][j]);
            }
#pragma unroll
            for (int apart = 8; apart > 0; apart /= 2) top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], apart));
            const float base = top[i] == LOWEST ? 0.0f : top[i], kept = power_of_two(before - base);
            total[i] *= kept;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float weight = power_of_two(logit[i][j] - base);
                total[i] += weight;
                weights[(mine + i) * WEIGHTS + lane + 16 * j] = weight;
            }
#pragma unroll
            for (float& x : sum[i]) x *= kept;
        }
        __syncwarp();
        mix<D>(sum, weights + mine * WEIGHTS, values, count - walk < KEYS ? static_cast<int>(count - walk) : KEYS);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < R<D>; ++i) {
#pragma unroll
        for (int apart = 8; apart > 0; apart /= 2) total[i] += __shfl_xor_sync(~0u, total[i], apart);
        const int64_t block = tile.first + mine + i;
        if (block >= count) continue;
        const float by = total[i] == 0.0f ? 0.0f : 1.0f / total[i];
        if (lane == 0) p.prior_logit[start + block] = total[i] == 0.0f ? LOWEST : LN2 * (top[i] + log2f(total[i]));
#pragma unroll
        for (int e = 0; e < D / 16; ++e) p.prior_value[(start + block) * D + column<D>(e)] = sum[i][e] * by;
    }
}

// What a block adds to the exponents of its weights, and takes from the gradients of its logits before they are
// weighted: for queries minus the base-2 logarithm of all weights, and `shift`; for keys the logarithm of its tokens.
template <int D>
DEVICE void ends(const ZooCudaCoarse& p, int64_t head, int64_t first, int rows, bool queries, float* exponent,
                 float* shift) {
    const int part = threadIdx.x % 8;
    for (int row = threadIdx.x / 8; row < rows; row += blockDim.x / 8) {
        const int64_t item = head * p.shape.count + first + row;
        const bool real = first + row < p.shape.count;
        float sum = 0.0f;
        if (real && queries)
            for (int d = part; d < D; d += 8) sum += p.d_prior_value[item * D + d] * p.prior_value[item * D + d];
#pragma unroll
        for (int apart = 4; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
        if (part) continue;
        const float end = !real ? LOWEST : queries ? p.prior_logit[item] : p.logs[item];
        exponent[row] = queries && end != LOWEST ? -end * LOG2E : end;
        shift[row] = real && queries ? sum - p.d_prior_logit[item] : 0.0f;
    }
}

// With rows of queries d_q', with rows of keys d_k' and d_v'.
template <int D>
__global__ void __launch_bounds__(256, 2) coarse_backward(ZooCudaCoarse p) {
    const int rows = blockDim.x / 32 * 2 * R<D>, mine = threadIdx.x / 16 * R<D>, lane = threadIdx.x % 16;
    const Tile tile = tile_of(p, rows, 2);
    const int64_t count = p.shape.count, numbers = p.shape.heads * count * D, start = tile.head * count;
    const float *q = p.means + start * D, *k = q + numbers, *v = k + numbers, *d_value = p.d_prior_value + start * D;
    auto* range = reinterpret_cast<int64_t*>(shared_memory());
    auto* own = reinterpret_cast<float*>(range + 2);
    float *own_mixed = own + rows * STRIDE<D>, *other = own_mixed + rows * STRIDE<D>;
    float *other_mixed = other + KEYS * STRIDE<D>, *weights = other_mixed + KEYS * STRIDE<D>;
    float *d_logits = weights + rows * WEIGHTS, *own_exponent = d_logits + rows * WEIGHTS;
    float *own_shift = own_exponent + rows, *other_exponent = own_shift + rows, *other_shift = other_exponent + KEYS;
    auto* left_out = reinterpret_cast<unsigned char*>(other_shift + KEYS);

    const float to_base_2 = p.shape.scale * LOG2E;
    float sum[R<D>][D / 16] = {}, mixed[R<D>][D / 16] = {};
    stage<D>(own, tile.columns ? k : q, tile.first, rows, count);
    stage<D>(own_mixed, tile.columns ? v : d_value, tile.first, rows, count);
    ends<D>(p, tile.head, tile.first, rows, !tile.columns, own_exponent, own_shift);
    for (int64_t walk = 0; walk < count; walk += KEYS) {
        stage<D>(other, tile.columns ? q : k, walk, KEYS, count);
        stage<D>(other_mixed, tile.columns ? d_value : v, walk, KEYS, count);
        copy_commit();
        ends<D>(p, tile.head, walk, KEYS, tile.columns, other_exponent, other_shift);
        if (walk % SPAN == 0) mark(p, tile, walk, left_out, range);
        copy_wait<0>();
        __syncthreads();

        // The weights wait in shared memory: registers hold one product at a time.
        float product[R<D>][4];
        dots<D>(product, own + mine * STRIDE<D>, other);
#pragma unroll
        for (int i = 0; i < R<D>; ++i) {
            const unsigned char* out = left_out + (mine + i) * MARKS + walk % SPAN + lane;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float base = own_exponent[mine + i] + other_exponent[lane + 16 * j];
                const bool none = base == LOWEST || out[16 * j];
                weights[(mine + i) * WEIGHTS + lane + 16 * j] =
                    none ? 0.0f : power_of_two(product[i][j] * to_base_2 + base);
            }
        }
        dots<D>(product, own_mixed + mine * STRIDE<D>, other_mixed);
#pragma unroll
        for (int i = 0; i < R<D>; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = (mine + i) * WEIGHTS + lane + 16 * j;
                const float shift = own_shift[mine + i] + other_shift[lane + 16 * j];
                d_logits[at] = weights[at] * p.shape.scale * (product[i][j] - shift);
            }
        __syncwarp();
        const int keys = count - walk < KEYS ? static_cast<int>(count - walk) : KEYS;
        mix<D>(sum, d_logits + mine * WEIGHTS, other, keys);
        if (tile.columns) mix<D>(mixed, weights + mine * WEIGHTS, other_mixed, keys);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < R<D>; ++i) {
        const int64_t block = tile.first + mine + i;
        if (block >= count) continue;
        const float log = p.logs[start + block];
        // The logarithm is rounded, the number of tokens is not.
        const float by = log == LOWEST ? 0.0f : 1.0f / static_cast<float>(static_cast<int>(power_of_two(log) + 0.5f));
        float* to = p.d_means + (start + block) * D + (tile.columns ? numbers : 0);
#pragma unroll
        for (int e = 0; e < D / 16; ++e) {
            to[column<D>(e)] = sum[i][e] * by;
            if (tile.columns) to[numbers + column<D>(e)] = mixed[i][e] * by;
        }
    }
}

template <int D>
int64_t forward_bytes(int64_t rows) {
    return 16 + 4 * ((rows + 2 * KEYS) * STRIDE<D> + rows * WEIGHTS) + rows * MARKS;
}

template <int D>
int64_t backward_bytes(int64_t rows) {
    return 16 + 4 * (2 * (rows + KEYS) * STRIDE<D> + 2 * rows * WEIGHTS + 2 * (rows + KEYS)) + rows * MARKS;
}

}  // namespace
