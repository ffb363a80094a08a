// Small kernels that show that the shim is what it stands for, and kernels that are wrong, each in one way.
#include <ptx.cuh>

namespace {

constexpr uint32_t WARP = 0xFFFFFFFFu;

// c (16, 8) += a (16, 16) b (16, 8), all dense.
template <class Number>
__global__ void multiply(const Number* a, const Number* b, float* c) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
    const auto two = [](Number low, Number high) { return low.bits | static_cast<uint32_t>(high.bits) << 16; };
    const auto of_a = [&](int row, int column) { return two(a[row * 16 + column], a[row * 16 + column + 1]); };
    const auto of_b = [&](int row, int column) { return two(b[row * 8 + column], b[(row + 1) * 8 + column]); };
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = c[(g + i / 2 * 8) * 8 + t + i % 2];
    const uint32_t left[4] = {of_a(g, t), of_a(g + 8, t), of_a(g, t + 8), of_a(g + 8, t + 8)};
    const uint32_t right[2] = {of_b(t, g), of_b(t + 8, g)};
    multiply_add<Number>(sum, left, right);
    for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + t + i % 2] = sum[i];
}

// Four matrices (4, 8, 8) to (32, 4, 2): what each lane gets of each.
__global__ void load(const uint16_t* matrices, uint32_t* to, bool turned) {
    auto* shared = reinterpret_cast<uint16_t*>(shared_memory());
    for (int i = threadIdx.x; i < 256; i += 32) shared[i] = matrices[i];
    __syncwarp();
    uint32_t got[4];
    if (turned) {
        load_matrices_turned(got, shared + threadIdx.x * 8);
    } else {
        load_matrices(got, shared + threadIdx.x * 8);
    }
    for (int j = 0; j < 4; ++j) to[threadIdx.x * 4 + j] = got[j];
}

template <class Number>
__global__ void round_all(const float* from, Number* to, int64_t size) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < size) to[i] = rounded<Number>(from[i]);
}

template <class Number>
__global__ void widen_all(const Number* from, float* to, int64_t size) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < size) to[i] = widened(from[i]);
}

__global__ void powers(const float* from, float* to, int64_t size) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < size) to[i] = power_of_two(from[i]);
}

// (6, 32): a lane's own number in, and what six exchanges give.
__global__ void exchange(int* to) {
    const int lane = threadIdx.x, own = lane * lane;
    to[lane] = __shfl_sync(WARP, own, (lane + 5) % 32);
    to[32 + lane] = __shfl_xor_sync(WARP, own, 9);
    to[64 + lane] = __shfl_up_sync(WARP, own, 3);
    to[96 + lane] = __shfl_sync(WARP, own, 2, 8);
    to[128 + lane] = static_cast<int>(__ballot_sync(WARP, lane % 3 == 0));
    to[160 + lane] = lane < 16 ? __shfl_xor_sync(0xFFFFu, own, 1) : -1;
}

// The threads of a block in the order in which they pass, twice: to (blocks, 2, threads).
__global__ void order(int* to) {
    auto* ticket = reinterpret_cast<int*>(shared_memory());
    if (threadIdx.x == 0) *ticket = 0;
    __syncthreads();
    for (int time = 0; time < 2; ++time) {
        to[blockIdx.x * 2 * blockDim.x + atomicAdd(ticket, 1)] = threadIdx.x;
        __syncthreads();
    }
}

