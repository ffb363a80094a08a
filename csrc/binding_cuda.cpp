// The compiled operators on a GPU, for torch. As binding.cpp, it knows of torch only the stable ABI; and of CUDA only
// zoo_cuda.hpp, so that a compiler for C++ will do and the library loads beside a torch that has no CUDA. Memory comes
// from torch alone, nothing waits for the device, and `stream` is the caller's current one: calls can be captured.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <on_device.hpp>

#include <optional>
#include <tuple>

#include "zoo_cuda.hpp"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

using Sizes = std::initializer_list<int64_t>;

Tensor like(const Tensor& x, Sizes sizes, ScalarType dtype = ScalarType::Float) {
    return torch::stable::new_empty(x, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), dtype);
}

// The address of a tensor of one dtype and shape on the device of `home`, dense and aligned for loads of 16 bytes.
const void* checked(const Tensor& x, const Tensor& home, const char* name, ScalarType dtype, Sizes sizes) {
    STD_TORCH_CHECK(in_place(x) && x.get_device_index() == home.get_device_index(), name,
                    " must be " ZOO_PLACE " that the other tensors are on");
    STD_TORCH_CHECK(x.scalar_type() == dtype, name, " must be of type ", torch::headeronly::toString(dtype), ", not ",
                    torch::headeronly::toString(x.scalar_type()));
    const auto same = [&] {
        if (x.dim() != static_cast<int64_t>(sizes.size())) return false;
        int64_t i = 0;
        for (const int64_t size : sizes)
            if (x.size(i++) != size) return false;
        return true;
    };
    STD_TORCH_CHECK(same(), name, " has the wrong shape");
    const void* at = x.const_data_ptr();
    STD_TORCH_CHECK(x.is_contiguous() && reinterpret_cast<uintptr_t>(at) % 16 == 0, name,
                    " must be dense and aligned to 16 bytes");
    return at;
}

template <class Number>
Number* fresh(Tensor& x) {
    return static_cast<Number*>(x.mutable_data_ptr());
}
float* fresh(Tensor& x) { return fresh<float>(x); }

void launched(int error) { STD_TORCH_CHECK(error == 0, "CUDA: ", zoo_cuda_error(error)); }

void* handle(int64_t stream) { return reinterpret_cast<void*>(static_cast<intptr_t>(stream)); }

// What all operators on q have in common. Its tensors have one device, which is current while this lives.
struct Given {
    OnDevice device;
    const Tensor& home;
    ZooShape shape;
    ScalarType dtype;
    int number;

