// out and lse: a block of threads for each query block, a warp for 16 of its queries.
#pragma once

#include "attention_pairs.cuh"

template <class Number, int D>
struct Forward {
    // Float32 tiles of 128 dimensions are halved, to fit into 99 KiB.
    static constexpr int TILE = sizeof(Number) * D > 256 ? 16 : 32;
    static constexpr bool HELD = sizeof(Number) == 2 && D <= 64;
    // Of 128 threads, at a time: what is left of the registers.
    static constexpr int BLOCKS = sizeof(Number) == 4 || D > 64 ? 4 : D > 32 ? 6 : 8;
    using Streamed = Stages<Number, D, TILE>;
    using Scores = Tile<Number, TILE>;
    using Out = Tile<Number, D>;
    static constexpr int ROWS = Out::ROWS, ACROSS = Out::ACROSS;
    // A maximum may lag by so much, as a power of two, before sums are scaled down: their bits do not suffer.
    static constexpr float LAG = 8.0f;

    const ZooCudaForward& given;
    int head, length, lane;
    float to_log2;
    Streamed stages;
    unsigned char *own, *handover;
    Left<Number, D, HELD> queries = {};
    bool real_next = false;
    uint32_t real = 0;
    float top[ROWS] = {}, sum[ROWS] = {};
    Out out = {};

    // Worked out for each tile: registers are dearer.
    DEVICE int64_t first_token() const {
        int late = head;
        compute_late(late);
        return late * given.shape.length;
    }
    DEVICE const Number* x() const { return static_cast<const Number*>(given.k) + first_token() * D; }
    DEVICE const Number* y() const { return static_cast<const Number*>(given.v) + first_token() * D; }
    DEVICE void ask(int token) {
        real_next = static_cast<unsigned>(token) < static_cast<unsigned>(length) &&
                    (!given.mask || given.mask[first_token() + token]);
    }
    DEVICE void arrive(int) { real = __ballot_sync(WARP, real_next); }
    DEVICE void see() {}
    DEVICE void use() {
        Scores x = products<Number, D, TILE>(queries, stages.first(), lane);
        if (real != WARP) {
#pragma unroll
            for (int n = 0; n < Scores::EACH; ++n)
                if (!(real >> Scores::key(lane, n) & 1))
#pragma unroll
                    for (int i = 0; i < ROWS; ++i) x(i, n) = -INFINITY;
        }
        float higher[ROWS];
        bool grown = false;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            higher[i] = x(i, 0);
#pragma unroll
            for (int n = 1; n < Scores::EACH; ++n) higher[i] = fmaxf(higher[i], x(i, n));
            higher[i] = to_log2 * row_largest<ACROSS>(higher[i]);
            grown = grown || higher[i] > top[i] + LAG;
        }
        if (__ballot_sync(WARP, grown)) {
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                // Each row on its own: no bit of it depends on the others.
                const float now = higher[i] > top[i] + LAG ? higher[i] : top[i];
                const float by = power_of_two(top[i] - finite(now));
                top[i] = now;
                sum[i] *= by;
#pragma unroll
                for (int n = 0; n < Out::EACH; ++n) out(i, n) *= by;
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const float base = -finite(top[i]);
#pragma unroll
            for (int n = 0; n < Scores::EACH; ++n) {
                x(i, n) = power_of_two(fmaf(x(i, n), to_log2, base));
                sum[i] += x(i, n);
            }
        }
        add_product(out, x, stages.second(), handover, lane);
    }
    // -inf less -inf is not wanted.
    static DEVICE float finite(float x) { return x == -INFINITY ? 0.0f : x; }

    static int64_t bytes(int64_t block_size) {
        return Streamed::BYTES + (HELD ? 0 : block_size * STRIDE<Number, D>) + block_size / 16 * HANDOVER<Number, TILE>;
    }
};

// What a block of threads works at.
struct QueryBlock {
    int head, block, first;

