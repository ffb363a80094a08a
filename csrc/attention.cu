// The entry points of block-sparse attention on a GPU.
#include <algorithm>

#include "attention_backward.cuh"
#include "attention_forward.cuh"
#include "attention_prepare.cuh"

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

int zoo_cuda_forward(const ZooCudaForward* given, void* stream) {
    if (!aligned(given->q, given->k, given->v, given->out, given->blocks)) return cudaErrorInvalidValue;
    const ZooShape& shape = given->shape;
    return by_kind(shape, given->number, [&](auto kind) {
        using Number = typename decltype(kind)::Number;
        constexpr int D = decltype(kind)::D;
        return launch(attention_forward<Number, D>, shape.heads * shape.count, static_cast<int>(2 * shape.block_size),
                      Forward<Number, D>::bytes(shape.block_size), stream, *given);
    });
}

int zoo_cuda_backward_prepare(const ZooCudaBackward* given, void* stream) {
    if (!aligned(given->out, given->d_out)) return cudaErrorInvalidValue;
    const ZooShape& shape = given->shape;
    return by_kind(shape, given->number, [&](auto kind) {
        using Number = typename decltype(kind)::Number;
        constexpr int D = decltype(kind)::D;
        return launch(attention_prepare<Number, D>, (shape.heads * shape.count + 3) / 4, 128, 0, stream, *given);
    });
}

int zoo_cuda_backward(const ZooCudaBackward* given, void* stream) {
    if (!aligned(given->q, given->k, given->v, given->d_out, given->d_q, given->d_k, given->d_v, given->blocks))
        return cudaErrorInvalidValue;
    const ZooShape& shape = given->shape;
    return by_kind(shape, given->number, [&](auto kind) {
        using Number = typename decltype(kind)::Number;
        using Work = Backward<Number, decltype(kind)::D>;
        const int64_t rows = std::min<int64_t>(shape.block_size, Work::MOST), parts = shape.block_size / rows;
        return launch(attention_backward<Number, Work::D>, 2 * shape.heads * shape.count * parts,
                      static_cast<int>(rows / 16 * Work::WARPS * 32), Work::bytes(rows), stream, *given);
    });
}
