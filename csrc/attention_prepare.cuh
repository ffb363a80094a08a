// What goes before the gradients: shift and total of every query, and the gradients of the virtual keys.
#pragma once

#include "attention_tiles.cuh"

// With p = exp(logit - lse): d_logit = p (d_out . v - shift), where shift = d_out . out - d_lse. A warp for each query
// block.
template <class Number, int D>
__global__ void __launch_bounds__(128) attention_prepare(const ZooCudaBackward given) {
    constexpr int ACROSS = PIECES<Number, D>, EACH = Piece<Number>::EACH;
    const ZooShape& shape = given.shape;
    const int lane = threadIdx.x % 32, length = static_cast<int>(shape.length);
    const int64_t block = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
    if (block >= shape.heads * shape.count) return;
    const int64_t head = block / shape.count;
    const int first = static_cast<int>(block % shape.count * shape.block_size), column = lane % ACROSS * EACH;
    const Number* const out = static_cast<const Number*>(given.out) + column;
    const Number* const d_out = static_cast<const Number*>(given.d_out) + column;

    float value[EACH] = {}, d_value[EACH] = {}, logit = -INFINITY, d_logit = 0;
    if (given.prior_logit) {
        logit = given.prior_logit[block] * LOG2E;
#pragma unroll
        for (int e = 0; e < EACH; ++e) value[e] = given.prior_value[block * D + column + e];
    }
#pragma unroll 4
    for (int row = lane / ACROSS; row < shape.block_size; row += 32 / ACROSS) {
        const bool there = first + row < length;
        const int64_t token = head * shape.length + first + row;
        Piece<Number> x = {}, up = {};
        float lse = -INFINITY, d_lse = 0;
        if (there) {
            x.read(out + token * D);
            up.read(d_out + token * D);
            lse = given.lse[token];
            if (given.d_lse) d_lse = given.d_lse[token];
        }
        const bool alive = lse != -INFINITY;
        float with_out = 0, with_value = 0;
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            if (!alive) up.x[e] = 0;
            with_out = fmaf(up.x[e], x.x[e], with_out);
            with_value = fmaf(up.x[e], value[e], with_value);
        }
        const float shift = alive ? row_sum<ACROSS>(with_out) - d_lse : row_sum<ACROSS>(0.0f);
        const float total = alive ? lse * LOG2E : INFINITY;
        if (there && lane % ACROSS == 0) given.shift[token] = shift, given.total[token] = total;
        if (given.prior_logit) {
            const float weight = power_of_two(logit - total);
            d_logit = fmaf(weight, row_sum<ACROSS>(with_value) - shift, d_logit);
#pragma unroll
            for (int e = 0; e < EACH; ++e) d_value[e] = fmaf(weight, up.x[e], d_value[e]);
        }
    }
    if (!given.prior_logit) return;
#pragma unroll
    for (int m = ACROSS; m < 32; m *= 2) {
        d_logit += __shfl_xor_sync(WARP, d_logit, m);
#pragma unroll
        for (int e = 0; e < EACH; ++e) d_value[e] += __shfl_xor_sync(WARP, d_value[e], m);
    }
    if (lane == 0) given.d_prior_logit[block] = d_logit;
    if (lane < ACROSS)
#pragma unroll
        for (int e = 0; e < EACH; ++e) given.d_prior_value[block * D + column + e] = d_value[e];
}
