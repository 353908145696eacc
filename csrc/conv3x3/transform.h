// Minimal filtering F(m x m, 3 x 3) (Lavin & Gray 2016, arXiv:1509.09308): the one-dimensional transforms.
//
// With the Vandermonde matrices V_k of the points (a last row for infinity): Aᵀ = V_mᵀ, G = V_3, Bᵀ = (V_n⁻¹)ᵀ, n = m +
// 2 (Toom-Cook), where a factor per point is moved from Bᵀ to G. Then y = Aᵀ[(G w) ⊙ (Bᵀ d)] is the correlation of n
// numbers with a filter of 3. tests/ops/test_conv3x3.py derives the same matrices in exact fractions.
#pragma once

#include "../common/simd.h"

namespace ddfast {

template <int kTile>
struct Transform;

// Points 0, ±5/8, ±3/2, infinity: of the pairs that were tried the most accurate, and exact in binary.
template <>
struct Transform<4> {
  static constexpr int kTile = 4, kPoints = 6;
  static constexpr float a = 0.625f, b = 1.5f, aa = a * a, bb = b * b;
  static constexpr float scale_0 = 1 / (aa * bb), scale_a = 1 / (2 * aa * (aa - bb)),
                         scale_b = 1 / (2 * bb * (bb - aa));

  template <typename V>
  static DDFAST_INLINE void input(const V (&d)[6], V (&out)[6]) {  // Bᵀ d
    const V even_a = d[4] - bb * d[2], odd_a = a * (d[3] - bb * d[1]);
    const V even_b = d[4] - aa * d[2], odd_b = b * (d[3] - aa * d[1]);
    out[0] = (aa * bb) * d[0] - (aa + bb) * d[2] + d[4];
    out[1] = even_a + odd_a, out[2] = even_a - odd_a;
    out[3] = even_b + odd_b, out[4] = even_b - odd_b;
    out[5] = (aa * bb) * d[1] - (aa + bb) * d[3] + d[5];
  }
  template <typename V>
  static DDFAST_INLINE void output(const V (&m)[6], V (&y)[4]) {  // Aᵀ m
    const V sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = a * difference_a + b * difference_b;
    y[2] = aa * sum_a + bb * sum_b;
    y[3] = (a * aa) * difference_a + (b * bb) * difference_b + m[5];
  }
  template <typename V>
  static DDFAST_INLINE void output_adjoint(const V (&y)[4], V (&m)[6]) {  // A y
    const V even_a = y[0] + aa * y[2], odd_a = a * y[1] + (a * aa) * y[3];
    const V even_b = y[0] + bb * y[2], odd_b = b * y[1] + (b * bb) * y[3];
    m[0] = y[0];
    m[1] = even_a + odd_a, m[2] = even_a - odd_a;
    m[3] = even_b + odd_b, m[4] = even_b - odd_b;
    m[5] = y[3];
  }
  template <typename V>
  static DDFAST_INLINE void filter(const V (&w)[3], V (&u)[6]) {  // G w
    const V even_a = scale_a * (w[0] + aa * w[2]), odd_a = (scale_a * a) * w[1];
    const V even_b = scale_b * (w[0] + bb * w[2]), odd_b = (scale_b * b) * w[1];
    u[0] = scale_0 * w[0];
    u[1] = even_a + odd_a, u[2] = even_a - odd_a;
    u[3] = even_b + odd_b, u[4] = even_b - odd_b;
    u[5] = w[2];
  }
  template <typename V>
  static DDFAST_INLINE void filter_adjoint(const V (&u)[6], V (&w)[3]) {  // Gᵀ u
    const V sum_a = scale_a * (u[1] + u[2]), sum_b = scale_b * (u[3] + u[4]);
    w[0] = scale_0 * u[0] + sum_a + sum_b;
    w[1] = (scale_a * a) * (u[1] - u[2]) + (scale_b * b) * (u[3] - u[4]);
    w[2] = aa * sum_a + bb * sum_b + u[5];
  }
};

// Points 0, ±1, infinity.
template <>
struct Transform<2> {
  static constexpr int kTile = 2, kPoints = 4;

  template <typename V>
  static DDFAST_INLINE void input(const V (&d)[4], V (&out)[4]) {
    out[0] = d[0] - d[2], out[1] = d[2] + d[1], out[2] = d[2] - d[1], out[3] = d[3] - d[1];
  }
  template <typename V>
  static DDFAST_INLINE void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] + m[3];
  }
  template <typename V>
  static DDFAST_INLINE void output_adjoint(const V (&y)[2], V (&m)[4]) {
    m[0] = y[0], m[1] = y[0] + y[1], m[2] = y[0] - y[1], m[3] = y[1];
  }
  template <typename V>
  static DDFAST_INLINE void filter(const V (&w)[3], V (&u)[4]) {
    const V even = 0.5f * (w[0] + w[2]), odd = 0.5f * w[1];
    u[0] = w[0], u[1] = even + odd, u[2] = even - odd, u[3] = w[2];
  }
  template <typename V>
  static DDFAST_INLINE void filter_adjoint(const V (&u)[4], V (&w)[3]) {
    const V sum = 0.5f * (u[1] + u[2]);
    w[0] = u[0] + sum, w[1] = 0.5f * (u[1] - u[2]), w[2] = sum + u[3];
  }
};

}  // namespace ddfast
