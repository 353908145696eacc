// The matrix product inside conv3x3: blocks of rows times panels of two vectors, held in registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/simd.h"

namespace ddfast {

template <int kBytes>
struct Lanes {
  typedef float Vector __attribute__((vector_size(kBytes)));
  typedef float InMemory __attribute__((vector_size(kBytes), aligned(alignof(float)), may_alias));
  static constexpr int kCount = kBytes / static_cast<int>(sizeof(float));
  static constexpr int kMaxRows = kBytes == 64 ? 12 : 6;  // 24 of 32 registers, or 12 of 16

  static DDFAST_INLINE Vector load(const float* from) { return *reinterpret_cast<const InMemory*>(from); }
  static DDFAST_INLINE Vector load(const float* from, int64_t lanes) {  // the others are zero
    if (lanes >= kCount) return load(from);
    float values[kCount] = {};
    std::memcpy(values, from, lanes * sizeof(float));
    return load(values);
  }
  static DDFAST_INLINE void store(const Vector& values, float* to) { *reinterpret_cast<InMemory*>(to) = values; }
  static DDFAST_INLINE void store(const Vector& values, float* to, int64_t lanes) {
    if (lanes >= kCount) return store(values, to);
    float all[kCount];
    store(values, all);
    std::memcpy(to, all, lanes * sizeof(float));
  }
};

struct Operands {
  const float* a;  // kTransposed: [count, ≥ rows], row after row a_stride apart; else [rows, ≥ count]
  int64_t a_stride;
  const float* b;  // [repeats · count, panel], rows b_stride apart
  int64_t b_stride;
  int64_t count;
  float* c;  // [rows, panel], rows c_stride apart
  int64_t c_stride;
  bool add;              // to what c holds
  int64_t repeats = 1;   // further columns of a not transposed a, count each,
  int64_t a_repeat = 0;  // so far apart
};

template <int kBytes, int kRows, bool kTransposed>
DDFAST_INLINE void multiply_rows(const Operands& operands) {
  using L = Lanes<kBytes>;
  typename L::Vector sum[kRows][2];
  const int64_t stride = operands.a_stride;
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < 2; ++j) {
      sum[r][j] = typename L::Vector{};
      if (operands.add) sum[r][j] = L::load(operands.c + r * operands.c_stride + j * L::kCount);
    }
  }
  const float* b = operands.b;
  constexpr int kBases = kTransposed ? 1 : (kRows + 2) / 3;  // rows base, base + stride, base + 2 stride: few registers
  const float* base[kBases];
  for (int64_t repeat = 0; repeat < operands.repeats; ++repeat) {
    for (int r = 0; r < kBases; ++r) base[r] = operands.a + repeat * operands.a_repeat + 3 * r * stride;
    for (int64_t i = 0; i < operands.count; ++i) {
      const typename L::Vector left = L::load(b), right = L::load(b + L::kCount);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const float value = kTransposed ? base[0][r] : base[r / 3][r % 3 * stride];
        const typename L::Vector all = value - typename L::Vector{};
        sum[r][0] += all * left;
        sum[r][1] += all * right;
      }
      b += operands.b_stride;
#pragma GCC unroll 4
      for (int r = 0; r < kBases; ++r) base[r] += kTransposed ? stride : 1;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < 2; ++j) L::store(sum[r][j], operands.c + r * operands.c_stride + j * L::kCount);
  }
}

// c (+)= a b for any number of rows. Rows are taken in pairs: an odd last one is computed with the one after it, which
// a and c must have.
template <int kBytes, bool kTransposed>
DDFAST_INLINE void multiply(Operands operands, int64_t rows) {
  constexpr int64_t kMost = Lanes<kBytes>::kMaxRows;
  for (; rows > 0; rows -= kMost) {
    switch ((rows < kMost ? rows + 1 : kMost) / 2) {
      case 1:
        multiply_rows<kBytes, 2, kTransposed>(operands);
        break;
      case 2:
        multiply_rows<kBytes, 4, kTransposed>(operands);
        break;
      case 3:
        multiply_rows<kBytes, 6, kTransposed>(operands);
        break;
      case 4:
        multiply_rows<kBytes, kMost == 12 ? 8 : 6, kTransposed>(operands);
        break;
      case 5:
        multiply_rows<kBytes, kMost == 12 ? 10 : 6, kTransposed>(operands);
        break;
      default:
        multiply_rows<kBytes, kMost, kTransposed>(operands);
    }
    operands.a += kTransposed ? kMost : kMost * operands.a_stride;
    operands.c += kMost * operands.c_stride;
  }
}

// The same where nothing may be read or written beyond the last row.
template <int kBytes, bool kTransposed>
DDFAST_INLINE void multiply_exactly(Operands operands, int64_t rows) {
  const int64_t even = rows / 2 * 2;
  multiply<kBytes, kTransposed>(operands, even);
  if (even == rows) return;
  operands.a += kTransposed ? even : even * operands.a_stride;
  operands.c += even * operands.c_stride;
  multiply_rows<kBytes, 1, kTransposed>(operands);
}

}  // namespace ddfast
