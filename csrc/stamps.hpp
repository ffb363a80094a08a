// Small pictures: dashes and discs, drawn at twice the size and shrunk, as the benchmark's images were.
//
// They were drawn with Pillow. What is kept of it, to the last bit of a pixel: where a line's pixels are, and Lanczos
// shrinking in whole numbers with 22 bits after the point. Its overshoot is the faint grey (1 to 6) beside each dash.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "exact.hpp"

namespace stamps {

// A square of bytes, rows by columns.
struct Picture {
  int size;
  std::vector<uint8_t> bytes;

  explicit Picture(int size) : size(size), bytes(static_cast<size_t>(size) * size) {}
  uint8_t& at(int row, int column) { return bytes[static_cast<size_t>(row) * size + column]; }
  uint8_t at(int row, int column) const { return bytes[static_cast<size_t>(row) * size + column]; }
  bool holds(int row, int column) const { return row >= 0 && row < size && column >= 0 && column < size; }
};

// How one side of `from` pixels shrinks to `to`: pixel i is the sum of weights[i][k] * pixel first[i] + k, by 2^22.
struct Shrinking {
  std::vector<int> first;
  std::vector<std::vector<int>> weights;

  Shrinking(int from, int to) : first(to), weights(to) {
    const double scale = static_cast<double>(from) / to, support = 3 * scale;
    for (int i = 0; i < to; ++i) {
      const double centre = (i + 0.5) * scale;
      first[i] = std::max(static_cast<int>(centre - support + 0.5), 0);
      const int end = std::min(static_cast<int>(centre + support + 0.5), from);
      std::vector<double> exactly;
      double sum = 0;
      for (int x = first[i]; x < end; ++x) {
        exactly.push_back(lanczos((x - centre + 0.5) * (1 / scale)));
        sum += exactly.back();
      }
      for (double weight : exactly) {
        const double scaled = weight / sum * (1 << 22);
        weights[i].push_back(static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
      }
    }
  }

  static double sinc(double x) { return x == 0 ? 1 : exact::sine(x * exact::PI) / (x * exact::PI); }
  static double lanczos(double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

  // Pixel i of a line of pixels that are `step` bytes apart.
  uint8_t pixel(int i, const uint8_t* line, int step) const {
    int sum = 1 << 21;
    const uint8_t* byte = line + static_cast<ptrdiff_t>(first[i]) * step;
    for (const int weight : weights[i]) {
      sum += weight * *byte;
      byte += step;
    }
    return static_cast<uint8_t>(std::clamp(sum >> 22, 0, 255));
  }

  Picture operator()(const Picture& picture) const {
    const int to = static_cast<int>(first.size()), from = picture.size;
    std::vector<uint8_t> narrow(static_cast<size_t>(from) * to);
    for (int row = 0; row < from; ++row)
      for (int i = 0; i < to; ++i) narrow[row * to + i] = pixel(i, &picture.bytes[row * from], 1);
    Picture result(to);
    for (int i = 0; i < to; ++i)
      for (int column = 0; column < to; ++column) result.at(i, column) = pixel(i, &narrow[column], to);
    return result;
  }
};

// Each pixel takes the largest within `radius` of it. `grow` is by how much the picture becomes larger on every side.
inline Picture dilated(const Picture& picture, int radius, int grow) {
  Picture result(picture.size + 2 * grow);
  for (int row = 0; row < picture.size; ++row)
    for (int column = 0; column < picture.size; ++column) {
      if (picture.at(row, column) == 0) continue;
      for (int dy = -radius; dy <= radius; ++dy)
        for (int dx = -radius; dx <= radius; ++dx) {
          const int y = row + dy + grow, x = column + dx + grow;
          if (dy * dy + dx * dx <= radius * radius && result.holds(y, x))
            result.at(y, x) = std::max(result.at(y, x), picture.at(row, column));
        }
    }
  return result;
}

// A line of one pixel from (x, y) to (x + dx, y + dy), both ends included (Bresenham).
inline void thin_line(Picture& picture, int x, int y, int dx, int dy) {
  const int width = std::abs(dx), height = std::abs(dy), steps = std::max(width, height);
  const bool flat = width > height;
  const int minor = flat ? height : width;
  int error = 2 * minor - steps;
  for (int i = 0; i <= steps; ++i) {
    picture.at(y, x) = 255;
    // The last pixel is the end itself.
    const bool side = error >= 0 && minor > 0;
    if (side) error -= 2 * steps;
    error += 2 * minor;
    if (flat || side) x += dx < 0 ? -1 : 1;
    if (!flat || side) y += dy < 0 ? -1 : 1;
  }
}

// A line of `width` > 1 pixels: the parallelogram about it, rounded to whole corners, filled row by row.
inline void wide_line(Picture& picture, int x, int y, int dx, int dy, int width) {
  const auto up = [](double v) { return static_cast<int>(v >= 0 ? std::floor(v + 0.5) : -std::floor(-v + 0.5)); };
  const auto down = [](double v) { return static_cast<int>(v >= 0 ? std::ceil(v - 0.5) : -std::ceil(-v - 0.5)); };
  const double length = std::sqrt(static_cast<double>(dx * dx + dy * dy)), half = (width - 1) / 2.0;
  const double more = up(half) / length, less = down(half) / length;
  const int left = down(less * dy), right = down(more * dy), above = down(less * dx), below = down(more * dx);
  const int xs[4] = {x - left, x + dx - left, x + dx + right, x + right};
  const int ys[4] = {y + below, y + dy + below, y + dy - above, y - above};
  for (int row = *std::min_element(ys, ys + 4); row <= *std::max_element(ys, ys + 4); ++row) {
    float from = 1e9f, to = -1e9f;
    for (int i = 0; i < 4; ++i) {
      const int j = (i + 1) % 4;
      if (row < std::min(ys[i], ys[j]) || row > std::max(ys[i], ys[j])) continue;
      const float slope = ys[i] == ys[j] ? 0 : static_cast<float>(xs[j] - xs[i]) / static_cast<float>(ys[j] - ys[i]);
      const float crossing = static_cast<float>(row - ys[i]) * slope + static_cast<float>(xs[i]);
      from = std::min(from, crossing);
      to = std::max(to, crossing);
      if (ys[i] != ys[j]) continue;
      from = std::min(from, static_cast<float>(xs[j]));
      to = std::max(to, static_cast<float>(xs[j]));
    }
    for (int column = up(from); column <= down(to); ++column)
      if (picture.holds(row, column)) picture.at(row, column) = 255;
  }
}

}  // namespace stamps
