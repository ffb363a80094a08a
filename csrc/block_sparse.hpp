// Block-sparse attention on a CPU: the arguments and the entry points, in plain C. Knows nothing of torch.
#pragma once

#include <cstdint>

extern "C" {

// G heads of N tokens and D dimensions, D a multiple of 16; K = ceil(N / block_size) blocks. All arrays are dense.
struct ZooShape {
    int64_t heads, length, dim, block_size, count, pairs;
    // 1 / sqrt(D) of the head dimension before it was filled up with zeros.
    float scale;
};

// The pairs of every head, by query block and by key block.
struct ZooPairs {
    const int32_t* row_start;     // (G, K + 1): the pairs of query block x are row_start[x] .. row_start[x + 1]
    const int32_t* keys;          // (G, P) the key block of each pair
    const int32_t* column_start;  // (G, K + 1), or null
    const int32_t* queries;       // (G, P) the query block of each pair by key block, ascending, or null
};

// Dropout of the weights: 16 random bits of a pair below `threshold` drop it, and the others are multiplied by `scale`.
// threshold = 0: none. It takes blocks of 64 tokens.
struct ZooDrop {
    uint64_t seed;
    uint32_t threshold;
    float scale;
};

struct ZooForward {
    ZooShape shape;
    ZooPairs pairs;
    const float *q, *k, *v;                   // (G, N, D)
    const uint8_t* mask;                      // (G, N), 1 = real, or null
    const float *prior_logit, *prior_value;   // (G, K) and (G, K, D), or null
    float *out, *lse;                         // (G, N, D), (G, N)
    ZooDrop drop;
};

// d_out is 0 where lse is -inf. `shift` and `total` are filled by the first phase for the others.
struct ZooBackward {
    ZooShape shape;
    ZooPairs pairs;
    const float *q, *k, *v, *out, *lse, *d_out, *d_lse;
    const uint8_t* mask;
    const float *prior_logit, *prior_value;
    float *shift, *total;                     // (G, N)
    float *d_q, *d_k, *d_v, *d_prior_logit, *d_prior_value;
    ZooDrop drop;
};

// MRA-2's coarse part: the same attention one level up, where a token is the mean of a block, a key weighs as much as
// its block has real tokens, and the pairs that are computed exactly are left out. Its result is the virtual keys.
struct ZooCoarse {
    ZooShape shape;                           // of the tokens
    ZooPairs pairs;                           // by query block
    const float *q, *k, *v;
    const uint8_t* mask;
    float* means;                             // (3, G, K, D) of q, k, v; 0 where no token is real
    float* logs;                              // (G, K) base-2 logarithm of the real tokens, -inf where there is none
    float *prior_logit, *prior_value;
    double root;                              // sqrt(D) of the head dimension before it was filled up with zeros
    // For the backward alone.
    const float *d_prior_logit, *d_prior_value;
    float *shift, *total;                     // (G, K), filled on the way
    float* d_means;                           // (3, G, K, D)
    float *d_q, *d_k, *d_v;                   // the gradients of the means are added to these
};

// The instructions to use: 0 portable, 1 AVX2 with FMA, 2 AVX-512. zoo_best() is the highest that this machine has.
int zoo_best(void);

// Sorts the pairs: blocks (G, P, 2) as in zoo::block_sparse_attention, `column_start` and `queries` may be null.
// Heads begin..end. Returns -1, or the place head * P + pair of one that is outside 0..K, out of order or there twice.
int64_t zoo_sort_pairs(const ZooShape*, const void* blocks, int wide, int32_t* row_start, int32_t* keys,
                       int32_t* column_start, int32_t* queries, int64_t begin, int64_t end);

// Query blocks begin..end of the G K of all heads.
void zoo_forward(const ZooForward*, int level, int64_t begin, int64_t end);
// The first phase, for tokens begin..end of the G N of all heads.
void zoo_backward_shift(const ZooBackward*, int level, int64_t begin, int64_t end);
// Then either everything for whole heads begin..end, or rows (d_q and the priors) and columns (d_k, d_v) of all heads
// each on its own. Both ways give the same bits.
void zoo_backward_heads(const ZooBackward*, int level, int64_t begin, int64_t end);
void zoo_backward_rows(const ZooBackward*, int level, int64_t begin, int64_t end);
void zoo_backward_columns(const ZooBackward*, int level, int64_t begin, int64_t end);

// Query blocks begin..end of the G K of all heads: means and logs.
void zoo_coarse_means(const ZooCoarse*, int level, int64_t begin, int64_t end);
// Heads begin..end: prior_logit and prior_value from the means, and the gradients from theirs.
void zoo_coarse_forward(const ZooCoarse*, int level, int64_t begin, int64_t end);
void zoo_coarse_backward(const ZooCoarse*, int level, int64_t begin, int64_t end);

// The logits by which blocks are chosen, (G, K, K), for heads begin..end: means, products and sums in float64, rounded
// to float32 at the end. Uses shape, q, k and mask.
void zoo_block_logits(const ZooCoarse*, int level, float* logits, int64_t begin, int64_t end);

// The choice of attention_zoo/selection.py for heads begin..end.
struct ZooChoice {
    int64_t heads, count, first_blocks, diagonal_blocks, most, room;
    const float* logits;     // (G, K, K)
    const uint8_t* real;     // (G, K)
    const int64_t* budget;   // (G,)
    int64_t* pairs;          // (G, room, 2), sorted, empty pairs (K, 0) at the end
    int fill;                // whether a real query block without a pair gets its best one beyond the budget
};
void zoo_choose(const ZooChoice*, int64_t begin, int64_t end);

// out[i] = 2^x[i], as the kernels compute it.
void zoo_exp2(const float* x, float* out, int level, int64_t size);
}
