#include "coarse.cuh"

#include "block_means.cuh"

namespace {

// What every GPU since sm_80 has for one block of threads, and so many blocks that none of them is idle.
constexpr int64_t SHARED_BYTES = 99 << 10, BLOCKS = 256;

template <int D, bool BACKWARD>
int launch_coarse(const ZooCudaCoarse& p, void* stream) {
    const int64_t items = p.shape.heads * (BACKWARD ? 2 : 1);
    // Larger tiles read the means less often.
    for (int warps = 8;; warps /= 2) {
        const int64_t rows = warps * 2 * R<D>, blocks = (p.shape.count + rows - 1) / rows * items;
        const int64_t bytes = BACKWARD ? backward_bytes<D>(rows) : forward_bytes<D>(rows);
        if (warps == 2 || (blocks >= BLOCKS && bytes <= SHARED_BYTES))
            return launch(BACKWARD ? coarse_backward<D> : coarse_forward<D>, blocks, 32 * warps, bytes, stream, p);
    }
}

template <bool BACKWARD>
int coarse(const ZooCudaCoarse& p, void* stream) {
    if (!served(p.shape, p.number) || p.shape.pairs < 0) return cudaErrorInvalidValue;
    if (p.shape.dim == 16) return launch_coarse<16, BACKWARD>(p, stream);
    if (p.shape.dim == 32) return launch_coarse<32, BACKWARD>(p, stream);
    if (p.shape.dim == 64) return launch_coarse<64, BACKWARD>(p, stream);
    return launch_coarse<128, BACKWARD>(p, stream);
}

}  // namespace

extern "C" int zoo_cuda_means(const ZooCudaCoarse* p, void* stream) {
    if (!served(p->shape, p->number)) return cudaErrorInvalidValue;
    const auto& shape = p->shape;
    const Tokens tokens = {{p->q, p->k, p->v}, 3, p->mask, shape.length, shape.block_size, shape.count,
                           shape.heads * shape.count, p->means, p->logs};
    return launch_means<float>(tokens, p->number, shape.dim, stream);
}

extern "C" int zoo_cuda_coarse_forward(const ZooCudaCoarse* p, void* stream) { return coarse<false>(*p, stream); }

extern "C" int zoo_cuda_coarse_backward(const ZooCudaCoarse* p, void* stream) { return coarse<true>(*p, stream); }
