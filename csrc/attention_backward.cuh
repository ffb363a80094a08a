// d_q by query blocks, d_k and d_v by key blocks. A block of threads keeps rows of two arrays and streams tiles of two
// others.
#pragma once

#include "attention_pairs.cuh"

template <class Number, int DIM>
struct Backward {
    static constexpr int D = DIM;
    static constexpr bool WIDE = sizeof(Number) * D > 256;
    // Float32 tiles of 128 dimensions are halved, and the rows of a block of threads too, to fit into 99 KiB.
    static constexpr int TILE = WIDE ? 16 : 32;
    static constexpr int STEP = D * sizeof(Number) >= 128 ? 16 : 32;
    static constexpr int MOST = WIDE ? 32 : 64;
    // With many dimensions two warps share 16 rows: of d_q each has half the keys, of d_k and d_v each has one.
    static constexpr int WARPS = D * sizeof(Number) >= 256 ? 2 : 1;
    static constexpr bool HELD = sizeof(Number) == 2 && D <= 32;
    using Streamed = Stages<Number, D, TILE>;
    using Own = Left<Number, D, HELD>;
    using Sum = Tile<Number, D>;
    // Of 128 threads, at a time: what is left of the registers.
    static constexpr int BLOCKS = sizeof(Number) * D == 32 ? 6 : 4;
    static constexpr int ROWS = Sum::ROWS, ACROSS = Sum::ACROSS, STATISTICS = 2 * TILE * 8;

    // 16 rows of both arrays that stay, and what their warps hand over.
    static constexpr int GROUP = 32 * STRIDE<Number, D> + WARPS * HANDOVER<Number, STEP>;

    static int64_t bytes(int64_t rows) {
        return STATISTICS + ColumnQueries::BYTES + Streamed::BYTES + rows / 16 * GROUP;
    }
};

// What a block of threads works at: rows of a block of a head.
struct Task {
    bool column;
    int head, block, first;

    // Block 0 of all heads comes first, its columns before its rows: where the first block is chosen for all, it has
    // the most work. Then head after head, whose rows stay in the second-level cache.
    DEVICE Task(const ZooShape& shape, int most) {
        int index = blockIdx.x;
        // Worked out again where it is wanted again.
        compute_late(index);
        const uint32_t heads = shape.heads, others = shape.count - 1, size = shape.block_size;
        const uint32_t parts = max(static_cast<int>(size) / most, 1);
        uint32_t at = static_cast<uint32_t>(index) / parts;
        const uint32_t part = static_cast<uint32_t>(index) % parts;
        column = at < heads;
        block = 0;
        if (at >= 2 * heads) {
            at -= 2 * heads;
            block = at % (2 * others);
            at /= 2 * others;
            column = block < static_cast<int>(others);
            block = block % others + 1;
        } else if (!column) {
            at -= heads;
        }
        head = at;
        first = block * size + part * most;
    }
};

// What rows and columns share.
template <class Number, int D>
struct BackwardPass {
    using Plan = Backward<Number, D>;
    using Streamed = typename Plan::Streamed;
    using Sum = typename Plan::Sum;
    const ZooCudaBackward& given;
    int lane, role, length, head;
    float to_log2;
    Streamed stages;
    // This warp's rows of the two arrays that stay.
    unsigned char* own;
    typename Plan::Own left = {}, right = {};

    // Asks for the task's rows of x and y.
    DEVICE BackwardPass(const ZooCudaBackward& given, const Task& task, const void* x, const void* y)
        : given(given),
          lane(threadIdx.x % 32),
          role(threadIdx.x / 32 % Plan::WARPS),
          length(static_cast<int>(given.shape.length)),
          head(task.head),
          to_log2(given.shape.scale * LOG2E),
          stages{shared_memory() + Plan::STATISTICS + ColumnQueries::BYTES, 0} {
        const int rows = min(static_cast<int>(given.shape.block_size), Plan::MOST);
        unsigned char* const groups = stages.at + Streamed::BYTES;
        ask_rows<Number, D>(groups, Plan::GROUP, of_head(x), task.first, rows, length);
        ask_rows<Number, D>(groups + 16 * STRIDE<Number, D>, Plan::GROUP, of_head(y), task.first, rows, length);
        copy_commit();
        own = groups + threadIdx.x / 32 / Plan::WARPS * Plan::GROUP;
    }

