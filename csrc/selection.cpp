// Which pairs of blocks to compute exactly: attention_zoo/selection.py head by head, without sorting.
//
// A pair's rank is its group (forced, best of its row, other), what its logit lacks of its row's best, its place. The
// bits of a float >= 0 are in its order, so that the last one to be chosen is found by counting their upper bits.
// The loops over all pairs have no branches, for the compiler to compute several pairs at a time.

#include "block_sparse.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

constexpr int SHIFT = 19, BINS = 1 << (31 - SHIFT);
// What a pair lacks that cannot be chosen, more than any other, NaN included; and one that is chosen whatever it lacks.
constexpr int32_t NEVER = 0x7fffffff, ALWAYS = -1;
enum Group : int32_t { FORCED, BEST, OTHER, NONE };

struct Head {
    std::vector<int32_t> keep;   // (K,) all bits of a real key block
    std::vector<int32_t> lost;   // (K, K)
    std::vector<int32_t> best;   // (K,) the key block of a row's best pair
    std::vector<int32_t> bins;   // (2, 1 + BINS)
    std::vector<uint64_t> near;

    explicit Head(int64_t count) : keep(count), lost(count * count), best(count), bins(2 * (1 + BINS)) {}
};

int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// What the logits of a row lack of the best real one; a NaN among those makes all of them NaN.
void compare(const float* row, const int32_t* keep, int32_t count, int32_t* lost) {
    constexpr int32_t LOWEST = ~0x7f800000;  // in the order of `ordered`, -inf
    int32_t highest = LOWEST, odd = 0;
    for (int32_t y = 0; y < count; ++y) {
        // Integers in the order of the numbers.
        const int32_t bits = bits_of(row[y]), ordered = bits ^ ((bits >> 31) & 0x7fffffff);
        const int32_t real = (ordered & keep[y]) | (LOWEST & ~keep[y]);
        highest = std::max(highest, real);
        odd |= keep[y] & -static_cast<int32_t>((bits & 0x7fffffff) > 0x7f800000);
    }
    const int32_t bits = odd ? 0x7fc00000 : highest ^ ((highest >> 31) & 0x7fffffff);
    float top;
    std::memcpy(&top, &bits, sizeof top);
    for (int32_t y = 0; y < count; ++y)
        lost[y] = (std::min(bits_of(top - row[y]) & 0x7fffffff, NEVER - 1) & keep[y]) | (NEVER & ~keep[y]);
}

// The group of pair (x, y): forced below `first` and in `low` .. `high`.
struct Row {
    int32_t first, low, high, best;

    Row(const ZooChoice& p, int64_t x, int32_t best)
        : first(static_cast<int32_t>(x < p.first_blocks ? p.count : std::min(p.first_blocks, p.count))),
          low(0), high(-1), best(best) {
        if (!p.diagonal_blocks) return;
        low = static_cast<int32_t>(std::max<int64_t>(x - p.diagonal_blocks / 2, 0));
        high = static_cast<int32_t>(std::min(x + p.diagonal_blocks / 2, p.count));
    }
    int32_t group(int32_t y) const {
        const bool forced = (y < first) | ((y >= low) & (y <= high));
        return forced ? FORCED : y == best ? BEST : OTHER;
    }
};

void choose(const ZooChoice& p, int64_t head, Head& h) {
    const int32_t count = static_cast<int32_t>(p.count);
    const uint8_t* real = p.real + head * count;
    const auto lost_of = [&](int64_t x) { return h.lost.data() + x * count; };
    for (int32_t y = 0; y < count; ++y) h.keep[y] = -static_cast<int32_t>(real[y] != 0);

    int64_t members[] = {0, 0, 0};
    for (int32_t x = 0; x < count; ++x) {
        if (!real[x]) continue;
        int32_t *lost = lost_of(x), least = NEVER, forced = 0, others = 0;
        compare(p.logits + (head * p.count + x) * count, h.keep.data(), count, lost);
        for (int32_t y = 0; y < count; ++y) least = std::min(least, lost[y]);
        h.best[x] = static_cast<int32_t>(std::find(lost, lost + count, least) - lost);
        const Row row(p, x, h.best[x]);
        for (int32_t y = 0; y < count; ++y) {
            forced += h.keep[y] & (row.group(y) == FORCED);
            others += h.keep[y] & (row.group(y) == OTHER);
        }
        members[FORCED] += forced;
        members[BEST] += row.group(row.best) == BEST;
        members[OTHER] += others;
    }

    // The group of the last pair that is chosen, and how many of it are; then what its pairs lack decides alone.
    int64_t left = std::max<int64_t>(0, std::min(p.most, p.budget[head]));
    int32_t last = FORCED;
    while (last < NONE && members[last] <= left) left -= members[last++];
    std::fill(h.bins.begin(), h.bins.end(), 0);
    for (int32_t x = 0; x < count; ++x) {
        if (!real[x]) continue;
        const Row row(p, x, h.best[x]);
        int32_t* lost = lost_of(x);
        for (int32_t y = 0; y < count; ++y) {
            const int32_t group = row.group(y), key = group < last ? ALWAYS : group == last ? lost[y] : NEVER;
            lost[y] = (key & h.keep[y]) | (NEVER & ~h.keep[y]);
        }
        // Two counts by turns: the same one again would wait for the last.
        for (int32_t y = 0; y < count; ++y) ++h.bins[(y & 1) * (1 + BINS) + 1 + (lost[y] >> SHIFT)];
    }
    uint64_t limit = 0;
    if (last < NONE && left > 0) {
        const auto held = [&](int32_t bin) { return h.bins[1 + bin] + h.bins[2 + BINS + bin]; };
        int32_t bin = 0;
        while (held(bin) < left) left -= held(bin++);
        h.near.clear();
        for (int32_t x = 0; x < count; ++x)
            for (int32_t y = 0; real[x] && y < count; ++y)
                if (const int32_t lost = lost_of(x)[y]; lost >> SHIFT == bin && lost != NEVER)
                    h.near.push_back(static_cast<uint64_t>(lost) << 32 | static_cast<uint64_t>(x * p.count + y));
        std::nth_element(h.near.begin(), h.near.begin() + left - 1, h.near.end());
        limit = h.near[left - 1] + 1;
    }

    int64_t* to = p.pairs + head * p.room * 2;
    int64_t *const over = to + p.room * 2;
    const int32_t most_lost = limit ? static_cast<int32_t>(limit >> 32) : ALWAYS;
    for (int32_t x = 0; x < count; ++x) {
        if (!real[x]) continue;
        const int64_t* before = to;
        const int32_t* lost = lost_of(x);
        for (int32_t y = 0; y < count; ++y) {
            if (lost[y] > most_lost) continue;
            const uint64_t rank = static_cast<uint64_t>(lost[y]) << 32 | static_cast<uint64_t>(x * p.count + y);
            if (lost[y] != ALWAYS && rank >= limit) continue;
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
    Head head(p->count);
    for (int64_t i = begin; i < end; ++i) choose(*p, i, head);
}
