// Every entry point of csrc/block_sparse.hpp over odd shapes, on arrays of exactly their size, for the sanitizers.
// Prints a digest of all results for each instruction set: the same one whatever compiled it, without contraction.
// Then the same with numbers that are not finite among the inputs, whose results are not looked at.

#include "block_sparse.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

unsigned state = 1;
// One number in so many is odd; 0: none.
unsigned spoiled = 0;

float noise() {
    state = state * 1664525u + 1013904223u;
    if (spoiled && (state >> 12) % spoiled == 0) {
        const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f};
        return odd[(state >> 24) % 7];
    }
    return static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
}

// std::vector may hold more than it was asked for; a block of its own does not.
template <class Number>
struct Array {
    Number* at;
    explicit Array(int64_t size) : at(static_cast<Number*>(std::malloc(size * sizeof(Number) + (size == 0)))) {}
    ~Array() { std::free(at); }
    Array(const Array&) = delete;
    operator Number*() { return at; }
};

struct Numbers : Array<float> {
    explicit Numbers(int64_t size) : Array<float>(size) {
        for (int64_t i = 0; i < size; ++i) at[i] = noise();
    }
};

int checked = 0;
uint64_t digest = 0;

void take(const float* x, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        digest = (digest ^ bits) * 1099511628211u;
    }
}

void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

void check(int level, int64_t length, int64_t dim, int64_t size, bool masked) {
    const int64_t heads = 2, count = (length + size - 1) / size, tokens = heads * length, blocks = heads * count;
    const ZooShape logits_shape = {heads, length, dim, size, count, 0, 0.25f};
    Numbers q(tokens * dim), k(tokens * dim), v(tokens * dim), d_out(tokens * dim), d_lse(tokens);
    Array<uint8_t> mask(tokens);
    for (int64_t i = 0; i < tokens; ++i) mask[i] = i % 5 != 2;
    const uint8_t* given = masked ? mask.at : nullptr;

    ZooCoarse c = {};
    c.shape = logits_shape;
    c.q = q, c.k = k, c.v = v, c.mask = given, c.root = 4.0;
    Numbers logits(blocks * count);
    zoo_block_logits(&c, level, logits, 0, heads);

    const int64_t most = count * count / 2, room = most + count;
    Array<uint8_t> real(blocks);
    for (int64_t i = 0; i < blocks; ++i) real[i] = i % 4 != 3;
    Array<int64_t> budget(heads), pairs(heads * room * 2);
    for (int64_t head = 0; head < heads; ++head) budget[head] = spoiled && head ? -1 : most - head;
    const ZooChoice choice = {heads, count, 1, 1, most, room, logits, real, budget, pairs, 1};
    zoo_choose(&choice, 0, heads);

    ZooShape shape = logits_shape;
    shape.pairs = room;
    Array<int32_t> rows(heads * (count + 1)), keys(heads * room), columns(heads * (count + 1)), queries(heads * room);
    if (zoo_sort_pairs(&shape, pairs, 1, rows, keys, columns, queries, 0, heads) != -1) fail("pairs are not sorted");
    const ZooPairs sorted = {rows, keys, columns, queries};

    Numbers means(3 * blocks * dim), logs(blocks), prior_logit(blocks), prior_value(blocks * dim);
    c.shape = shape, c.pairs = sorted;
    c.means = means, c.logs = logs, c.prior_logit = prior_logit, c.prior_value = prior_value;
    zoo_coarse_means(&c, level, 0, blocks);
    zoo_coarse_forward(&c, level, 0, heads);

    Numbers out(tokens * dim), lse(tokens), shift(tokens), total(tokens);
    const ZooForward forward = {shape, sorted, q, k, v, given, prior_logit, prior_value, out, lse};
    zoo_forward(&forward, level, 0, blocks);

    Numbers d_q(tokens * dim), d_k(tokens * dim), d_v(tokens * dim), d_logit(blocks), d_value(blocks * dim);
    for (int64_t i = 0; i < tokens; ++i)
        for (int64_t d = 0; lse[i] == -INFINITY && d < dim; ++d) d_out[i * dim + d] = 0.0f;
    const ZooBackward backward = {shape, sorted, q, k, v, out, lse, d_out, d_lse, given, prior_logit, prior_value,
                                  shift, total, d_q, d_k, d_v, d_logit, d_value};
    zoo_backward_shift(&backward, level, 0, tokens);
    zoo_backward_heads(&backward, level, 0, heads);
    zoo_backward_rows(&backward, level, 0, blocks);
    zoo_backward_columns(&backward, level, 0, blocks);

    Numbers coarse_shift(blocks), coarse_total(blocks), d_means(3 * blocks * dim);
    c.d_prior_logit = d_logit, c.d_prior_value = d_value, c.shift = coarse_shift, c.total = coarse_total;
    c.d_means = d_means, c.d_q = d_q, c.d_k = d_k, c.d_v = d_v;
    zoo_coarse_backward(&c, level, 0, heads);
    ++checked;
    if (spoiled) return;
    for (int64_t i = 0; i < tokens * dim; ++i)
        if (!std::isfinite(out[i] + d_q[i] + d_k[i] + d_v[i])) fail("a result is not finite");
    Numbers powers(37), x(37);
    zoo_exp2(x, powers, level, 37);
    take(powers, 37);
    take(logits, blocks * count);
    for (const float* x : {out.at, d_q.at, d_k.at, d_v.at}) take(x, tokens * dim);
    take(lse, tokens);
    take(d_logit, blocks);
}

}  // namespace

int main() {
    const int last = zoo_best();
    uint64_t digests[3] = {};
    for (int level = 0; level <= last; ++level) {
        bool masked = false;
        state = 1, digest = 0;
        for (const int64_t length : {1, 17, 100})
            for (const int64_t dim : {16, 48})
                for (const int64_t size : {1, 8, 20, 32, 80}) check(level, length, dim, size, masked = !masked);
        digests[level] = digest;
        for (const unsigned one_in : {1, 5, 300})
            for (const int64_t length : {1, 17, 100})
                for (const int64_t size : {1, 8, 32}) {
                    spoiled = one_in;
                    check(level, length, 16, size, masked = !masked);
                }
        spoiled = 0;
    }
    std::printf("checked %d shapes:", checked);
    for (int i = 0; i <= last; ++i) std::printf(" %016llx", static_cast<unsigned long long>(digests[i]));
    std::printf("\n");
    return 0;
}
