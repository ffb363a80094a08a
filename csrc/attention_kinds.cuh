// Which kernel serves a call: by the type of its numbers and by D.
#pragma once

#include "attention_pairs.cuh"

namespace {

template <class N, int DIM>
struct Kind {
    using Number = N;
    static constexpr int D = DIM;
};

template <class Number, class Run>
int by_dim(int64_t dim, Run run) {
    switch (dim) {
        case 16: return run(Kind<Number, 16>());
        case 32: return run(Kind<Number, 32>());
        case 64: return run(Kind<Number, 64>());
        case 128: return run(Kind<Number, 128>());
    }
    return cudaErrorInvalidValue;
}

// Runs the kernel of this type and shape, if there is one.
template <class Run>
int by_kind(const ZooShape& shape, int number, Run run) {
    const int64_t size = shape.block_size;
    const bool served = size == 16 || size == 32 || size == 64;
    if (!served || shape.heads < 0 || shape.length < 0 || shape.length > INT32_MAX - 64 || shape.pairs < 0 ||
        shape.count != (shape.length + size - 1) / size)
        return cudaErrorInvalidValue;
    if (shape.heads == 0 || shape.length == 0) return cudaSuccess;
    switch (number) {
        case ZOO_FLOAT32: return by_dim<float>(shape.dim, run);
        case ZOO_BFLOAT16: return by_dim<BFloat16>(shape.dim, run);
        case ZOO_FLOAT16: return by_dim<Float16>(shape.dim, run);
    }
    return cudaErrorInvalidValue;
}

// Whether what is read in pieces of 16 bytes lies at a multiple of 16.
template <class... Pointers>
bool aligned(Pointers... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) | ...) & 15) == 0;
}

}  // namespace
