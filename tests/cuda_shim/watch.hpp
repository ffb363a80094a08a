// Who has touched which byte, and whether that was in an order that a GPU guarantees: what racecheck of a GPU's tools
// looks for, found at any order of the threads. Two threads of a block are in order if a barrier of the block lies
// between, two lanes of a warp also if a __syncwarp does; nothing orders two blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstddef>
#include <cstring>

class Watch {
public:
    // The lanes of a warp that have touched a byte between two barriers, the latest at `time` of the warp's; whether so
    // have other warps, and, in global memory, other blocks of the launch.
    struct Touch {
        uint32_t epoch, time, lanes;
        uint8_t warp;
        bool other_warps, other_blocks;
    };
    struct Cell {
        Touch wrote, read;
        bool atomic, copying;
    };
    // Four bytes, mostly touched together; where not, `bytes` counts.
    struct Word {
        Cell whole;
        bool split;
    };
    enum What { READ, WRITE, ADD };
    enum Fault { NONE, AFTER_WRITE, AFTER_READ, COPYING };

    void start_launch() { first_of_launch_ = ++epoch_; }
    void start_block(int warps) {
        first_of_block_ = ++epoch_;
        std::memset(clock_, 0, static_cast<size_t>(warps) * sizeof clock_[0]);
    }
    void barrier() { ++epoch_; }

    // __syncwarp: what any of the lanes knows they all know, and a new time begins.
    void sync(int warp, uint32_t mask) {
        auto& clock = clock_[warp];
        uint32_t known[32] = {}, latest = 0;
        for (int i = 0; i < 32; ++i) {
            if (!(mask >> i & 1)) continue;
            latest = std::max(latest, clock[i][i]);
            for (int j = 0; j < 32; ++j) known[j] = std::max(known[j], clock[i][j]);
        }
        for (int i = 0; i < 32; ++i) {
            if (mask >> i & 1) known[i] = latest + 1;
        }
        for (int i = 0; i < 32; ++i) {
            if (mask >> i & 1) std::memcpy(clock[i], known, sizeof known);
        }
    }

    // `lanes` of a warp touch these cells, which live as long as a block or, `global`, as a launch.
    Fault touch(Cell* cells, int64_t size, int warp, uint32_t lanes, What what, bool global) {
        const uint32_t first = global ? first_of_launch_ : first_of_block_;
        for (Cell* cell = cells; cell < cells + size; ++cell) {
            if (cell->copying) return COPYING;
            const bool both_add = what == ADD && cell->atomic;
            if (cell->wrote.epoch >= first && !both_add && !ordered(cell->wrote, warp, lanes)) return AFTER_WRITE;
            if (what == READ) {
                add(cell->read, warp, lanes, first);
                continue;
            }
            if (cell->read.epoch >= first && !ordered(cell->read, warp, lanes)) return AFTER_READ;
            if (!both_add) cell->wrote.epoch = 0;
            add(cell->wrote, warp, lanes, first);
            cell->atomic = what == ADD;
            cell->read.epoch = 0;
        }
        return NONE;
    }

    // The same for bytes of shared memory, whose words these are; a word has its bytes at 4 x its place.
    Fault touch_bytes(Word* words, Cell* bytes, int64_t offset, int64_t size, int warp, uint32_t lanes, What what) {
        const int64_t end = offset + size;
        for (int64_t w = offset / 4; 4 * w < end; ++w) {
            const int64_t from = std::max(offset, 4 * w), to = std::min(end, 4 * w + 4);
            Word& word = words[w];
            if (!word.split && to - from == 4) {
                if (const Fault fault = touch(&word.whole, 1, warp, lanes, what, false)) return fault;
                continue;
            }
            if (!word.split) std::fill_n(bytes + 4 * w, 4, word.whole);
            word.split = true;
            if (const Fault fault = touch(bytes + from, to - from, warp, lanes, what, false)) return fault;
            if (what == READ || to - from < 4) continue;
            // Of a word that is written at once all bytes are alike.
            word = {bytes[from], false};
        }
        return NONE;
    }

    static void set_copying(Word* words, int64_t size, bool copying) {
        for (Word* word = words; word < words + size; ++word) word->whole.copying = copying;
    }

private:
    bool ordered(const Touch& before, int warp, uint32_t lanes) const {
        if (before.other_blocks || before.epoch < first_of_block_) return false;
        if (before.epoch < epoch_) return true;
        if (before.other_warps || before.warp != warp) return false;
        if (before.lanes == lanes && (lanes & (lanes - 1)) == 0) return true;
        for (uint32_t mine = lanes; mine; mine &= mine - 1) {
            const int i = __builtin_ctz(mine);
            for (uint32_t theirs = before.lanes & ~(1u << i); theirs; theirs &= theirs - 1) {
                if (clock_[warp][i][__builtin_ctz(theirs)] <= before.time) return false;
            }
        }
        return true;
    }

    void add(Touch& to, int warp, uint32_t lanes, uint32_t first) const {
        uint32_t time = 0;
        for (uint32_t mine = lanes; mine; mine &= mine - 1) {
            time = std::max(time, clock_[warp][__builtin_ctz(mine)][__builtin_ctz(mine)]);
        }
        if (to.epoch == epoch_) {
            to.other_warps |= to.warp != warp;
            to.lanes |= lanes;
            to.time = std::max(to.time, time);
            return;
        }
        const bool other_blocks = to.epoch >= first && (to.other_blocks || to.epoch < first_of_block_);
        to = {epoch_, time, lanes, static_cast<uint8_t>(warp), false, other_blocks};
    }

    uint32_t epoch_ = 1, first_of_launch_ = 1, first_of_block_ = 1;  // barriers, counted on from launch to launch
    uint32_t clock_[32][32][32];  // of each warp: the latest time of each lane's that each lane knows of
};
