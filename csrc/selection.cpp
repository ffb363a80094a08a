// Which pairs of blocks to compute exactly: attention_zoo/selection.py head by head, without sorting.
//
// A pair's rank is its group (forced, best of its row, other), what its logit lacks of its row's best, its place. The
// bits of a float >= 0 are in its order, so that the last one to be chosen is found by counting their upper bits.

#include "block_sparse.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

constexpr int SHIFT = 19, BINS = 1 << (31 - SHIFT);

struct Head {
    std::vector<uint32_t> lost;   // (K, K)
    std::vector<int64_t> best;    // (K,) the key block of a row's best pair, -1 where there is none
    std::vector<int32_t> bins;
    std::vector<uint64_t> near;
};

void choose(const ZooChoice& p, int64_t head, Head& h) {
    const int64_t count = p.count, reach = p.diagonal_blocks ? p.diagonal_blocks / 2 : -1;
    const uint8_t* real = p.real + head * count;
    const float* logits = p.logits + head * count * count;
    const auto group = [&](int64_t x, int64_t y) {
        const int64_t apart = x < y ? y - x : x - y;
        if (x < p.first_blocks || y < p.first_blocks || apart <= reach) return 0;
        return h.best[x] == y ? 1 : 2;
    };

    int64_t members[3] = {};
    for (int64_t x = 0; x < count; ++x) {
        h.best[x] = -1;
        if (!real[x]) continue;
        const float* row = logits + x * count;
        uint32_t* lost = h.lost.data() + x * count;
        float top = -__builtin_inff();
        for (int64_t y = 0; y < count; ++y)
            if (real[y] && (row[y] > top || row[y] != row[y])) top = row[y];
        for (int64_t y = 0; y < count; ++y) {
            const float less = top - row[y];
            std::memcpy(lost + y, &less, sizeof less);
            lost[y] &= 0x7fffffff;
        }
        for (int64_t y = 0; y < count; ++y)
            if (real[y] && (h.best[x] < 0 || lost[y] < lost[h.best[x]])) h.best[x] = y;
    }
    int64_t alive = 0;
    for (int64_t y = 0; y < count; ++y) alive += real[y] != 0;
    for (int64_t x = 0; x < count; ++x) {
        if (!real[x]) continue;
        if (x < p.first_blocks) {
            members[0] += alive;
            continue;
        }
        int64_t forced = 0;
        for (int64_t y = 0; y < std::min(p.first_blocks, count); ++y) forced += real[y] != 0;
        for (int64_t y = std::max(p.first_blocks, x - reach); y < std::min(count, x + reach + 1); ++y)
            forced += real[y] != 0;
        const int best = group(x, h.best[x]) == 1;
        members[0] += forced;
        members[1] += best;
        members[2] += alive - forced - best;
    }

    // The group of the last pair that is chosen, and how many of it are.
    int64_t left = std::min(p.most, p.budget[head]);
    int last = 0;
    while (last < 3 && members[last] <= left) left -= members[last++];
    uint64_t limit = 0;
    if (last < 3 && left > 0) {
        std::fill(h.bins.begin(), h.bins.end(), 0);
        const auto each = [&](auto&& visit) {
            for (int64_t x = 0; x < count; ++x)
                if (real[x])
                    for (int64_t y = 0; y < count; ++y)
                        if (real[y] && group(x, y) == last) visit(h.lost[x * count + y], x * count + y);
        };
        each([&](uint32_t lost, int64_t) { ++h.bins[lost >> SHIFT]; });
        uint32_t bin = 0;
        while (h.bins[bin] < left) left -= h.bins[bin++];
        h.near.clear();
        each([&](uint32_t lost, int64_t place) {
            if (lost >> SHIFT == bin) h.near.push_back(static_cast<uint64_t>(lost) << 32 | static_cast<uint64_t>(place));
        });
        std::nth_element(h.near.begin(), h.near.begin() + left - 1, h.near.end());
        limit = h.near[left - 1] + 1;
    }

    int64_t* to = p.pairs + head * p.room * 2;
    int64_t *const over = to + p.room * 2;
    for (int64_t x = 0; x < count; ++x) {
        if (!real[x]) continue;
        const int64_t* before = to;
        for (int64_t y = 0; y < count; ++y) {
            if (!real[y]) continue;
            const uint64_t lost = static_cast<uint64_t>(h.lost[x * count + y]) << 32;
            const int its = group(x, y);
            if (its > last || (its == last && (lost | static_cast<uint64_t>(x * count + y)) >= limit)) continue;
            *to++ = x;
            *to++ = y;
        }
        if (p.fill && to == before) {
            *to++ = x;
            *to++ = h.best[x];
        }
    }
    while (to < over) {
        *to++ = count;
        *to++ = 0;
    }
}

}  // namespace

extern "C" void zoo_choose(const ZooChoice* p, int64_t begin, int64_t end) {
    Head head;
    head.lost.resize(p->count * p->count);
    head.best.resize(p->count);
    head.bins.resize(BINS);
    for (int64_t i = begin; i < end; ++i) choose(*p, i, head);
}
