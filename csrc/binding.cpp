// The compiled operators, for torch: the only file that knows it, and of it only the stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <tuple>

#include "block_sparse.hpp"
#include "dropout.hpp"
#include "padding.hpp"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// $ZOO_ISA, for tests and comparisons, or the best that this machine has.
int level() {
    const char* names[] = {"portable", "avx2", "avx512"};
    const char* word = std::getenv("ZOO_ISA");
    const int best = zoo_best();
    if (!word || !*word) return best;
    for (int i = 0; i < 3; ++i)
        if (!std::strcmp(word, names[i])) {
            STD_TORCH_CHECK(i <= best, "ZOO_ISA=", word, ": this processor has no more than ", names[best]);
            return i;
        }
    STD_TORCH_CHECK(false, "ZOO_ISA=", word, " is not one of portable, avx2, avx512");
}

// Whatever an operator is called with, nothing is read beyond its end.
using Sizes = std::initializer_list<int64_t>;

void expect(const Tensor& x, ScalarType dtype, const char* type, const char* name, Sizes sizes) {
    bool fits = x.scalar_type() == dtype && x.is_contiguous() && x.is_cpu() &&
                x.dim() == static_cast<int64_t>(sizes.size());
    std::string shape;
    int64_t axis = 0;
    for (const int64_t size : sizes) {
        fits = fits && x.size(axis++) == size;
        shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    }
    STD_TORCH_CHECK(fits, name, " must be a dense ", type, " tensor of shape (", shape, ") on the CPU");
}

const float* numbers(const Tensor& x, const char* name, Sizes sizes) {
    expect(x, ScalarType::Float, "float32", name, sizes);
    return static_cast<const float*>(x.const_data_ptr());
}

const float* numbers(const std::optional<Tensor>& x, const char* name, Sizes sizes) {
    return x ? numbers(*x, name, sizes) : nullptr;
}

const uint8_t* flags(const std::optional<Tensor>& x, const char* name, Sizes sizes) {
    if (!x) return nullptr;
    expect(*x, ScalarType::Bool, "bool", name, sizes);
    return static_cast<const uint8_t*>(x->const_data_ptr());
}

const int64_t* whole(const Tensor& x, const char* name, Sizes sizes) {
    expect(x, ScalarType::Long, "int64", name, sizes);
    return static_cast<const int64_t*>(x.const_data_ptr());
}

float* fresh(Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

Tensor like(const Tensor& x, std::initializer_list<int64_t> sizes, ScalarType dtype = ScalarType::Float) {
    return torch::stable::new_empty(x, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), dtype);
}

// The arrays of an operator, each of the shape that it must have.
struct Arrays {
    int64_t heads, length, dim, count;
    explicit Arrays(const ZooShape& s) : heads(s.heads), length(s.length), dim(s.dim), count(s.count) {}
    const float* tokens(const Tensor& x, const char* name) const { return numbers(x, name, {heads, length, dim}); }
    const float* rows(const Tensor& x, const char* name) const { return numbers(x, name, {heads, length}); }
    const uint8_t* mask(const std::optional<Tensor>& x) const { return flags(x, "mask", {heads, length}); }
    const float* logits(const std::optional<Tensor>& x) const { return numbers(x, "prior_logit", {heads, count}); }
    const float* values(const std::optional<Tensor>& x, bool wanted) const {
        STD_TORCH_CHECK(x.has_value() == wanted, "prior_logit and prior_value come together");
        return numbers(x, "prior_value", {heads, count, dim});
    }
};

ZooShape shape_of(const Tensor& q, const Tensor& blocks, int64_t block_size, double scale) {
    STD_TORCH_CHECK(q.dim() == 3 && q.size(2) % 16 == 0, "q must have shape (G, N, D), D a multiple of 16");
    STD_TORCH_CHECK(block_size > 0, "block_size=", block_size, " must be at least 1");
    STD_TORCH_CHECK(blocks.dim() == 3 && blocks.size(0) == q.size(0) && blocks.size(2) == 2,
                    "blocks must have shape (", q.size(0), ", P, 2)");
    const int64_t length = q.size(1), count = (length + block_size - 1) / block_size;
    return {q.size(0), length, q.size(2), block_size, count, blocks.size(1), static_cast<float>(scale)};
}

