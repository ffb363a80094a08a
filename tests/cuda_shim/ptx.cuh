// csrc/ptx.cuh for a CPU: the same names, so that the kernels compile as C++ and run in machine.cpp, which stands in
// for a GPU and for its sanitizers. There is no more of CUDA than the kernels may use.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DEVICE inline

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
};

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Place { unsigned x, y, z; };
extern Place threadIdx, blockIdx, blockDim, gridDim;

namespace machine {

// Where in a kernel's source something is called.
struct Site {
    const char* file;
    int line;
};
#define SITE machine::Site site = {__builtin_FILE(), __builtin_LINE()}

enum Meeting { SYNC, SHUFFLE, BALLOT, LOAD, LOAD_TURNED, MULTIPLY_BFLOAT16, MULTIPLY_FLOAT16 };

// Ends the launch with an error that names the block, the thread and the place.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

int run(void (*body)(const void*), const void* given, int64_t blocks, int64_t threads, int64_t shared_bytes);
unsigned char* shared();
void barrier(Site site);
// Waits for all lanes of `mask`; the last one does the work of all, each of whom has left `given`.
void meet(Meeting what, uint32_t mask, void* given, Site site);
void copy(void* to, const void* from, bool real, Site site);
void commit();
void wait(int pending, Site site);
int add(int* to, int more, Site site);

struct Shuffle {
    uint64_t value;
    int lane;  // whose value is wanted
    Site site;
};
struct Ballot {
    bool vote;
    uint32_t votes;
};
struct Load {
    const void* row;
    uint32_t* to;
    Site site;
};
struct Multiply {
    float* sum;
    const uint32_t *a, *b;
};

template <class T>
T shuffled(uint32_t mask, T x, int lane, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes exchange 4 or 8 bytes");
    Shuffle given = {0, lane, site};
    std::memcpy(&given.value, &x, sizeof(T));
    meet(SHUFFLE, mask, &given, site);
    std::memcpy(&x, &given.value, sizeof(T));
    return x;
}
inline int lane() { return static_cast<int>(threadIdx.x % 32); }

uint16_t to_bfloat16(float x);
uint16_t to_float16(float x);
float from_float16(uint16_t x);

}  // namespace machine

