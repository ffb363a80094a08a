// Philox4x64-10, a random number generator without a state to hand on: word n of a stream is a function of its name.
//
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. The streams are those of
// numpy.random.Philox(key=[key0, key1], counter=[0, stream, 0, 0]).
#pragma once

#include <array>
#include <cstdint>

class Philox {
 public:
  Philox(uint64_t key0, uint64_t key1, uint64_t stream) : key_{key0, key1}, stream_(stream) {}

  uint64_t word() {
    if (used_ == 4) refill();
    return words_[used_++];
  }

  // Uniform in 0 .. bound - 1.
  int below(int bound) { return static_cast<int>(high(word(), static_cast<uint64_t>(bound))); }

  // Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(word() >> 11) * 0x1p-53; }

 private:
  static uint64_t high(uint64_t a, uint64_t b) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
  }

  void refill() {
    constexpr uint64_t multiplier0 = 0xD2E7470EE14C6C93, multiplier1 = 0xCA5A826395121157;
    auto [key0, key1] = key_;
    std::array<uint64_t, 4> x = {++block_, stream_, 0, 0};
    for (int round = 0; round < 10; ++round) {
      x = {high(multiplier1, x[2]) ^ x[1] ^ key0, multiplier1 * x[2], high(multiplier0, x[0]) ^ x[3] ^ key1,
           multiplier0 * x[0]};
      key0 += 0x9E3779B97F4A7C15;
      key1 += 0xBB67AE8584CAA73B;
    }
    words_ = x;
    used_ = 0;
  }

  std::array<uint64_t, 2> key_;
  uint64_t stream_, block_ = 0;
  std::array<uint64_t, 4> words_{};
  int used_ = 4;
};