    Given(const Tensor& q, int64_t block_size, double scale, const Tensor* blocks = nullptr)
        : device(q), home(q), dtype(q.scalar_type()) {
        launched(device.error);
        STD_TORCH_CHECK(q.dim() == 3, "q must have three dimensions");
        const int64_t length = q.size(1), dim = q.size(2);
        STD_TORCH_CHECK(dim == 16 || dim == 32 || dim == 64 || dim == 128, "D must be 16, 32, 64 or 128, not ", dim);
        STD_TORCH_CHECK(block_size == 16 || block_size == 32 || block_size == 64,
                        "the block size must be 16, 32 or 64, not ", block_size);
        STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                        "q must be float32, bfloat16 or float16");
        number = dtype == ScalarType::Float ? ZOO_FLOAT32 : dtype == ScalarType::BFloat16 ? ZOO_BFLOAT16 : ZOO_FLOAT16;
        if (blocks) STD_TORCH_CHECK(blocks->dim() == 3, "blocks must have three dimensions");
        shape = {q.size(0), length, dim, block_size, (length + block_size - 1) / block_size,
                 blocks ? blocks->size(1) : 0, static_cast<float>(scale)};
    }

    const void* rows(const Tensor& x, const char* name) const {
        return checked(x, home, name, dtype, {shape.heads, shape.length, shape.dim});
    }
    const float* floats(const Tensor& x, const char* name, Sizes sizes) const {
        return static_cast<const float*>(checked(x, home, name, ScalarType::Float, sizes));
    }
    const uint8_t* flags(const std::optional<Tensor>& mask) const {
        if (!mask) return nullptr;
        return static_cast<const uint8_t*>(
            checked(*mask, home, "mask", ScalarType::Bool, {shape.heads, shape.length}));
    }
    const float* logits(const std::optional<Tensor>& x) const {
        return x ? floats(*x, "prior_logit", {shape.heads, shape.count}) : nullptr;
    }
    const float* values(const std::optional<Tensor>& x) const {
        return x ? floats(*x, "prior_value", {shape.heads, shape.count, shape.dim}) : nullptr;
    }

    // What every one of the arguments of zoo_cuda.hpp begins with.
    template <class Arguments>
    Arguments with(const Tensor& blocks) const {
        Arguments p = {};
        p.shape = shape;
        p.number = number;
        p.wide = blocks.scalar_type() == ScalarType::Long;
        p.blocks = checked(blocks, home, "blocks", p.wide ? ScalarType::Long : ScalarType::Int,
                           {shape.heads, shape.pairs, 2});
        return p;
    }

    Tensor tokens(int64_t copies = 1) const { return like(home, {copies * shape.heads, shape.length}); }
    Tensor per_block() const { return like(home, {shape.heads, shape.count}); }
    Tensor vectors() const { return like(home, {shape.heads, shape.count, shape.dim}); }
    Tensor means() const { return like(home, {3, shape.heads, shape.count, shape.dim}); }
    Tensor same() const { return like(home, {shape.heads, shape.length, shape.dim}, dtype); }
};

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, Tensor blocks, int64_t block_size, double scale,
                                   std::optional<Tensor> mask, std::optional<Tensor> prior_logit,
                                   std::optional<Tensor> prior_value, int64_t stream) {
    const Given given(q, block_size, scale, &blocks);
    Tensor out = given.same(), lse = given.tokens();
    auto p = given.with<ZooCudaForward>(blocks);
    p.q = given.rows(q, "q"), p.k = given.rows(k, "k"), p.v = given.rows(v, "v"), p.mask = given.flags(mask);
    p.prior_logit = given.logits(prior_logit), p.prior_value = given.values(prior_value);
    p.out = out.mutable_data_ptr(), p.lse = fresh(lse);
    launched(zoo_cuda_forward(&p, handle(stream)));
    return {out, lse};
}

// The arguments of a backward, and the tensors that it fills.
struct Backward {
    Tensor scratch, d_q, d_k, d_v;
    ZooCudaBackward p;

