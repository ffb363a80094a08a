// Which tiles a block of threads walks through: the key blocks of a query block, or the query blocks of a key block,
// and the walk itself, two stages deep.
#pragma once

#include "attention_tiles.cuh"

// The pairs of one head.
struct Pairs {
    const void* blocks;
    int64_t size;
    int wide, head;

    // (query block, key block)
    DEVICE int2 operator()(int64_t i) const {
        const int64_t at = head * size + i;
        if (!wide) return static_cast<const int2*>(blocks)[at];
        const int4 pair = static_cast<const int4*>(blocks)[at];
        return {pair.x, pair.z};
    }
};

// The key blocks of one query block, up to 32 at a time, one in each lane.
struct RowKeys {
    Pairs pairs;
    int block, key;
    int64_t next;  // or -1 at the end

    // Finds the first pair among the sorted ones, 32 probes at a time.
    DEVICE RowKeys(const Pairs& given, int block, int lane) : pairs(given), block(block), key(0), next(0) {
#pragma unroll 1
        for (int64_t size = pairs.size; size > 0;) {
            const int64_t end = next + size, step = (size + 31) / 32, probe = next + (lane + 1) * step - 1;
            const bool before = probe < end && pairs(probe).x < block;
            next += __popc(__ballot_sync(WARP, before)) * step;
            size = min(step - 1, end - next);
        }
    }

    // How many it is this time.
    DEVICE int batch(int lane) {
        if (next < 0) return 0;
        compute_late(pairs.head);
        const int2 pair = next + lane < pairs.size ? pairs(next + lane) : int2{-1, 0};
        key = pair.y;
        const int count = __popc(__ballot_sync(WARP, pair.x == block));
        next = count == 32 ? next + 32 : -1;
        return count;
    }
    DEVICE int operator()(int i) const { return __shfl_sync(WARP, key, i); }
};

// The query blocks of one key block, in order, up to ROOM at a time. All threads go through the pairs together, each
// warp through 128 in a row, and leave what they find in shared memory.
struct ColumnQueries {
    static constexpr int ROOM = 256, UNROLLED = 4, BYTES = (ROOM + 16) * 4;
    Pairs pairs;
    int block, count;
    int64_t next;
    int* found;  // (ROOM), then what each warp has found, then where to go on

    DEVICE ColumnQueries(const Pairs& given, int block, int64_t count, unsigned char* room)
        : pairs(given), block(block), count(static_cast<int>(count)), next(0), found(reinterpret_cast<int*>(room)) {}

    DEVICE int batch(int lane) {
        int *const by_warp = found + ROOM, *const rest = by_warp + 8;
        const int warps = blockDim.x / 32, window = 32 * UNROLLED;
        int warp = threadIdx.x / 32, filled = 0;
        compute_late(warp), compute_late(pairs.head);
        __syncthreads();
        while (filled < ROOM && next < pairs.size) {
            int query[UNROLLED];
            uint32_t hits[UNROLLED];
            const int own = warp * window + lane;
#pragma unroll
            for (int u = 0; u < UNROLLED; ++u) {
                const int64_t i = next + own + 32 * u;
                const int2 pair = i < pairs.size ? pairs(i) : int2{count, -1};
                query[u] = pair.x;
                hits[u] = pair.y == block && pair.x < count;
            }
            int here = 0;
#pragma unroll
            for (int u = 0; u < UNROLLED; ++u) here += __popc(hits[u] = __ballot_sync(WARP, hits[u]));
            // Empty pairs are the last ones.
            const bool ended = __ballot_sync(WARP, query[UNROLLED - 1] >= count) != 0;
            if (lane == 0) by_warp[warp] = 2 * here + ended;
            __syncthreads();
            int place = filled, all = 0;
            bool last = false;
#pragma unroll 1
            for (int w = 0; w < warps; ++w) {
                const int of_warp = by_warp[w];
                if (w < warp) place += of_warp / 2;
                all += of_warp / 2;
                last = last || of_warp % 2;
            }
#pragma unroll
            for (int u = 0; u < UNROLLED; ++u) {
                if (hits[u] >> lane & 1) {
                    const int to = place + __popc(hits[u] & ((1u << lane) - 1));
                    if (to < ROOM) found[to] = query[u];
                    if (to == ROOM) *rest = own + 32 * u;
                }
                place += __popc(hits[u]);
            }
            __syncthreads();
            filled += all;
            next = filled > ROOM ? next + *rest : last ? pairs.size : next + warps * window;
        }
        return min(filled, ROOM);
    }
    DEVICE int operator()(int i) const { return found[i]; }
};