// The pairs of all heads, sorted both ways if `columns`; the tensors own what the pointers show.
struct Sorted {
    Tensor rows, keys;
    std::optional<Tensor> columns, queries;
    ZooPairs pairs;

    Sorted(const ZooShape& s, const Tensor& blocks, bool both)
        : rows(like(blocks, {s.heads, s.count + 1}, ScalarType::Int)),
          keys(like(blocks, {s.heads, s.pairs}, ScalarType::Int)) {
        const bool wide = blocks.scalar_type() == ScalarType::Long;
        STD_TORCH_CHECK((wide || blocks.scalar_type() == ScalarType::Int) && blocks.is_contiguous() && blocks.is_cpu(),
                        "blocks must be a dense int32 or int64 tensor on the CPU");
        if (both) {
            columns = like(blocks, {s.heads, s.count + 1}, ScalarType::Int);
            queries = like(blocks, {s.heads, s.pairs}, ScalarType::Int);
        }
        auto at = [](Tensor& x) { return static_cast<int32_t*>(x.mutable_data_ptr()); };
        int32_t *r = at(rows), *k = at(keys), *c = both ? at(*columns) : nullptr, *q = both ? at(*queries) : nullptr;
        const void* from = blocks.const_data_ptr();
        const int64_t wrong = zoo_sort_pairs(&s, from, wide, r, k, c, q, 0, s.heads);
        STD_TORCH_CHECK(wrong < 0, "blocks[", wrong / (s.pairs ? s.pairs : 1), ", ", wrong % (s.pairs ? s.pairs : 1),
                        "] is no pair of blocks below ", s.count, ", not sorted by query block, or there twice");
        pairs = {r, k, c, q};
    }
};

// Weights are dropped with the probability threshold / 2^16.
ZooDrop drop_of(const ZooShape& s, const ZooPairs& pairs, bool prior, int64_t seed, int64_t threshold) {
    STD_TORCH_CHECK(threshold >= 0 && threshold < 65536, "threshold=", threshold, " must be below 2^16");
    STD_TORCH_CHECK(!threshold || (s.block_size == 64 && !prior), "weights of blocks of ", s.block_size,
                    prior ? " with" : " without", " virtual keys cannot be dropped: blocks of 64 without");
    for (int64_t row = 0; threshold && row < s.heads * s.count; ++row) {
        const int64_t head = row / s.count;
        const int32_t *start = pairs.row_start + row + head, *keys = pairs.keys + head * s.pairs;
        STD_TORCH_CHECK(std::is_sorted(keys + start[0], keys + start[1]), "to be dropped, the key blocks of a query block must be sorted");
    }
    return {static_cast<uint64_t>(seed), static_cast<uint32_t>(threshold),
            static_cast<float>(65536.0 / static_cast<double>(65536 - threshold))};
}

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, Tensor blocks, int64_t block_size, double scale,
                                   std::optional<Tensor> mask, std::optional<Tensor> prior_logit,
                                   std::optional<Tensor> prior_value, int64_t seed, int64_t threshold) {
    const ZooShape shape = shape_of(q, blocks, block_size, scale);
    const Sorted sorted(shape, blocks, false);
    const ZooDrop drop = drop_of(shape, sorted.pairs, prior_logit.has_value(), seed, threshold);
    Tensor out = like(q, {shape.heads, shape.length, shape.dim}), lse = like(q, {shape.heads, shape.length});
    const Arrays of(shape);
    const ZooForward p = {shape, sorted.pairs, of.tokens(q, "q"), of.tokens(k, "k"), of.tokens(v, "v"), of.mask(mask),
                          of.logits(prior_logit), of.values(prior_value, prior_logit.has_value()),
                          fresh(out), fresh(lse), drop};
    const int isa = level();
    torch::stable::parallel_for(0, shape.heads * shape.count, 1,
                                [&](int64_t begin, int64_t end) { zoo_forward(&p, isa, begin, end); });
    return {out, lse};
}

