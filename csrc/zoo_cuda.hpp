// The operators on a GPU: the arguments and the entry points, in plain C. Knows nothing of torch. Arrays are dense and
// on the device that is current; an entry point launches on `stream`, allocates nothing, waits for nothing, and returns 0
// or a cudaError. Nothing here is added up by atomics: the same bits come out every time.
#pragma once

#include "block_sparse.hpp"

extern "C" {

enum ZooNumber { ZOO_FLOAT32 = 0, ZOO_BFLOAT16 = 1, ZOO_FLOAT16 = 2 };

// D is 16, 32, 64 or 128, the block size 16, 32 or 64. What is `void` is of the type that `number` names; `blocks` (G, P, 2)
// is int64 if `wide`, else int32: sorted by query block, and empty pairs (K, 0) at the end.
struct ZooCudaForward {
    ZooShape shape;
    int number, wide;
    const void* blocks;
    const void *q, *k, *v;                   // (G, N, D)
    const uint8_t* mask;                     // (G, N), 1 = real, or null
    const float *prior_logit, *prior_value;  // (G, K) and (G, K, D), or null
    void* out;                               // (G, N, D)
    float* lse;                              // (G, N)
};

struct ZooCudaBackward {
    ZooShape shape;
    int number, wide;
    const void* blocks;
    const void *q, *k, *v, *out, *d_out;     // (G, N, D); what d_out holds where lse is -inf does not count
    const float *lse, *d_lse;                // (G, N); no d_lse: null
    const uint8_t* mask;
    const float *prior_logit, *prior_value;
    float *shift, *total;                    // (G, N), filled by the first phase for the second
    float *d_prior_logit, *d_prior_value;    // (G, K) and (G, K, D), filled by the first phase; null without priors
    const float* d_means;                    // (3, G, K, D) or null: what every real token of a block has besides
    void *d_q, *d_k, *d_v;                   // (G, N, D), filled by the second phase
};

// MRA-2's coarse part: attention of the means of the blocks, without the pairs that are computed exactly.
struct ZooCudaCoarse {
    ZooShape shape;
    int number, wide;
    const void* blocks;
    const void *q, *k, *v;                   // (G, N, D)
    const uint8_t* mask;
    float *means, *logs;                     // (3, G, K, D) of q, k, v; (G, K) base-2 logarithm of the real tokens, -inf for none
    float *prior_logit, *prior_value;        // (G, K), (G, K, D)
    // For the backward alone.
    const float *d_prior_logit, *d_prior_value;
    float* d_means;                          // (3, G, K, D), each divided by the real tokens of its block
};

// The logits by which blocks are chosen: means, products and sums in float64, rounded to float32 at the end.
struct ZooCudaLogits {
    ZooShape shape;                          // pairs and scale do not count
    int number;
    const void *q, *k;
    const uint8_t* mask;
    double root;                             // sqrt(D) of the head dimension before it was filled up with zeros
    double* means;                           // (2, G, K, D), for use on the way
    float* logits;                           // (G, K, K)
};

int zoo_cuda_forward(const ZooCudaForward*, void* stream);
// The first phase: shift, total, d_prior_logit, d_prior_value. The second: d_q, d_k, d_v.
int zoo_cuda_backward_prepare(const ZooCudaBackward*, void* stream);
int zoo_cuda_backward(const ZooCudaBackward*, void* stream);
// means and logs, from which the other two start.
int zoo_cuda_means(const ZooCudaCoarse*, void* stream);
// prior_logit and prior_value.
int zoo_cuda_coarse_forward(const ZooCudaCoarse*, void* stream);
// d_means.
int zoo_cuda_coarse_backward(const ZooCudaCoarse*, void* stream);
int zoo_cuda_logits(const ZooCudaLogits*, void* stream);
// The choice of attention_zoo/ops/block_choice.py; `lost` (G, K, K) for use on the way.
int zoo_cuda_choose(const ZooChoice*, uint32_t* lost, void* stream);
// What an error of an entry point is called.
const char* zoo_cuda_error(int error);
}
