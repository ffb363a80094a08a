// Everything that only a GPU's compiler understands: instructions in PTX, memory shared by a block, launches. The tests
// replace this file, and this file alone, to run the kernels on a CPU (tests/cuda_shim/). Kernels use of CUDA besides:
// threadIdx.x, blockIdx.x, blockDim.x, __global__, __launch_bounds__, __syncthreads, __syncwarp, __shfl_sync,
// __shfl_xor_sync, __shfl_up_sync, __ballot_sync, __popc, __ffs, __clz, atomicAdd on integers in shared memory, and
// the types float2, float4, int2, int4, uint2, uint4. Grids and blocks have one dimension.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define DEVICE __device__ __forceinline__

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// The memory that `launch` gives to each block, aligned to 16 bytes. There is no other shared memory.
DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// 16 bytes from global to shared memory, both aligned to 16, behind the thread's back; zeros where not `real`, when
// `from` is not read.
DEVICE void copy_async(void* to, const void* from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}
// Ends a group of copies.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING groups of this thread are under way. Other threads see the copies after a barrier.
template <int PENDING>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers: lane 8 m + r holds the address of row r of matrix m. Lane i receives of each the
// numbers (i / 4, 2 (i % 4)) in the low and (i / 4, 2 (i % 4) + 1) in the high half.
DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of the transposed matrices: (2 (i % 4), i / 4) in the low and (2 (i % 4) + 1, i / 4) in the high half.
DEVICE void load_matrices_turned(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sum (16 x 8, float32) += a (16 x 16) b (16 x 8), by a whole warp. With g = lane / 4 and t = lane % 4, two numbers to
// a register of a and b, the lower column (of a) or row (of b) in the low half:
// a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..); b[0] (2t.., g), b[1] (2t + 8.., g);
// sum[0] (g, 2t), sum[1] (g, 2t + 1), sum[2] (g + 8, 2t), sum[3] (g + 8, 2t + 1).
template <class Number>
DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
DEVICE void multiply_add<BFloat16>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
DEVICE void multiply_add<Float16>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two numbers rounded to nearest, even where tied, `low` in the low half.
template <class Number>
DEVICE uint32_t packed(float low, float high);
template <>
DEVICE uint32_t packed<BFloat16>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
template <>
DEVICE uint32_t packed<Float16>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

DEVICE float widened(float x) { return x; }
DEVICE float widened(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float widened(Float16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}
template <class Number>
DEVICE Number rounded(float x) {
    return {static_cast<uint16_t>(packed<Number>(x, 0.0f))};
}
template <>
DEVICE float rounded<float>(float x) {
    return x;
}

// Keeps the compiler from working out ahead, and holding in registers, what follows from x.
DEVICE void compute_late(int& x) { asm volatile("" : "+r"(x)); }

// 2^x, at most 2 ulp off; 0 below 2^-126 and at -inf.
DEVICE float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// `kernel` with `blocks` blocks of `threads` threads and so many bytes of shared memory each. Returns 0 or a cudaError.
template <class... Given, class... Arguments>
int launch(void (*kernel)(Given...), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
           const Arguments&... arguments) {
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    if (shared_bytes > 48 << 10) {
        const cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (error != cudaSuccess) return error;
    }
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
    return cudaGetLastError();
}

inline const char* error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