// Whole heads at a time need five products instead of seven, but there must be heads enough to keep all threads busy.
bool by_heads(int64_t heads) {
    const char* word = std::getenv("ZOO_BACKWARD");
    if (word && !std::strcmp(word, "heads")) return true;
    if (word && !std::strcmp(word, "rows")) return false;
    const int64_t threads = torch::stable::get_num_threads(), each = (heads + threads - 1) / threads;
    return 5 * each * threads <= 7 * heads;
}

// What a head's backward goes on with where whole heads are computed at a time.
using Coarse = std::function<void(const ZooBackward&, int, int64_t)>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients attention_backward(const ZooShape& shape, const Sorted& sorted, const Tensor& d_out, const Tensor& d_lse,
                             const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                             const std::optional<Tensor>& mask, const std::optional<Tensor>& prior_logit,
                             const std::optional<Tensor>& prior_value, const ZooDrop& drop,
                             const Coarse& coarse = {}) {
    Tensor shift = like(q, {shape.heads, shape.length}), total = like(q, {shape.heads, shape.length});
    Tensor d_q = like(q, {shape.heads, shape.length, shape.dim}), d_k = like(q, {shape.heads, shape.length, shape.dim}),
           d_v = like(q, {shape.heads, shape.length, shape.dim});
    const int64_t priors = prior_logit ? shape.heads : 0;
    Tensor d_logit = like(q, {priors, shape.count}), d_value = like(q, {priors, shape.count, shape.dim});
    const Arrays of(shape);
    const ZooBackward p = {shape, sorted.pairs, of.tokens(q, "q"), of.tokens(k, "k"), of.tokens(v, "v"),
                           of.tokens(out, "out"), of.rows(lse, "lse"), of.tokens(d_out, "d_out"),
                           of.rows(d_lse, "d_lse"), of.mask(mask), of.logits(prior_logit),
                           of.values(prior_value, prior_logit.has_value()),
                           fresh(shift), fresh(total), fresh(d_q), fresh(d_k), fresh(d_v), fresh(d_logit),
                           fresh(d_value), drop};
    const int isa = level();
    const auto parallel = [&](int64_t items, int64_t grain, void (*phase)(const ZooBackward*, int, int64_t, int64_t)) {
        torch::stable::parallel_for(0, items, grain,
                                    [&](int64_t begin, int64_t end) { phase(&p, isa, begin, end); });
    };
    if (!sorted.columns) {
        torch::stable::parallel_for(0, shape.heads, 1, [&](int64_t begin, int64_t end) {
            for (int64_t head = begin; head < end; ++head) {
                zoo_backward_shift(&p, isa, head * shape.length, (head + 1) * shape.length);
                zoo_backward_heads(&p, isa, head, head + 1);
                if (coarse) coarse(p, isa, head);
            }
        });
    } else {
        parallel(shape.heads * shape.length, 1024, zoo_backward_shift);
        parallel(shape.heads * shape.count, 1, zoo_backward_rows);
        parallel(shape.heads * shape.count, 1, zoo_backward_columns);
    }
    return {d_q, d_k, d_v, d_logit, d_value};
}

Gradients backward(Tensor d_out, Tensor d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor blocks,
                   int64_t block_size, double scale, std::optional<Tensor> mask, std::optional<Tensor> prior_logit,
                   std::optional<Tensor> prior_value, int64_t seed, int64_t threshold) {
    const ZooShape shape = shape_of(q, blocks, block_size, scale);
    const Sorted sorted(shape, blocks, !by_heads(shape.heads));
    const ZooDrop drop = drop_of(shape, sorted.pairs, prior_logit.has_value(), seed, threshold);
    return attention_backward(shape, sorted, d_out, d_lse, q, k, v, out, lse, mask, prior_logit, prior_value, drop);
}