    Backward(const Given& given, const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v,
             const Tensor& out, const Tensor& lse, const Tensor& blocks, const std::optional<Tensor>& mask)
        : scratch(given.tokens(2)), d_q(given.same()), d_k(given.same()), d_v(given.same()),
          p(given.with<ZooCudaBackward>(blocks)) {
        const int64_t size = given.shape.heads * given.shape.length;
        p.q = given.rows(q, "q"), p.k = given.rows(k, "k"), p.v = given.rows(v, "v"), p.mask = given.flags(mask);
        p.out = given.rows(out, "out"), p.d_out = given.rows(d_out, "d_out");
        p.lse = given.floats(lse, "lse", {given.shape.heads, given.shape.length});
        p.shift = fresh(scratch), p.total = fresh(scratch) + size;
        p.d_q = d_q.mutable_data_ptr(), p.d_k = d_k.mutable_data_ptr(), p.d_v = d_v.mutable_data_ptr();
    }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(Tensor d_out, Tensor d_lse, Tensor q, Tensor k, Tensor v,
                                                            Tensor out, Tensor lse, Tensor blocks, int64_t block_size,
                                                            double scale, std::optional<Tensor> mask,
                                                            std::optional<Tensor> prior_logit,
                                                            std::optional<Tensor> prior_value, int64_t stream) {
    const Given given(q, block_size, scale, &blocks);
    Backward b(given, d_out, q, k, v, out, lse, blocks, mask);
    const int64_t priors = prior_logit ? given.shape.heads : 0;
    Tensor d_logit = like(q, {priors, given.shape.count}),
           d_value = like(q, {priors, given.shape.count, given.shape.dim});
    b.p.d_lse = given.floats(d_lse, "d_lse", {given.shape.heads, given.shape.length});
    b.p.prior_logit = given.logits(prior_logit), b.p.prior_value = given.values(prior_value);
    if (priors) b.p.d_prior_logit = fresh(d_logit), b.p.d_prior_value = fresh(d_value);
    launched(zoo_cuda_backward_prepare(&b.p, handle(stream)));
    launched(zoo_cuda_backward(&b.p, handle(stream)));
    return {b.d_q, b.d_k, b.d_v, d_logit, d_value};
}

ZooCudaCoarse coarse_of(const Given& given, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& blocks,
                        const std::optional<Tensor>& mask, Tensor& means, Tensor& logs) {
    auto c = given.with<ZooCudaCoarse>(blocks);
    c.q = given.rows(q, "q"), c.k = given.rows(k, "k"), c.v = given.rows(v, "v"), c.mask = given.flags(mask);
    c.means = fresh(means), c.logs = fresh(logs);
    return c;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> coarse_forward(Tensor q, Tensor k, Tensor v, Tensor blocks,
                                                          int64_t block_size, double scale, std::optional<Tensor> mask,
                                                          int64_t stream) {
    const Given given(q, block_size, scale, &blocks);
    Tensor means = given.means(), logs = given.per_block(), prior_logit = given.per_block(),
           prior_value = given.vectors(), out = given.same(), lse = given.tokens();
    ZooCudaCoarse c = coarse_of(given, q, k, v, blocks, mask, means, logs);
    c.prior_logit = fresh(prior_logit), c.prior_value = fresh(prior_value);
    auto p = given.with<ZooCudaForward>(blocks);
    p.q = c.q, p.k = c.k, p.v = c.v, p.mask = c.mask;
    p.prior_logit = c.prior_logit, p.prior_value = c.prior_value;
    p.out = out.mutable_data_ptr(), p.lse = fresh(lse);
    launched(zoo_cuda_means(&c, handle(stream)));
    launched(zoo_cuda_coarse_forward(&c, handle(stream)));
    launched(zoo_cuda_forward(&p, handle(stream)));
    return {out, lse, prior_logit, prior_value};
}

std::tuple<Tensor, Tensor, Tensor> coarse_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                                                   Tensor prior_logit, Tensor prior_value, Tensor blocks,
                                                   int64_t block_size, double scale, std::optional<Tensor> mask,
                                                   int64_t stream) {
    const Given given(q, block_size, scale, &blocks);
    Backward b(given, d_out, q, k, v, out, lse, blocks, mask);
    Tensor means = given.means(), d_means = given.means(), logs = given.per_block(),
           d_logit = given.per_block(), d_value = given.vectors();
    ZooCudaCoarse c = coarse_of(given, q, k, v, blocks, mask, means, logs);
    c.prior_logit = const_cast<float*>(given.logits(prior_logit));
    c.prior_value = const_cast<float*>(given.values(prior_value));
    c.d_prior_logit = fresh(d_logit), c.d_prior_value = fresh(d_value);
    c.d_means = fresh(d_means);
    b.p.prior_logit = c.prior_logit, b.p.prior_value = c.prior_value;
    b.p.d_prior_logit = fresh(d_logit), b.p.d_prior_value = fresh(d_value), b.p.d_means = c.d_means;
    launched(zoo_cuda_means(&c, handle(stream)));
    launched(zoo_cuda_backward_prepare(&b.p, handle(stream)));
    launched(zoo_cuda_coarse_backward(&c, handle(stream)));
    launched(zoo_cuda_backward(&b.p, handle(stream)));
    return {b.d_q, b.d_k, b.d_v};
}

Tensor block_logits(Tensor q, Tensor k, int64_t block_size, double root, std::optional<Tensor> mask, int64_t stream) {
    const Given given(q, block_size, 0.0);
    const ZooShape& s = given.shape;
    Tensor means = like(q, {2, s.heads, s.count, s.dim}, ScalarType::Double),
           logits = like(q, {s.heads, s.count, s.count});
    ZooCudaLogits p = {};
    p.shape = s, p.number = given.number, p.root = root;
    p.q = given.rows(q, "q"), p.k = given.rows(k, "k"), p.mask = given.flags(mask);
    p.means = fresh<double>(means), p.logits = fresh(logits);
    launched(zoo_cuda_logits(&p, handle(stream)));
    return logits;
}

Tensor choose_blocks(Tensor logits, Tensor real, Tensor budget, int64_t most, int64_t first_blocks,
                     int64_t diagonal_blocks, bool fill, int64_t stream) {
    const OnDevice device(logits);
    launched(device.error);
    STD_TORCH_CHECK(logits.dim() == 3, "logits must have three dimensions");
    const int64_t heads = logits.size(0), count = logits.size(1), room = most + (fill ? count : 0);
    STD_TORCH_CHECK(count < 1 << 16, "there must be fewer than 65536 blocks, not ", count);
    STD_TORCH_CHECK(0 <= most && most <= count * count, "most must be from 0 to ", count * count, ", not ", most);
    Tensor pairs = like(logits, {heads, room, 2}, ScalarType::Long),
           lost = like(logits, {heads, count, count}, ScalarType::Int);
    ZooChoice p = {};
    p.heads = heads, p.count = count, p.first_blocks = first_blocks, p.diagonal_blocks = diagonal_blocks;
    p.most = most, p.room = room, p.fill = fill;
    p.logits = static_cast<const float*>(checked(logits, logits, "logits", ScalarType::Float, {heads, count, count}));
    p.real = static_cast<const uint8_t*>(checked(real, logits, "real", ScalarType::Bool, {heads, count}));
    p.budget = static_cast<const int64_t*>(checked(budget, logits, "budget", ScalarType::Long, {heads}));
    p.pairs = fresh<int64_t>(pairs);
    launched(zoo_cuda_choose(&p, fresh<uint32_t>(lost), handle(stream)));
    return pairs;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ZOO_OPERATORS, m) {
    m.def(
        "block_sparse_attention_cuda(Tensor q, Tensor k, Tensor v, Tensor blocks, int block_size, float scale,"
        " Tensor? mask, Tensor? prior_logit, Tensor? prior_value, int stream) -> (Tensor, Tensor)");
    m.def(
        "block_sparse_attention_cuda_backward(Tensor d_out, Tensor d_lse, Tensor q, Tensor k, Tensor v, Tensor out,"
        " Tensor lse, Tensor blocks, int block_size, float scale, Tensor? mask, Tensor? prior_logit,"
        " Tensor? prior_value, int stream) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "coarse_attention_cuda(Tensor q, Tensor k, Tensor v, Tensor blocks, int block_size, float scale, Tensor? mask,"
        " int stream) -> (Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "coarse_attention_cuda_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
        " Tensor prior_logit, Tensor prior_value, Tensor blocks, int block_size, float scale, Tensor? mask,"
        " int stream) -> (Tensor, Tensor, Tensor)");
    m.def("block_logits_cuda(Tensor q, Tensor k, int block_size, float root, Tensor? mask, int stream) -> Tensor");
    m.def(
        "choose_blocks_cuda(Tensor logits, Tensor real, Tensor budget, int most, int first_blocks, int diagonal_blocks,"
        " bool fill, int stream) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ZOO_OPERATORS, ZOO_DEVICE, m) {
    m.impl("block_sparse_attention_cuda", TORCH_BOX(&forward));
    m.impl("block_sparse_attention_cuda_backward", TORCH_BOX(&backward));
    m.impl("coarse_attention_cuda", TORCH_BOX(&coarse_forward));
    m.impl("coarse_attention_cuda_backward", TORCH_BOX(&coarse_backward));
    m.impl("block_logits_cuda", TORCH_BOX(&block_logits));
    m.impl("choose_blocks_cuda", TORCH_BOX(&choose_blocks));
}