// Halves of the copies are not real, and come from nowhere.
__global__ void copy(const float4* from, float4* to) {
    auto* shared = reinterpret_cast<float4*>(shared_memory());
    const bool real = threadIdx.x % 2 == 0;
    copy_async(shared + threadIdx.x, real ? from + threadIdx.x : nullptr, real);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    to[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// A value goes around by shared memory, a warp at a time in order.
__global__ void hand_around(int* to) {
    auto* shared = reinterpret_cast<int*>(shared_memory());
    shared[threadIdx.x] = threadIdx.x;
    __syncwarp();
    const int next = shared[threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32];
    __syncwarp();
    shared[threadIdx.x] = next;
    __syncthreads();
    to[threadIdx.x] = shared[(threadIdx.x + 32) % blockDim.x];
}

enum Fault {
    NO_BARRIER,
    NO_BARRIER_BEFORE_WRITE,
    NO_SYNCWARP,
    SHUFFLE_FOR_SYNCWARP,
    PART_OF_SYNCWARP,
    SOME_AT_BARRIER,
    TWO_BARRIERS,
    ENDED_AT_BARRIER,
    ENDED_IN_WARP,
    BARRIER_IN_WARP,
    TWO_MEETINGS,
    NOT_IN_MASK,
    FROM_OUTSIDE,
    READ_BEYOND,
    WRITE_BEYOND,
    WRITE_BEFORE,
    MISALIGNED_VECTOR,
    MISALIGNED_ROW,
    MISALIGNED_COPY,
    MISALIGNED_SOURCE,
    ROW_BEYOND,
    COPY_BEYOND,
    NO_WAIT,
    NO_COMMIT,
    WAIT_FOR_TOO_FEW,
    NO_BARRIER_AFTER_WAIT,
    COPY_OVER_READ,
    NEVER_WAITED,
    ATOMIC_AND_PLAIN,
    GLOBAL_BEYOND,
    GLOBAL_COPY_BEYOND,
    WRITE_TO_CONST,
    TWO_BLOCKS_WRITE,
    BLOCK_READS_ANOTHERS,
    THREADS_SHARE_GLOBAL,
    INTEGER_OVERFLOW,
    WIDE_SHIFT,
    LOCAL_BEYOND,
    TOO_DEEP,
};

__device__ __forceinline__ void use(float x, float* to) {
    if (x == 12345.0f) *to = x;
}

// 64 threads, 1024 bytes of shared memory, 256 numbers `from` and `to`. `given` is 0, which the compiler must not know.
__global__ void __launch_bounds__(64) wrong(Fault fault, const float* from, float* to, int given) {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    const int i = threadIdx.x, lane = i % 32;
    shared[i] = from[i];
    shared[64 + i] = shared[128 + i] = shared[192 + i] = 0.0f;
    if (fault != NO_BARRIER) __syncthreads();
    uint32_t got[4];
    switch (fault) {
        case NO_BARRIER:
            return use(shared[63 - i], to);
        case NO_BARRIER_BEFORE_WRITE: {
            const float other = shared[63 - i];
            shared[i] = other;
            return;
        }
        case NO_SYNCWARP:
            shared[i] = 1.0f;
            return use(shared[i ^ 1], to);
        case SHUFFLE_FOR_SYNCWARP:
            shared[i] = 1.0f;
            __shfl_xor_sync(WARP, i, 1);
            return use(shared[i ^ 1], to);
        case PART_OF_SYNCWARP:
            shared[i] = 1.0f;
            __syncwarp(lane < 16 ? 0xFFFFu : 0xFFFF0000u);
            return use(shared[i ^ 16], to);
        case SOME_AT_BARRIER:
            if (i < 32) __syncthreads();
            __shfl_xor_sync(WARP, i, 1);
            return;
        case TWO_BARRIERS:
            if (i < 32) {
                __syncthreads();
            } else {
                __syncthreads();
            }
            return;
        case ENDED_AT_BARRIER:
            if (i == 40) return;
            __syncthreads();
            return;
        case ENDED_IN_WARP:
            if (lane == 7) return;
            __syncwarp();
            return;
        case BARRIER_IN_WARP:
            if (lane == 7) __syncthreads();
            __ballot_sync(WARP, 1);
            return;
        case TWO_MEETINGS:
            if (lane == 7) {
                __syncwarp();
            } else {
                __ballot_sync(WARP, 1);
            }
            return;
        case NOT_IN_MASK:
            __shfl_xor_sync(0xFFFFu, i, 1);
            return;
        case FROM_OUTSIDE:
            if (lane < 16) __shfl_sync(0xFFFFu, i, 16);
            return;
        case READ_BEYOND:
            return use(shared[256 + i / 63 + given], to);
        case WRITE_BEYOND:
            shared_memory()[1023 + i / 63] = 1;
            return;
        case WRITE_BEFORE:
            shared[i - 1 + given] = 1.0f;
            return;
        case MISALIGNED_VECTOR:
            return use(reinterpret_cast<float4*>(shared + 1 + given)->x, to);
        case MISALIGNED_ROW:
            load_matrices(got, shared_memory() + lane * 16 + (lane == 3 ? 8 : 0));
            return;
        case MISALIGNED_COPY:
            copy_async(shared_memory() + i * 16 + (i == 3 ? 8 : 0), from, true);
            copy_commit();
            copy_wait<0>();
            return;
        case MISALIGNED_SOURCE:
            copy_async(shared + i * 4, from + 1, true);
            copy_commit();
            copy_wait<0>();
            return;
        case ROW_BEYOND:
            load_matrices(got, shared + (lane + 33) * 4);
            return;
        case COPY_BEYOND:
            copy_async(shared + 4 * (i + 1), from, true);
            copy_commit();
            copy_wait<0>();
            return;
        case NO_WAIT:
            copy_async(shared + 4 * i, from, true);
            copy_commit();
            use(shared[4 * i], to);
            copy_wait<0>();
            return;
        case NO_COMMIT:
            copy_async(shared + 4 * i, from, true);
            copy_wait<0>();
            use(shared[4 * i], to);
            return;
        case WAIT_FOR_TOO_FEW:
            copy_async(shared + 4 * i, from, true);
            copy_commit();
            copy_wait<1>();
            use(shared[4 * i], to);
            copy_wait<0>();
            return;
        case NO_BARRIER_AFTER_WAIT:
            copy_async(shared + 4 * i, from, true);
            copy_commit();
            copy_wait<0>();
            return use(shared[4 * (63 - i)], to);
        case COPY_OVER_READ:
            use(shared[4 * (63 - i)], to);
            copy_async(shared + 4 * i, from, true);
            copy_commit();
            copy_wait<0>();
            return;
        case NEVER_WAITED:
            copy_async(shared + 4 * i, from, true);
            copy_commit();
            return;
        case ATOMIC_AND_PLAIN:
            atomicAdd(reinterpret_cast<int*>(shared) + 64, 1);
            return use(shared[64], to);
        case GLOBAL_BEYOND:
            return use(from[193 + i], to);
        case GLOBAL_COPY_BEYOND:
            copy_async(shared + 4 * i, from + 196 + i / 4 * 4, true);
            copy_commit();
            copy_wait<0>();
            return;
        case WRITE_TO_CONST:
            const_cast<float*>(from)[i] = 1.0f;
            return;
        case TWO_BLOCKS_WRITE:
            to[i] = 1.0f;
            return;
        case BLOCK_READS_ANOTHERS:
            to[blockIdx.x * 64 + i] = 1.0f;
            return use(to[(1 - blockIdx.x) * 64 + i], to);
        case THREADS_SHARE_GLOBAL:
            to[blockIdx.x * 64 + i] = 1.0f;
            return use(to[blockIdx.x * 64 + (i ^ 32)], to);
        case INTEGER_OVERFLOW:
            return use(from[((1 << 30) + given) * (2 + i / 64) == i], to);
        case WIDE_SHIFT:
            return use(1u << (32 + given), to);
        case LOCAL_BEYOND: {
            float own[4] = {from[0], from[1], from[2], from[3]};
            return use(own[4 + given], to);
        }
        case TOO_DEEP:
            return;
    }
}

__global__ void deep(float* to, int given) {
    volatile char much[1 << 19];
    much[given] = 1;
    use(much[given], to);
}

template <class From, class To>
int over(void (*kernel)(const From*, To*, int64_t), const void* from, void* to, int64_t size) {
    const int64_t blocks = (size + 255) / 256;
    return launch(kernel, blocks, 256, 0, nullptr, static_cast<const From*>(from), static_cast<To*>(to), size);
}

}  // namespace

extern "C" {
int check_multiply(const void* a, const void* b, float* c, int bfloat16) {
    const auto run = [&](auto* left) {
        using Number = std::remove_pointer_t<decltype(left)>;
        return launch(multiply<std::remove_const_t<Number>>, 1, 32, 0, nullptr, left, static_cast<Number*>(b), c);
    };
    return bfloat16 ? run(static_cast<const BFloat16*>(a)) : run(static_cast<const Float16*>(a));
}
int check_load(const uint16_t* matrices, uint32_t* to, int turned) {
    return launch(load, 1, 32, 512, nullptr, matrices, to, turned);
}
int check_round(const float* from, void* to, int64_t size, int bfloat16) {
    return bfloat16 ? over(round_all<BFloat16>, from, to, size) : over(round_all<Float16>, from, to, size);
}
int check_widen(const void* from, float* to, int64_t size, int bfloat16) {
    return bfloat16 ? over(widen_all<BFloat16>, from, to, size) : over(widen_all<Float16>, from, to, size);
}
int check_powers(const float* from, float* to, int64_t size) { return over(powers, from, to, size); }
int check_exchange(int* to) { return launch(exchange, 1, 32, 0, nullptr, to); }
int check_order(int* to, int64_t blocks, int threads) { return launch(order, blocks, threads, 4, nullptr, to); }
int check_copy(const float4* from, float4* to, int threads) {
    return launch(copy, 1, threads, 16 * threads, nullptr, from, to);
}
int check_hand_around(int* to, int threads) { return launch(hand_around, 1, threads, 4 * threads, nullptr, to); }
int check_wrong(int fault, const float* from, float* to) {
    if (fault == TOO_DEEP) return launch(deep, 2, 64, 0, nullptr, to, 0);
    return launch(wrong, 2, 64, 1024, nullptr, static_cast<Fault>(fault), from, to, 0);
}
int check_launch(int64_t blocks, int threads, int64_t shared_bytes) {
    return launch(hand_around, blocks, threads, shared_bytes, nullptr, static_cast<int*>(nullptr));
}
}