    // This warp's first row.
    static DEVICE int first_row(const Task& task) {
        return task.first + static_cast<int>(threadIdx.x) / 32 / Plan::WARPS * 16;
    }
    // Worked out for each tile: registers are dearer.
    DEVICE int64_t token() const {
        int late = head;
        compute_late(late);
        return late * given.shape.length;
    }
    DEVICE const Number* of_head(const void* x) const { return static_cast<const Number*>(x) + token() * D; }
    DEVICE Pairs pairs(const Task& task) const { return {given.blocks, given.shape.pairs, given.wide, task.head}; }
    DEVICE unsigned char* other() const { return own + 16 * STRIDE<Number, D>; }
    // When the rows are there.
    DEVICE void take() {
        __syncthreads();
        left.take(own, lane);
        right.take(other(), lane);
    }
    DEVICE unsigned char* handover() const {
        return own + 32 * STRIDE<Number, D> + role * HANDOVER<Number, Plan::STEP>;
    }

    // To the output type, with what the mean of the block has of its own; to padded tokens nothing. `slab`: 16 rows.
    DEVICE void finish(Sum& x, float by, int which, void* to, unsigned char* slab) const {
        const ZooShape& shape = given.shape;
        const Task task(shape, Plan::MOST);
        int lane = this->lane;
        compute_late(lane);
        const int first = first_row(task);
        const int64_t head = task.head, from = head * shape.length;
        const float* const means =
            given.d_means ? given.d_means + ((which * shape.heads + head) * shape.count + task.block) * D : nullptr;
        bool there[Plan::ROWS];
#pragma unroll
        for (int i = 0; i < Plan::ROWS; ++i) {
            const int at = first + Sum::row(lane, i);
            there[i] = at < length && (!given.mask || given.mask[from + at]);
        }
#pragma unroll
        for (int n = 0; n < Sum::EACH; ++n) {
            const float mean = means ? means[Sum::column(lane, n)] : 0.0f;
#pragma unroll
            for (int i = 0; i < Plan::ROWS; ++i) x(i, n) = there[i] ? fmaf(x(i, n), by, mean) : 0.0f;
        }
        write_rows<Number, D>(x, slab, static_cast<Number*>(to) + from * D, first, length, lane);
    }
    // Of the stages, when no tile is wanted any more.
    DEVICE unsigned char* slab() const { return stages.at + threadIdx.x / 32 * 16 * STRIDE<Number, D>; }
};

// d_q of 16 queries; with two roles, of half the keys of each tile.
template <class Number, int D>
struct RowPass : BackwardPass<Number, D> {
    using Base = BackwardPass<Number, D>;
    using Plan = Backward<Number, D>;
    using Sum = typename Plan::Sum;
    static constexpr int KEYS = Plan::TILE / Plan::WARPS, STEP = KEYS < Plan::STEP ? KEYS : Plan::STEP;
    using Scores = Tile<Number, STEP>;
    bool real_next = false;
    uint32_t real_keys = 0;
    float total[Plan::ROWS], shift[Plan::ROWS];
    Sum sum;