// Asks for the rows first.. of x, a thread's pieces of 16 bytes at a time; zeros for those beyond `length`. Each 16
// rows start `group` bytes after those before.
template <class Number, int D>
DEVICE void ask_rows(unsigned char* to, int group, const Number* x, int first, int rows, int length) {
    constexpr int EACH = PIECES<Number, D>;
    const int piece = threadIdx.x % EACH;
#pragma unroll 1
    for (int row = threadIdx.x / EACH; row < rows; row += blockDim.x / EACH)
        copy_async(to + row / 16 * group + row % 16 * STRIDE<Number, D> + 16 * piece,
                   x + static_cast<int64_t>(first + row) * D + piece * Piece<Number>::EACH, first + row < length);
}

// Two stages of two arrays of TILE rows.
template <class Number, int D, int TILE>
struct Stages {
    static constexpr int ONE = TILE * STRIDE<Number, D>, BYTES = 4 * ONE, GROUPS = TILE / 16;
    unsigned char* at;
    int now;

    DEVICE unsigned char* first() const { return at + 2 * now * ONE; }
    DEVICE unsigned char* second() const { return first() + ONE; }

    // The rows of a tile come in groups of 16, each at a place of its own.
    DEVICE void ask(int stage, const Number* x, const Number* y, const int (&group)[GROUPS], int length) const {
        constexpr int EACH = PIECES<Number, D>;
        unsigned char* const to = at + 2 * stage * ONE;
        const int piece = threadIdx.x % EACH;
#pragma unroll 1
        for (int row = threadIdx.x / EACH; row < TILE; row += blockDim.x / EACH) {
            const int token = (row < 16 ? group[0] : group[GROUPS - 1]) + row % 16;
            const bool real = static_cast<unsigned>(token) < static_cast<unsigned>(length);
            const int64_t from = static_cast<int64_t>(token) * D + piece * Piece<Number>::EACH;
            copy_async(to + row * STRIDE<Number, D> + 16 * piece, x + from, real);
            copy_async(to + ONE + row * STRIDE<Number, D> + 16 * piece, y + from, real);
        }
    }

    // Walks through all tokens of all blocks of the list, TILE at a time, of the arrays work.x() and work.y().
    // `work.ask(token)` is told the token of the lane's row of the next tile, at or beyond `length` where there is
    // none; `work.arrive(stage)` runs before and `work.see()` after the barrier that makes a tile visible, and
    // `work.use()` computes with it while the next tile is on its way.
    template <class List, class Work>
    DEVICE void walk(List& list, Work& work, int block_size, int length, int lane) {
        // log2 of the groups in a block.
        const int shift = block_size / 32;
#pragma unroll 1
        while (const int blocks = list.batch(lane)) {
            const int groups = blocks << shift;
            const auto request = [&](int at, int stage) {
                int group[GROUPS];
#pragma unroll
                for (int e = 0; e < GROUPS; ++e) {
                    const int block = list(min(at + e, groups - 1) >> shift);
                    group[e] = at + e < groups ? block * block_size + ((at + e) & ((1 << shift) - 1)) * 16 : length;
                }
                ask(stage, work.x(), work.y(), group, length);
                copy_commit();
                work.ask((lane < 16 ? group[0] : group[GROUPS - 1]) + lane % 16);
            };
            request(0, now);
#pragma unroll 1
            for (int at = 0; at < groups; at += GROUPS) {
                copy_wait<0>();
                work.arrive(now);
                __syncthreads();
                work.see();
                if (at + GROUPS < groups) request(at + GROUPS, now ^ 1);
                work.use();
                now ^= 1;
            }
        }
    }
};
