#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA zoo_avx2
#define LANES 8
#include "block_sparse_isa.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
