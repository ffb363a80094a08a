// The entry points of its gradients.

#include <algorithm>

#include "attention_backward.cuh"
#include "attention_kinds.cuh"
#include "attention_prepare.cuh"

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
