// Zeros in the rows of padding, on a CPU. Knows nothing of torch.
#pragma once

#include <cstdint>

extern "C" {

// A copy of (B, H, N) rows of `row` bytes, zero where `padded` (B, N) is 1. Steps in bytes.
struct ZooRows {
    int64_t heads, length, row;
    const char* x;
    int64_t x_batch, x_head, x_token;
    const uint8_t* padded;
    char* out;
    int64_t out_batch, out_head, out_token;
};
// Tokens begin..end of the B N of all examples.
void zoo_clear_rows(const ZooRows*, int64_t begin, int64_t end);
}
