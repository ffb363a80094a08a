// The entry point of block-sparse attention on a GPU.

#include "attention_forward.cuh"
#include "attention_kinds.cuh"

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
