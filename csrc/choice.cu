#include "choice.cuh"

#include "block_logits.cuh"
#include "block_means.cuh"

extern "C" int zoo_cuda_logits(const ZooCudaLogits* p, void* stream) {
    if (!served(p->shape, p->number)) return cudaErrorInvalidValue;
    const auto& shape = p->shape;
    const int64_t items = shape.heads * shape.count;
    const Tokens tokens = {{p->q, p->k}, 2, p->mask, shape.length, shape.block_size, shape.count, items, p->means,
                           nullptr};
    if (const int error = launch_means<double>(tokens, p->number, shape.dim, stream)) return error;
    const auto products = [&](auto kernel, int64_t side) {
        const int64_t tiles = (shape.count + side - 1) / side;
        return launch(kernel, shape.heads * tiles * tiles, 256, 2 * side * 33 * 8, stream, p->means, items * shape.dim,
                      shape.count, static_cast<int>(shape.dim), p->root, p->logits);
    };
    // Large tiles read less, small ones keep a GPU busy with few blocks.
    const int64_t tiles = (shape.count + 63) / 64;
    return shape.heads * tiles * tiles < 512 ? products(block_products<2>, 32) : products(block_products<4>, 64);
}

extern "C" int zoo_cuda_choose(const ZooChoice* p, uint32_t* lost, void* stream) {
    // A place in K x K has 32 bits.
    if (p->heads < 0 || p->count < 0 || p->count > 65535 || p->most < 0 || p->first_blocks < 0 ||
        p->diagonal_blocks < 0 || p->room < p->most + (p->fill ? p->count : 0))
        return cudaErrorInvalidValue;
    if (p->count == 0) return cudaSuccess;
    // As much shared memory as every GPU since sm_80 has for one block of threads.
    const int64_t bytes = choice_bytes(p->count), ranks = 4 * p->count * (p->count + 1);
    const bool in_shared = bytes + ranks <= 99 << 10;
    // Small blocks share a multiprocessor where there are more heads than those.
    const int threads = p->heads > 128 ? 512 : 1024;
    return launch(choose, p->heads, threads, bytes + (in_shared ? ranks : 0), stream, *p, lost, in_shared);
}

extern "C" const char* zoo_cuda_error(int error) { return error_name(error); }