ZooCoarse coarse_of(const ZooShape& shape, const Sorted& sorted, const Tensor& q, const Tensor& k, const Tensor& v,
                    const std::optional<Tensor>& mask) {
    ZooCoarse c = {};
    c.shape = shape;
    c.pairs = sorted.pairs;
    const Arrays of(shape);
    c.q = of.tokens(q, "q");
    c.k = of.tokens(k, "k");
    c.v = of.tokens(v, "v");
    c.mask = of.mask(mask);
    return c;
}

void parallel_coarse(const ZooCoarse& c, int isa, int64_t items, int64_t grain,
                     void (*phase)(const ZooCoarse*, int, int64_t, int64_t)) {
    torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) { phase(&c, isa, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> coarse_forward(Tensor q, Tensor k, Tensor v, Tensor blocks,
                                                          int64_t block_size, double scale,
                                                          std::optional<Tensor> mask) {
    const ZooShape shape = shape_of(q, blocks, block_size, scale);
    const Sorted sorted(shape, blocks, false);
    const int isa = level();
    Tensor prior_logit = like(q, {shape.heads, shape.count}), prior_value = like(q, {shape.heads, shape.count, shape.dim});
    Tensor means = like(q, {3, shape.heads, shape.count, shape.dim}), logs = like(q, {shape.heads, shape.count});
    ZooCoarse c = coarse_of(shape, sorted, q, k, v, mask);
    c.means = fresh(means), c.logs = fresh(logs);
    c.prior_logit = fresh(prior_logit), c.prior_value = fresh(prior_value);
    Tensor out = like(q, {shape.heads, shape.length, shape.dim}), lse = like(q, {shape.heads, shape.length});
    const ZooForward p = {shape, sorted.pairs, c.q, c.k, c.v, c.mask, fresh(prior_logit), fresh(prior_value),
                          fresh(out), fresh(lse)};
    const int64_t count = shape.count;
    if (by_heads(shape.heads)) {
        // Threads meet once, and a head's keys and values stay in a cache.
        torch::stable::parallel_for(0, shape.heads, 1, [&](int64_t begin, int64_t end) {
            for (int64_t head = begin; head < end; ++head) {
                zoo_coarse_means(&c, isa, head * count, (head + 1) * count);
                zoo_coarse_forward(&c, isa, head, head + 1);
                zoo_forward(&p, isa, head * count, (head + 1) * count);
            }
        });
    } else {
        parallel_coarse(c, isa, shape.heads * count, 8, zoo_coarse_means);
        parallel_coarse(c, isa, shape.heads, 1, zoo_coarse_forward);
        torch::stable::parallel_for(0, shape.heads * count, 1,
                                    [&](int64_t begin, int64_t end) { zoo_forward(&p, isa, begin, end); });
    }
    return {out, lse, prior_logit, prior_value};
}

std::tuple<Tensor, Tensor, Tensor> coarse_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                                                   Tensor prior_logit, Tensor prior_value, Tensor blocks,
                                                   int64_t block_size, double scale, std::optional<Tensor> mask) {
    const ZooShape shape = shape_of(q, blocks, block_size, scale);
    const Sorted sorted(shape, blocks, !by_heads(shape.heads));
    Tensor d_lse = torch::stable::new_zeros(lse, lse.sizes());
    Tensor means = like(q, {3, shape.heads, shape.count, shape.dim}), logs = like(q, {shape.heads, shape.count});
    Tensor d_means = like(q, {3, shape.heads, shape.count, shape.dim});
    Tensor shift = like(q, {shape.heads, shape.count}), total = like(q, {shape.heads, shape.count});
    ZooCoarse shared = coarse_of(shape, sorted, q, k, v, mask);
    shared.means = fresh(means), shared.logs = fresh(logs), shared.d_means = fresh(d_means);
    shared.prior_logit = fresh(prior_logit), shared.prior_value = fresh(prior_value);
    shared.shift = fresh(shift), shared.total = fresh(total);
    const auto with = [&](float* d_logit, float* d_value, float* d_q, float* d_k, float* d_v) {
        ZooCoarse c = shared;
        c.d_prior_logit = d_logit, c.d_prior_value = d_value, c.d_q = d_q, c.d_k = d_k, c.d_v = d_v;
        return c;
    };
    const Coarse coarse = [&](const ZooBackward& p, int isa, int64_t head) {
        const ZooCoarse c = with(p.d_prior_logit, p.d_prior_value, p.d_q, p.d_k, p.d_v);
        zoo_coarse_means(&c, isa, head * shape.count, (head + 1) * shape.count);
        zoo_coarse_backward(&c, isa, head, head + 1);
    };
    auto [d_q, d_k, d_v, d_logit, d_value] = attention_backward(shape, sorted, d_out, d_lse, q, k, v, out, lse, mask,
                                                                prior_logit, prior_value, ZooDrop{}, coarse);
    if (sorted.columns) {
        const ZooCoarse c = with(fresh(d_logit), fresh(d_value), fresh(d_q), fresh(d_k), fresh(d_v));
        const int isa = level();
        parallel_coarse(c, isa, shape.heads * shape.count, 8, zoo_coarse_means);
        parallel_coarse(c, isa, shape.heads, 1, zoo_coarse_backward);
    }
    return {d_q, d_k, d_v};
}

Tensor block_logits(Tensor q, Tensor k, int64_t block_size, double root, std::optional<Tensor> mask) {
    STD_TORCH_CHECK(q.dim() == 3 && q.size(2) % 16 == 0, "q must have shape (G, N, D), D a multiple of 16");
    STD_TORCH_CHECK(block_size > 0, "block_size=", block_size, " must be at least 1");
    ZooCoarse c = {};
    c.shape = {q.size(0), q.size(1), q.size(2), block_size, (q.size(1) + block_size - 1) / block_size, 0, 0.0f};
    const Arrays of(c.shape);
    c.q = of.tokens(q, "q"), c.k = of.tokens(k, "k"), c.mask = of.mask(mask), c.root = root;
    Tensor logits = like(q, {c.shape.heads, c.shape.count, c.shape.count});
    const int isa = level();
    torch::stable::parallel_for(0, c.shape.heads, 1, [&](int64_t begin, int64_t end) {
        zoo_block_logits(&c, isa, fresh(logits), begin, end);
    });
    return logits;
}

Tensor choose_blocks(Tensor logits, Tensor real, Tensor budget, int64_t most, int64_t first_blocks,
                     int64_t diagonal_blocks, bool fill) {
    STD_TORCH_CHECK(logits.dim() == 3, "logits must have shape (G, K, K)");
    const int64_t heads = logits.size(0), count = logits.size(1), room = most + (fill ? count : 0);
    STD_TORCH_CHECK(most >= 0 && most <= count * count, "most=", most, " must be from 0 to ", count * count);
    Tensor pairs = like(logits, {heads, room, 2}, ScalarType::Long);
    const ZooChoice p = {heads, count, first_blocks, diagonal_blocks, most, room,
                         numbers(logits, "logits", {heads, count, count}), flags(real, "real", {heads, count}),
                         whole(budget, "budget", {heads}), static_cast<int64_t*>(pairs.mutable_data_ptr()), fill};
    torch::stable::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) { zoo_choose(&p, begin, end); });
    return pairs;
}