inline void __syncthreads(SITE) { machine::barrier(site); }
inline void __syncwarp(uint32_t mask = 0xFFFFFFFF, SITE) { machine::meet(machine::SYNC, mask, nullptr, site); }
template <class T>
T __shfl_sync(uint32_t mask, T x, int from, int width = 32, SITE) {
    const int lane = machine::lane();
    return machine::shuffled(mask, x, (lane & -width) + (from & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T x, int bits, int width = 32, SITE) {
    const int lane = machine::lane(), from = lane ^ bits;
    return machine::shuffled(mask, x, from < (lane & -width) + width ? from : lane, site);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T x, unsigned by, int width = 32, SITE) {
    const int lane = machine::lane(), from = lane - static_cast<int>(by);
    return machine::shuffled(mask, x, from < (lane & -width) ? lane : from, site);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T x, unsigned by, int width = 32, SITE) {
    const int lane = machine::lane(), from = lane + static_cast<int>(by);
    return machine::shuffled(mask, x, from < (lane & -width) + width ? from : lane, site);
}
inline uint32_t __ballot_sync(uint32_t mask, int vote, SITE) {
    machine::Ballot given = {vote != 0, 0};
    machine::meet(machine::BALLOT, mask, &given, site);
    return given.votes;
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int atomicAdd(int* to, int more, SITE) { return machine::add(to, more, site); }
inline unsigned atomicAdd(unsigned* to, unsigned more, SITE) {
    return static_cast<unsigned>(machine::add(reinterpret_cast<int*>(to), static_cast<int>(more), site));
}

namespace machine {
template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "one size");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace machine
inline uint32_t __float_as_uint(float x) { return machine::same_bits<uint32_t>(x); }
inline int __float_as_int(float x) { return machine::same_bits<int>(x); }
inline float __uint_as_float(uint32_t x) { return machine::same_bits<float>(x); }
inline float __int_as_float(int x) { return machine::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return machine::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return machine::same_bits<double>(x); }

inline int min(int x, int y) { return x < y ? x : y; }
inline int max(int x, int y) { return x > y ? x : y; }
inline unsigned min(unsigned x, unsigned y) { return x < y ? x : y; }
inline unsigned max(unsigned x, unsigned y) { return x > y ? x : y; }
inline int64_t min(int64_t x, int64_t y) { return x < y ? x : y; }
inline int64_t max(int64_t x, int64_t y) { return x > y ? x : y; }

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

DEVICE unsigned char* shared_memory() { return machine::shared(); }

DEVICE void copy_async(void* to, const void* from, bool real, SITE) { machine::copy(to, from, real, site); }
DEVICE void copy_commit() { machine::commit(); }
template <int PENDING>
DEVICE void copy_wait(SITE) {
    machine::wait(PENDING, site);
}

DEVICE void load_matrices(uint32_t (&to)[4], const void* row, SITE) {
    machine::Load given = {row, to, site};
    machine::meet(machine::LOAD, 0xFFFFFFFF, &given, site);
}
DEVICE void load_matrices_turned(uint32_t (&to)[4], const void* row, SITE) {
    machine::Load given = {row, to, site};
    machine::meet(machine::LOAD_TURNED, 0xFFFFFFFF, &given, site);
}

template <class Number>
DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SITE);
template <>
DEVICE void multiply_add<BFloat16>(
    float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], machine::Site site) {
    machine::Multiply given = {sum, a, b};
    machine::meet(machine::MULTIPLY_BFLOAT16, 0xFFFFFFFF, &given, site);
}
template <>
DEVICE void multiply_add<Float16>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], machine::Site site) {
    machine::Multiply given = {sum, a, b};
    machine::meet(machine::MULTIPLY_FLOAT16, 0xFFFFFFFF, &given, site);
}

template <class Number>
DEVICE uint32_t packed(float low, float high);
template <>
DEVICE uint32_t packed<BFloat16>(float low, float high) {
    return machine::to_bfloat16(low) | static_cast<uint32_t>(machine::to_bfloat16(high)) << 16;
}
template <>
DEVICE uint32_t packed<Float16>(float low, float high) {
    return machine::to_float16(low) | static_cast<uint32_t>(machine::to_float16(high)) << 16;
}

DEVICE float widened(float x) { return x; }
DEVICE float widened(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float widened(Float16 x) { return machine::from_float16(x.bits); }
template <class Number>
DEVICE Number rounded(float x) {
    return {static_cast<uint16_t>(packed<Number>(x, 0.0f))};
}
template <>
DEVICE float rounded<float>(float x) {
    return x;
}

DEVICE void compute_late(int&) {}

DEVICE float power_of_two(float x) {
    const float power = std::exp2(x);
    return power < 0x1p-126f ? 0.0f : power;
}

template <class... Given, class... Arguments>
int launch(void (*kernel)(Given...), int64_t blocks, int threads, int64_t shared_bytes, void*,
           const Arguments&... arguments) {
    // As on a GPU, the kernel has copies of its arguments, which are of its parameters' types.
    struct Call {
        void (*kernel)(Given...);
        std::tuple<Given...> arguments;
    };
    const Call call = {kernel, {arguments...}};
    const auto body = [](const void* given) {
        const auto* call = static_cast<const Call*>(given);
        std::apply(call->kernel, call->arguments);
    };
    return machine::run(body, &call, blocks, threads, shared_bytes);
}

extern "C" {
// The order of blocks and threads from now on.
void cuda_shim_seed(uint64_t seed);
// What the last launch that failed did wrong.
const char* cuda_shim_error();
// Kernels may touch these arrays, and nothing else once there is one: found where kernels are compiled with
// -fsanitize=thread.
void cuda_shim_array(const char* name, const void* begin, int64_t bytes, int64_t element, int writable);
void cuda_shim_forget_arrays();
}

inline const char* error_name(int error) { return error == cudaSuccess ? "no error" : cuda_shim_error(); }
