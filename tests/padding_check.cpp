// zoo_clear_rows in every layout, on arrays of exactly their size, for the sanitizers.

#include "padding.hpp"

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace {

void check(int64_t batch, int64_t heads, int64_t length, int64_t row, bool tokens_first, bool from_tokens) {
    const int64_t all = batch * heads * length * row;
    char *x = static_cast<char*>(std::malloc(all)), *out = static_cast<char*>(std::malloc(all));
    uint8_t* padded = static_cast<uint8_t*>(std::malloc(batch * length));
    for (int64_t i = 0; i < all; ++i) x[i] = static_cast<char>(i % 127 + 1);
    for (int64_t i = 0; i < batch * length; ++i) padded[i] = i % 3 == 1;
    const auto head = [&](bool tokens) { return tokens ? row : length * row; };
    const auto token = [&](bool tokens) { return tokens ? heads * row : row; };
    const int64_t example = heads * length * row;
    const ZooRows p = {heads, length, row, x, example, head(from_tokens), token(from_tokens), padded,
                       out, example, head(tokens_first), token(tokens_first)};
    // In parts, as threads take them.
    const int64_t middle = batch * length / 2;
    zoo_clear_rows(&p, 0, middle);
    zoo_clear_rows(&p, middle, batch * length);
    for (int64_t i = 0; i < batch * length; ++i)
        for (int64_t h = 0; h < heads; ++h) {
            const int64_t start = i / length * example;
            const char* from = x + start + h * head(from_tokens) + i % length * token(from_tokens);
            const char* to = out + start + h * head(tokens_first) + i % length * token(tokens_first);
            for (int64_t d = 0; d < row; ++d)
                if (to[d] != (padded[i] ? 0 : from[d])) {
                    std::fprintf(stderr, "row %lld of head %lld is wrong\n", static_cast<long long>(i),
                                 static_cast<long long>(h));
                    std::exit(1);
                }
        }
    std::free(x), std::free(out), std::free(padded);
}

}  // namespace

int main() {
    for (const int64_t batch : {0, 1, 3})
        for (const int64_t heads : {1, 2})
            for (const int64_t length : {1, 7})
                for (const int64_t row : {2, 48})
                    for (const bool tokens_first : {false, true})
                        for (const bool from_tokens : {false, true})
                            check(batch, heads, length, row, tokens_first, from_tokens);
    return 0;
}