// (B, H, N, D) -> (B, H, N, D), or (B, N, H, D) where tokens come first in memory.
Tensor clear_rows(Tensor x, Tensor padded, bool tokens_first) {
    STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu(), "x must have shape (B, H, N, D), on the CPU");
    const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), dim = x.size(3);
    STD_TORCH_CHECK(x.stride(3) == 1 || dim == 1, "the rows of x must be dense");
    const int64_t bytes = x.element_size(), row = dim * bytes;
    Tensor out = tokens_first ? like(x, {batch, length, heads, dim}, x.scalar_type())
                              : like(x, {batch, heads, length, dim}, x.scalar_type());
    const ZooRows p = {heads,
                       length,
                       row,
                       static_cast<const char*>(x.const_data_ptr()),
                       x.stride(0) * bytes,
                       x.stride(1) * bytes,
                       x.stride(2) * bytes,
                       flags(padded, "padded", {batch, length}),
                       static_cast<char*>(out.mutable_data_ptr()),
                       heads * length * row,
                       tokens_first ? row : length * row,
                       tokens_first ? heads * row : row};
    torch::stable::parallel_for(0, batch * length, 256,
                                [&](int64_t begin, int64_t end) { zoo_clear_rows(&p, begin, end); });
    return out;
}

// A number is kept with the probability 1 - threshold / 2^32.
Tensor dropout(Tensor x, int64_t seed, int64_t threshold, double scale) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous() && x.is_cpu(),
                    "x must be a dense float32 tensor on the CPU");
    STD_TORCH_CHECK(threshold >= 0 && threshold < (int64_t{1} << 32), "threshold=", threshold, " must be below 2^32");
    Tensor out = torch::stable::empty_like(x);
    const int64_t size = x.numel();
    const int isa = level();
    const ZooDropout p = {static_cast<const float*>(x.const_data_ptr()), fresh(out), size, static_cast<uint64_t>(seed),
                          static_cast<uint32_t>(threshold), static_cast<float>(scale)};
    torch::stable::parallel_for(0, (size + 63) / 64, 256,
                                [&](int64_t begin, int64_t end) { zoo_dropout(&p, isa, begin, end); });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(zoo, m) {
    m.def(
        "block_sparse_attention_cpu(Tensor q, Tensor k, Tensor v, Tensor blocks, int block_size, float scale,"
        " Tensor? mask, Tensor? prior_logit, Tensor? prior_value, int seed=0, int threshold=0) -> (Tensor, Tensor)");
    m.def(
        "block_sparse_attention_cpu_backward(Tensor d_out, Tensor d_lse, Tensor q, Tensor k, Tensor v, Tensor out,"
        " Tensor lse, Tensor blocks, int block_size, float scale, Tensor? mask, Tensor? prior_logit,"
        " Tensor? prior_value, int seed=0, int threshold=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "coarse_attention_cpu(Tensor q, Tensor k, Tensor v, Tensor blocks, int block_size, float scale, Tensor? mask)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "coarse_attention_cpu_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
        " Tensor prior_logit, Tensor prior_value, Tensor blocks, int block_size, float scale, Tensor? mask)"
        " -> (Tensor, Tensor, Tensor)");
    m.def("block_logits_cpu(Tensor q, Tensor k, int block_size, float root, Tensor? mask) -> Tensor");
    m.def(
        "choose_blocks_cpu(Tensor logits, Tensor real, Tensor budget, int most, int first_blocks, int diagonal_blocks,"
        " bool fill) -> Tensor");
    m.def("clear_rows_cpu(Tensor x, Tensor padded, bool tokens_first) -> Tensor");
    m.def("dropout_cpu(Tensor x, int seed, int threshold, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(zoo, CPU, m) {
    m.impl("block_sparse_attention_cpu", TORCH_BOX(&forward));
    m.impl("block_sparse_attention_cpu_backward", TORCH_BOX(&backward));
    m.impl("coarse_attention_cpu", TORCH_BOX(&coarse_forward));
    m.impl("coarse_attention_cpu_backward", TORCH_BOX(&coarse_backward));
    m.impl("block_logits_cpu", TORCH_BOX(&block_logits));
    m.impl("choose_blocks_cpu", TORCH_BOX(&choose_blocks));
    m.impl("clear_rows_cpu", TORCH_BOX(&clear_rows));
    m.impl("dropout_cpu", TORCH_BOX(&dropout));
}
