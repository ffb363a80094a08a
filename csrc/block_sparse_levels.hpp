// The kernels of each instruction set, for block_sparse_cpu.cpp to choose from.
#pragma once

#include "block_sparse.hpp"
#include "dropout.hpp"

struct ZooKernels {
    void (*forward)(const ZooForward&, int64_t, int64_t);
    void (*shift)(const ZooBackward&, int64_t, int64_t);
    void (*heads)(const ZooBackward&, int64_t, int64_t);
    void (*rows)(const ZooBackward&, int64_t, int64_t);
    void (*columns)(const ZooBackward&, int64_t, int64_t);
    void (*coarse_means)(const ZooCoarse&, int64_t, int64_t);
    void (*coarse_forward)(const ZooCoarse&, int64_t, int64_t);
    void (*coarse_backward)(const ZooCoarse&, int64_t, int64_t);
    void (*block_logits)(const ZooCoarse&, float*, int64_t, int64_t);
    void (*powers)(const float*, float*, int64_t);
    void (*dropout)(const ZooDropout&, int64_t, int64_t);
};

extern const ZooKernels zoo_portable;
#if defined(__x86_64__)
extern const ZooKernels zoo_avx2, zoo_avx512;
#endif
