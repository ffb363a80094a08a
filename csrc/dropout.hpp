// Dropout on a CPU. Knows nothing of torch.
#pragma once

#include <cstdint>

extern "C" {

// out = x scale where the random word of a number is at least `threshold`, and x 0 elsewhere. Words are Philox4x32-10's
// under the key `seed`: word w of counter 16 g + l belongs to number 64 g + 16 w + l.
struct ZooDropout {
    const float* x;
    float* out;
    int64_t size;
    uint64_t seed;
    uint32_t threshold;
    float scale;
};
// Groups begin..end of 64 numbers.
void zoo_dropout(const ZooDropout*, int level, int64_t begin, int64_t end);
}
