// What the C++ tests share: random inputs, a comparison against double precision, and an exit status.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "simd.h"

namespace ddfast::test {

inline int failures = 0;

inline std::vector<double> normal(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution;
  std::vector<double> values(count);
  for (double& value : values) value = distribution(generator);
  return values;
}

template <typename T>
std::vector<T> as(const std::vector<double>& values) {
  return std::vector<T>(values.begin(), values.end());
}

template <typename T>
std::vector<double> draw(size_t count, unsigned seed) {  // numbers that T can hold: only the arithmetic differs
  const std::vector<T> rounded = as<T>(normal(count, seed));
  return std::vector<double>(rounded.begin(), rounded.end());
}

template <typename T>
std::vector<T> poisoned(size_t count) {  // outputs start as NaN, so that an element nobody wrote shows
  return std::vector<T>(count, static_cast<T>(std::nan("")));
}

inline void expect(const std::string& what, bool held) {
  if (held) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

template <typename T>
std::string name_of_type() {
  return sizeof(T) == 2 ? "bfloat16" : sizeof(T) == 4 ? "float" : "double";
}

// ‖got − expected‖ / ‖expected‖; the bounds are a few rounding errors of T, of bfloat16 the one on storing.
template <typename T>
void expect_close(const std::string& what, const std::vector<T>& got, const std::vector<double>& expected) {
  const double bound = sizeof(T) == 2 ? 0x1p-8 : sizeof(T) == 4 ? 2e-6 : 1e-13;
  expect(what + " size", got.size() == expected.size());
  if (got.size() != expected.size()) return;
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  const double error = std::sqrt(difference) / (std::sqrt(size) + 1e-30);
  if (error <= bound) return;  // NaN fails
  ++failures;
  std::printf("FAILED %s: relative error %.3g, allowed %.3g\n", what.c_str(), error, bound);
}

inline int finish(const char* name) {
  std::printf("%s: %d failed\n", name, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace ddfast::test
