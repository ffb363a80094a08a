// Block-sparse attention on a CPU, for every instruction set in one library; the caller names the one to use.

#include "block_sparse_levels.hpp"

#include <algorithm>
#include <vector>

namespace {

const ZooKernels& at(int level) {
#if defined(__x86_64__)
    if (level == 2) return zoo_avx512;
    if (level == 1) return zoo_avx2;
#endif
    (void)level;
    return zoo_portable;
}

template <class Number>
int64_t sort_head(const ZooShape& s, const Number* pairs, int32_t* row_start, int32_t* keys, int32_t* column_start,
                  int32_t* queries, std::vector<int64_t>& seen) {
    std::fill(seen.begin(), seen.end(), -1);
    int64_t row = 0;
    row_start[0] = 0;
    int64_t pair = 0;
    for (; pair < s.pairs; ++pair) {
        const int64_t x = pairs[2 * pair], y = pairs[2 * pair + 1];
        if (x == s.count) break;
        if (x < row || x > s.count || y < 0 || y >= s.count || seen[y] == x) return pair;
        seen[y] = x;
        while (row < x) row_start[++row] = static_cast<int32_t>(pair);
        keys[pair] = static_cast<int32_t>(y);
    }
    const int64_t filled = pair;
    for (; pair < s.pairs; ++pair)
        if (pairs[2 * pair] != s.count) return pair;
    while (row < s.count) row_start[++row] = static_cast<int32_t>(filled);
    if (!column_start) return -1;
    for (int64_t y = 0; y <= s.count; ++y) column_start[y] = 0;
    for (int64_t i = 0; i < filled; ++i) ++column_start[keys[i] + 1];
    for (int64_t y = 0; y < s.count; ++y) column_start[y + 1] += column_start[y];
    for (int64_t i = 0; i < filled; ++i) queries[column_start[keys[i]]++] = static_cast<int32_t>(pairs[2 * i]);
    for (int64_t y = s.count; y > 0; --y) column_start[y] = column_start[y - 1];
    column_start[0] = 0;
    return -1;
}

}  // namespace

extern "C" {

int zoo_best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

int64_t zoo_sort_pairs(const ZooShape* s, const void* blocks, int wide, int32_t* row_start, int32_t* keys,
                       int32_t* column_start, int32_t* queries, int64_t begin, int64_t end) {
    // The last query block that a key block was seen with.
    std::vector<int64_t> seen(s->count);
    for (int64_t head = begin; head < end; ++head) {
        const int64_t from = 2 * head * s->pairs, start = head * (s->count + 1), to = head * s->pairs;
        int32_t* columns = column_start ? column_start + start : nullptr;
        const int64_t wrong = wide ? sort_head(*s, static_cast<const int64_t*>(blocks) + from, row_start + start,
                                               keys + to, columns, queries + to, seen)
                                   : sort_head(*s, static_cast<const int32_t*>(blocks) + from, row_start + start,
                                               keys + to, columns, queries + to, seen);
        if (wrong >= 0) return to + wrong;
    }
    return -1;
}

void zoo_forward(const ZooForward* p, int level, int64_t begin, int64_t end) { at(level).forward(*p, begin, end); }
void zoo_backward_shift(const ZooBackward* p, int level, int64_t begin, int64_t end) { at(level).shift(*p, begin, end); }
void zoo_backward_heads(const ZooBackward* p, int level, int64_t begin, int64_t end) { at(level).heads(*p, begin, end); }
void zoo_backward_rows(const ZooBackward* p, int level, int64_t begin, int64_t end) { at(level).rows(*p, begin, end); }
void zoo_backward_columns(const ZooBackward* p, int level, int64_t begin, int64_t end) {
    at(level).columns(*p, begin, end);
}
void zoo_coarse_means(const ZooCoarse* p, int level, int64_t begin, int64_t end) {
    at(level).coarse_means(*p, begin, end);
}
void zoo_coarse_forward(const ZooCoarse* p, int level, int64_t begin, int64_t end) {
    at(level).coarse_forward(*p, begin, end);
}
void zoo_coarse_backward(const ZooCoarse* p, int level, int64_t begin, int64_t end) {
    at(level).coarse_backward(*p, begin, end);
}
void zoo_block_logits(const ZooCoarse* p, int level, float* logits, int64_t begin, int64_t end) {
    at(level).block_logits(*p, logits, begin, end);
}
void zoo_dropout(const ZooDropout* p, int level, int64_t begin, int64_t end) { at(level).dropout(*p, begin, end); }
void zoo_exp2(const float* x, float* out, int level, int64_t size) { at(level).powers(x, out, size); }
}