    // Block 0 of all heads comes first: where the first block is chosen for all, it has the most work. Then head after
    // head, whose keys and values stay in the second-level cache.
    DEVICE QueryBlock(const ZooShape& shape) {
        int index = blockIdx.x;
        // Worked out again where it is wanted again.
        compute_late(index);
        const uint32_t heads = shape.heads, others = shape.count - 1, at = index;
        head = at < heads ? at : (at - heads) / others;
        block = at < heads ? 0 : (at - heads) % others + 1;
        first = block * static_cast<int>(shape.block_size);
    }
};

// Divides by the sums, and writes.
template <class Number, int D>
DEVICE void end_forward(const ZooCudaForward& given, Forward<Number, D>& work) {
    using Work = Forward<Number, D>;
    const QueryBlock place(given.shape);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, length = static_cast<int>(given.shape.length);
    const int64_t token = place.head * given.shape.length;
    const int own = place.first + 16 * warp;
#pragma unroll
    for (int i = 0; i < Work::ROWS; ++i) {
        const int at = own + Work::Out::row(lane, i);
        const bool real = at < length && (!given.mask || given.mask[token + at]);
        const float sum = row_sum<Work::ACROSS>(work.sum[i]), by = sum > 0 ? 1 / sum : 0.0f;
#pragma unroll
        for (int n = 0; n < Work::Out::EACH; ++n) work.out(i, n) = real ? by * work.out(i, n) : 0.0f;
        if (at < length && lane % Work::ACROSS == 0)
            given.lse[token + at] = real && sum != 0 ? LN2 * (Work::finite(work.top[i]) + log2f(sum)) : -INFINITY;
    }
    write_rows<Number, D>(work.out, shared_memory() + 16 * warp * STRIDE<Number, D>,
                          static_cast<Number*>(given.out) + token * D, own, length, lane);
}

template <class Number, int D>
__global__ void __launch_bounds__(128, Forward<Number, D>::BLOCKS) attention_forward(const ZooCudaForward given) {
    using Work = Forward<Number, D>;
    const ZooShape& shape = given.shape;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, length = static_cast<int>(shape.length);
    const QueryBlock place(shape);
    const int64_t token = place.head * shape.length;
    unsigned char* const memory = shared_memory();
    unsigned char* const rows = memory + (Work::HELD ? 2 * Work::Streamed::ONE : Work::Streamed::BYTES);
    unsigned char* const rest =
        memory + Work::Streamed::BYTES + (Work::HELD ? 0 : shape.block_size * STRIDE<Number, D>);
    ask_rows<Number, D>(rows, 16 * STRIDE<Number, D>, static_cast<const Number*>(given.q) + token * D, place.first,
                        shape.block_size, length);
    copy_commit();

    RowKeys keys({given.blocks, shape.pairs, given.wide, place.head}, place.block, lane);
    Work work{given, place.head, length, lane, shape.scale * LOG2E, {memory, 0}, rows + 16 * warp * STRIDE<Number, D>,
              rest + warp * HANDOVER<Number, Work::TILE>};
    float prior = -INFINITY;
    const int64_t block = place.head * shape.count + place.block;
    if (given.prior_logit) prior = given.prior_logit[block] * LOG2E;
    const bool virtual_key = prior > -INFINITY;
    // The sum is spread over the lanes of a row.
#pragma unroll
    for (int i = 0; i < Work::ROWS; ++i) {
        work.top[i] = prior;
        work.sum[i] = virtual_key && lane % Work::ACROSS == 0 ? 1.0f : 0.0f;
    }
    if (virtual_key)
#pragma unroll
        for (int n = 0; n < Work::Out::EACH; ++n) {
            const float value = given.prior_value[block * D + Work::Out::column(lane, n)];
#pragma unroll
            for (int i = 0; i < Work::ROWS; ++i) work.out(i, n) = value;
        }

    copy_wait<0>();
    __syncthreads();
    work.queries.take(work.own, lane);
    work.stages.walk(keys, work, shape.block_size, length, lane);

    copy_wait<0>();
    __syncthreads();
    end_forward<Number, D>(given, work);
}
