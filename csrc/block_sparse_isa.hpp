// Block-sparse attention for one instruction set: a source file defines ISA and LANES and includes this one, after a
// pragma that allows the instructions. Everything stays inside that file but the table of entry points `ISA`.
#pragma once

#include "block_sparse_coarse.hpp"
#include "block_sparse_levels.hpp"
#include "philox_lanes.hpp"

namespace {

static void powers(const float* x, float* out, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) {
        alignas(64) float some[LANES] = {};
        for (int64_t j = 0; j < LANES && i + j < size; ++j) some[j] = x[i + j];
        store(some, exp2(load(some)));
        for (int64_t j = 0; j < LANES && i + j < size; ++j) out[i + j] = some[j];
    }
}

static void run_forward(const ZooForward& p, int64_t begin, int64_t end) { forward<false>(p, nullptr, begin, end); }

static void run_rows(const ZooBackward& p, int64_t begin, int64_t end) {
    backward_rows<false, false>(p, nullptr, begin, end);
}

static void run_heads(const ZooBackward& p, int64_t begin, int64_t end) {
    backward_rows<true, false>(p, nullptr, begin * p.shape.count, end * p.shape.count);
}

}  // namespace

const ZooKernels ISA = {run_forward,  shift,          run_heads,       run_rows,     backward_columns,
                        coarse_means, coarse_forward, coarse_backward, block_logits, powers,
                        dropout};