    DEVICE RowPass(const ZooCudaBackward& given, const Task& task)
        : Base(given, task, given.q, given.d_out) {
#pragma unroll
        for (int i = 0; i < Plan::ROWS; ++i) {
            const int row = Base::first_row(task) + Sum::row(this->lane, i);
            total[i] = row < this->length ? given.total[this->token() + row] : INFINITY;
            shift[i] = row < this->length ? given.shift[this->token() + row] : 0.0f;
        }
        RowKeys keys(this->pairs(task), task.block, this->lane);
        copy_wait<0>();
        // What d_out holds where there is no weight does not count. Its rows were copied by others.
        __syncthreads();
#pragma unroll
        for (int i = 0; i < Plan::ROWS; ++i) {
            unsigned char* const row = this->other() + Sum::row(this->lane, i) * STRIDE<Number, D>;
            if (total[i] == INFINITY && this->role == 0)
#pragma unroll 1
                for (int piece = this->lane % Plan::ACROSS; piece < PIECES<Number, D>; piece += Plan::ACROSS)
                    *reinterpret_cast<uint4*>(row + 16 * piece) = uint4{0, 0, 0, 0};
        }
        this->take();
        this->stages.walk(keys, *this, given.shape.block_size, this->length, this->lane);
        copy_wait<0>();
        __syncthreads();
        if constexpr (Plan::WARPS == 2)
            meet();
        else
            this->finish(sum, given.shape.scale, 0, given.d_q, this->slab());
    }
    // The sums of both roles, in the stages.
    DEVICE void meet() {
        float* const room = reinterpret_cast<float*>(this->stages.at) + threadIdx.x / 64 * 16 * (D + 4);
#pragma unroll
        for (int i = 0; i < Plan::ROWS; ++i)
#pragma unroll
            for (int n = 0; n < Sum::EACH; ++n)
                if (this->role == 1) room[32 * (i * Sum::EACH + n) + this->lane] = sum(i, n);
        __syncthreads();
        if (this->role == 1) return;
#pragma unroll
        for (int i = 0; i < Plan::ROWS; ++i)
#pragma unroll
            for (int n = 0; n < Sum::EACH; ++n) sum(i, n) += room[32 * (i * Sum::EACH + n) + this->lane];
        this->finish(sum, this->given.shape.scale, 0, this->given.d_q, reinterpret_cast<unsigned char*>(room));
    }
    DEVICE const Number* x() const { return this->of_head(this->given.k); }
    DEVICE const Number* y() const { return this->of_head(this->given.v); }
    DEVICE void ask(int at) {
        real_next = static_cast<unsigned>(at) < static_cast<unsigned>(this->length) &&
                    (!this->given.mask || this->given.mask[this->token() + at]);
    }
    DEVICE void arrive(int) { real_keys = __ballot_sync(WARP, real_next); }
    DEVICE void see() {}
    DEVICE void use() {
        const int lane = this->lane;
#pragma unroll 1
        for (int from = this->role * KEYS; from < (this->role + 1) * KEYS; from += STEP) {
            const unsigned char* const k = this->stages.first() + from * STRIDE<Number, D>;
            const unsigned char* const v = this->stages.second() + from * STRIDE<Number, D>;
            Scores x = products<Number, D, STEP>(this->left, k, lane);
            Scores up = products<Number, D, STEP>(this->right, v, lane);
            if (real_keys != WARP) {
#pragma unroll
                for (int n = 0; n < Scores::EACH; ++n)
                    if (!(real_keys >> (from + Scores::key(lane, n)) & 1))
#pragma unroll
                        for (int i = 0; i < Plan::ROWS; ++i) x(i, n) = -INFINITY, up(i, n) = 0;
            }
#pragma unroll
            for (int i = 0; i < Plan::ROWS; ++i)
#pragma unroll
                for (int n = 0; n < Scores::EACH; ++n)
                    x(i, n) = power_of_two(fmaf(x(i, n), this->to_log2, -total[i])) * (up(i, n) - shift[i]);
            add_product(sum, x, k, this->handover(), lane);
        }
    }
};

// d_k and d_v of 16 keys; with two roles, d_v or d_k.
template <class Number, int D>
struct ColumnPass : BackwardPass<Number, D> {
    using Base = BackwardPass<Number, D>;
    using Plan = Backward<Number, D>;
    static constexpr bool SHARED = Plan::WARPS == 2;
    using Scores = Tile<Number, Plan::STEP>;
    bool dead_next = false;
    float2 next = {};
    uint32_t dead = 0;
    typename Plan::Sum d_v, d_k;

