// Sine, cosine and arc tangent that give the same bits on every machine, which the C library does not promise.
//
// Numbers are carried as unevaluated sums of two doubles (about 106 bits), with nothing but + - * /, and rounded once
// at the end: the correctly rounded result. sine(pi as a double) is 1.2246467991473532e-16, not 0.
#pragma once

#include <cmath>

namespace exact {

struct Sum {
  double high, low;
};

inline Sum two_sum(double a, double b) {
  const double sum = a + b, part = sum - a;
  return {sum, (a - (sum - part)) + (b - part)};
}

// The product of two doubles without error (Veltkamp's splitting, Dekker's product).
inline Sum two_product(double a, double b) {
  const auto split = [](double x) {
    const double big = 134217729.0 * x, high = big - (big - x);
    return Sum{high, x - high};
  };
  const double product = a * b;
  const Sum x = split(a), y = split(b);
  return {product, ((x.high * y.high - product) + x.high * y.low + x.low * y.high) + x.low * y.low};
}

inline Sum operator+(Sum a, Sum b) {
  const Sum high = two_sum(a.high, b.high), low = two_sum(a.low, b.low);
  const Sum first = two_sum(high.high, high.low + low.high);
  return two_sum(first.high, first.low + low.low);
}

inline Sum operator-(Sum a) { return {-a.high, -a.low}; }

inline Sum operator*(Sum a, Sum b) {
  const Sum product = two_product(a.high, b.high);
  return two_sum(product.high, product.low + (a.high * b.low + a.low * b.high));
}

inline Sum operator/(Sum a, Sum b) {
  const double first = a.high / b.high;
  const Sum rest = a + -(b * Sum{first, 0});
  const double second = rest.high / b.high;
  const Sum last = rest + -(b * Sum{second, 0});
  return two_sum(first, second) + Sum{last.high / b.high, 0};
}

constexpr double PI = 3.141592653589793;
// pi/2 in three parts: a residue next to a multiple of pi/2 keeps all its bits.
constexpr double HALF_PI[3] = {1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33};

struct SineCosine {
  Sum sine, cosine;
};

// Both, for |angle| below about 1e6: the angle less the nearest multiple of pi/2, then Taylor's series.
inline SineCosine sine_cosine(Sum angle) {
  const double turns = std::floor(angle.high / HALF_PI[0] + 0.5);
  Sum rest = angle;
  for (const double part : HALF_PI) rest = rest + -two_product(turns, part);
  const Sum square = rest * rest;
  Sum sine = rest, cosine = {1, 0}, sine_term = rest, cosine_term = {1, 0};
  for (int n = 1; n <= 28; n += 2) {
    cosine_term = -(cosine_term * square / Sum{n * (n + 1.0), 0});
    sine_term = -(sine_term * square / Sum{(n + 1.0) * (n + 2.0), 0});
    cosine = cosine + cosine_term;
    sine = sine + sine_term;
  }
  switch (static_cast<long>(turns) & 3) {
    case 0: return {sine, cosine};
    case 1: return {cosine, -sine};
    case 2: return {-sine, -cosine};
    default: return {-cosine, sine};
  }
}

inline double sine(double angle) { return sine_cosine({angle, 0}).sine.high; }
inline double cosine(double angle) { return sine_cosine({angle, 0}).cosine.high; }

// The angle of the vector (x, y), not both 0, in (-pi, pi].
inline double arc_tangent(int y, int x) {
  const bool steep = std::abs(y) > std::abs(x);
  const Sum slope = steep ? Sum{-static_cast<double>(x), 0} / Sum{static_cast<double>(y), 0}
                          : Sum{static_cast<double>(y), 0} / Sum{static_cast<double>(x), 0};
  // tan(slope's angle - angle), turned into an angle by three terms of its series: three rounds are enough.
  Sum angle = slope;
  for (int round = 0; round < 4; ++round) {
    const auto [sine, cosine] = sine_cosine(angle);
    const Sum tangent = (slope * cosine + -sine) / (cosine + slope * sine), square = tangent * tangent;
    angle = angle + tangent + -(tangent * square / Sum{3, 0}) + tangent * square * square / Sum{5, 0};
  }
  const double quarters = steep ? (y > 0 ? 1 : -1) : x > 0 ? 0 : y >= 0 ? 2 : -2;
  for (const double part : HALF_PI) angle = angle + two_product(quarters, part);
  return angle.high;
}

}  // namespace exact