    DEVICE ColumnPass(const ZooCudaBackward& given, const Task& task)
        : Base(given, task, given.k, given.v) {
        ColumnQueries queries(this->pairs(task), task.block, given.shape.count, shared_memory() + Plan::STATISTICS);
        copy_wait<0>();
        this->take();
        this->stages.walk(queries, *this, given.shape.block_size, this->length, this->lane);
        copy_wait<0>();
        __syncthreads();
        const float scale = given.shape.scale;
        const bool keys = SHARED && this->role == 1;
        this->finish(d_v, keys ? scale : 1.0f, keys ? 1 : 2, keys ? given.d_k : given.d_v, this->slab());
        if (!SHARED) this->finish(d_k, scale, 1, given.d_k, this->slab());
    }
    DEVICE const Number* x() const { return this->of_head(this->given.q); }
    DEVICE const Number* y() const { return this->of_head(this->given.d_out); }
    DEVICE void ask(int at) {
        const bool there = static_cast<unsigned>(at) < static_cast<unsigned>(this->length);
        next = {INFINITY, 0};
        const int64_t token = this->token() + at;
        if (there) next = {this->given.total[token], this->given.shift[token]};
        dead_next = there && next.x == INFINITY;
    }
    // total and shift of the queries of a tile.
    static DEVICE float2* statistics(int stage) {
        return reinterpret_cast<float2*>(shared_memory()) + stage * Plan::TILE;
    }
    DEVICE void arrive(int stage) {
        if (threadIdx.x < Plan::TILE) statistics(stage)[threadIdx.x] = next;
        dead = __ballot_sync(WARP, dead_next);
    }
    DEVICE void see() {
        // What q and d_out hold where there is no weight does not count.
        if (!dead) return;
        if (threadIdx.x < Plan::TILE && (dead >> threadIdx.x & 1)) {
            clear(this->stages.first());
            clear(this->stages.second());
        }
        __syncthreads();
    }
    static DEVICE void clear(unsigned char* tile) {
#pragma unroll 1
        for (int piece = 0; piece < PIECES<Number, D>; ++piece)
            *reinterpret_cast<uint4*>(tile + threadIdx.x * STRIDE<Number, D> + 16 * piece) = uint4{0, 0, 0, 0};
    }
    DEVICE void use() {
        const int lane = this->lane;
#pragma unroll 1
        for (int from = 0; from < Plan::TILE; from += Plan::STEP) {
            const unsigned char* const q = this->stages.first() + from * STRIDE<Number, D>;
            const unsigned char* const d_out = this->stages.second() + from * STRIDE<Number, D>;
            const float2* const of_queries = statistics(this->stages.now) + from;
            Scores x = products<Number, D, Plan::STEP>(this->left, q, lane);
#pragma unroll
            for (int n = 0; n < Scores::EACH; ++n) {
                const float total = of_queries[Scores::key(lane, n)].x;
#pragma unroll
                for (int i = 0; i < Plan::ROWS; ++i) x(i, n) = power_of_two(fmaf(x(i, n), this->to_log2, -total));
            }
            if (!SHARED || this->role == 0) add_product(d_v, x, d_out, this->handover(), lane);
            if (SHARED && this->role == 0) continue;
            Scores up = products<Number, D, Plan::STEP>(this->right, d_out, lane);
#pragma unroll
            for (int n = 0; n < Scores::EACH; ++n) {
                const float shift = of_queries[Scores::key(lane, n)].y;
#pragma unroll
                for (int i = 0; i < Plan::ROWS; ++i) x(i, n) *= up(i, n) - shift;
            }
            add_product(SHARED ? d_v : d_k, x, q, this->handover(), lane);
        }
    }
};

template <class Number, int D>
__global__ void __launch_bounds__(Backward<Number, D>::WARPS * 128,
                                  Backward<Number, D>::BLOCKS / Backward<Number, D>::WARPS)
    attention_backward(const ZooCudaBackward given) {
    const Task task(given.shape, Backward<Number, D>::MOST);
    if (task.column)
        ColumnPass<Number, D>(given, task);
    else
        RowPass<Number, D>(given, task);
}
