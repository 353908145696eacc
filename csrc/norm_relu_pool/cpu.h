// CPU kernels of norm_relu_pool: instance norm, ReLU, 2x2 average pool; value, backward, jvp, backward of jvp.
//
// Channels-last: z is [N, H, W, C] in memory, y is [N, OH, OW, C] with OH = H / 2, OW = W / 2 (an odd last row or
// column is normalised over, and not pooled). A task is one image and one block of channels, so that lanes are channels
// and every sum over pixels has one fixed order. Adjacent tasks of an image are walked together, pixel by pixel: what
// is read together lies together. The letters are those of the op's reference in ddfast/ops/norm_relu_pool.py.
#pragma once

#include <cmath>

#include "../common/simd.h"
#include "args.h"
#include "group.h"

namespace ddfast {

template <typename M, int kBytes>
struct NormReluPool {
  static DDFAST_INLINE void run(const NormReluPoolArgs<M>& args, int64_t begin, int64_t end) {
    run_groups<NormReluPool, M, kBytes>(args, begin, end);
  }

  using T = Real<M>;
  using B = Block<T, kBytes>;

  struct Constants {
    B mean, rstd, gamma, beta;
    DDFAST_INLINE B relu(const B& z) const {
      const B a = gamma * ((z - mean) * rstd) + beta;
      return B::where_positive(a, a);
    }
  };

  template <bool kFull>
  static DDFAST_INLINE void walk(const NormReluPoolArgs<M>& args, const Group<M, kBytes, kFull>& group) {
    const InstanceShape& shape = group.shape;
    const int64_t C = shape.C;
    Constants constants[kGroup];
    B sum[kGroup], part[2][kGroup];
    clear(sum);
    for (int64_t h = 0; h < shape.H; ++h) {  // row sums first: short chains keep a float sum accurate
      clear(part[0]), clear(part[1]);
      const M* z = args.z + group.row(h);
      for (int64_t w = 0; w < shape.W; ++w) {
        for (int i = 0; i < group.blocks; ++i) part[w % 2][i] += group.load(z, w * C, i);
      }
      for (int i = 0; i < group.blocks; ++i) sum[i] += part[0][i] + part[1][i];
    }
    for (int i = 0; i < group.blocks; ++i) constants[i].mean = group.mean_of(sum[i]);
    clear(sum);
    for (int64_t h = 0; h < shape.H; ++h) {
      clear(part[0]), clear(part[1]);
      const M* z = args.z + group.row(h);
      for (int64_t w = 0; w < shape.W; ++w) {
        for (int i = 0; i < group.blocks; ++i) {
          const B a = group.load(z, w * C, i) - constants[i].mean;
          part[w % 2][i] += a * a;
        }
      }
      for (int i = 0; i < group.blocks; ++i) sum[i] += part[0][i] + part[1][i];
    }
    for (int i = 0; i < group.blocks; ++i) {
      constants[i].rstd = reciprocal_root(group.mean_of(sum[i]), args.eps);
      constants[i].gamma = group.load(args.weight, group.channel, i);
      constants[i].beta = group.load(args.bias, group.channel, i);
      group.store(constants[i].mean, args.mean, group.statistic(), i);
      group.store(constants[i].rstd, args.rstd, group.statistic(), i);
    }

    const B quarter = B::fill(T(0.25));
    for (int64_t oh = 0; oh < shape.pooled_height(); ++oh) {
      const M* top = args.z + group.row(2 * oh);
      const M* bottom = args.z + group.row(2 * oh + 1);
      M* y = args.y + group.pooled_row(oh);
      for (int64_t ow = 0; ow < shape.pooled_width(); ++ow) {
        const int64_t at = 2 * ow * C;
        for (int i = 0; i < group.blocks; ++i) {
          const Constants c = constants[i];
          const B left = c.relu(group.load(top, at, i)) + c.relu(group.load(bottom, at, i));
          const B right = c.relu(group.load(top, at + C, i)) + c.relu(group.load(bottom, at + C, i));
          group.store(quarter * (left + right), y, ow * C, i);
        }
      }
    }
  }

  static DDFAST_INLINE B reciprocal_root(const B& variance, double eps) {
    T values[kChannels<M>];
    variance.template store<true>(values, kChannels<M>);
    for (T& value : values) value = T(1) / std::sqrt(value + static_cast<T>(eps));
    return B::load(values);
  }
};

template <typename M, int kBytes>
struct NormReluPoolBackward {
  static DDFAST_INLINE void run(const NormReluPoolBackwardArgs<M>& args, int64_t begin, int64_t end) {
    run_groups<NormReluPoolBackward, M, kBytes>(args, begin, end);
  }

  using T = Real<M>;
  using B = Block<T, kBytes>;

  struct Pixel {
    B x, q;  // x̂; q = [a > 0] g / 4
  };
  struct Constants {
    B mean, rstd, gamma, beta;
    DDFAST_INLINE Pixel pixel(const B& z, const B& quarter_grad) const {
      const B x = (z - mean) * rstd;
      return {x, B::where_positive(gamma * x + beta, quarter_grad)};
    }
  };

  template <bool kFull>
  static DDFAST_INLINE void walk(const NormReluPoolBackwardArgs<M>& args, const Group<M, kBytes, kFull>& group) {
    const InstanceShape& shape = group.shape;
    const int64_t C = shape.C;
    const B quarter = B::fill(T(0.25));
    Constants constants[kGroup];
    for (int i = 0; i < group.blocks; ++i) {
      constants[i] = {group.load(args.mean, group.statistic(), i), group.load(args.rstd, group.statistic(), i),
                      group.load(args.weight, group.channel, i), group.load(args.bias, group.channel, i)};
    }
    B sum_q[kGroup], sum_qx[kGroup], row_q[kGroup], row_qx[kGroup];
    clear(sum_q), clear(sum_qx);
    for (int64_t h = 0; h < 2 * shape.pooled_height(); ++h) {
      clear(row_q), clear(row_qx);
      const M* z = args.z + group.row(h);
      const M* grad = args.grad_y + group.pooled_row(h / 2);
      for (int64_t ow = 0; ow < shape.pooled_width(); ++ow) {
        for (int i = 0; i < group.blocks; ++i) {
          const B g = quarter * group.load(grad, ow * C, i);
          const Pixel left = constants[i].pixel(group.load(z, 2 * ow * C, i), g);
          const Pixel right = constants[i].pixel(group.load(z, (2 * ow + 1) * C, i), g);
          row_q[i] += left.q + right.q;
          row_qx[i] += left.q * left.x + right.q * right.x;
        }
      }
      for (int i = 0; i < group.blocks; ++i) {
        sum_q[i] += row_q[i];
        sum_qx[i] += row_qx[i];
      }
    }
    B mean_q[kGroup], p[kGroup], scale[kGroup];
    for (int i = 0; i < group.blocks; ++i) {
      group.store(sum_q[i], args.grad_bias, group.statistic(), i);
      group.store(sum_qx[i], args.grad_weight, group.statistic(), i);
      mean_q[i] = group.mean_of(sum_q[i]);
      p[i] = group.mean_of(sum_qx[i]);
      scale[i] = constants[i].gamma * constants[i].rstd;
    }

    for (int64_t h = 0; h < shape.H; ++h) {
      const M* z = args.z + group.row(h);
      M* grad_z = args.grad_z + group.row(h);
      const auto write = [&](int64_t w, int i, const B& g) DDFAST_INLINE_LAMBDA {
        const Pixel v = constants[i].pixel(group.load(z, w * C, i), g);
        group.store(scale[i] * (v.q - mean_q[i] - v.x * p[i]), grad_z, w * C, i);
      };
      int64_t w = 0;
      if (h < 2 * shape.pooled_height()) {
        const M* grad = args.grad_y + group.pooled_row(h / 2);
        for (; w < 2 * shape.pooled_width(); ++w) {
          for (int i = 0; i < group.blocks; ++i) write(w, i, quarter * group.load(grad, w / 2 * C, i));
        }
      }
      for (; w < shape.W; ++w) {  // not pooled
        for (int i = 0; i < group.blocks; ++i) write(w, i, B::fill(T(0)));
      }
    }
  }
};

template <typename M, int kBytes>
struct NormReluPoolJvp {
  static DDFAST_INLINE void run(const NormReluPoolJvpArgs<M>& args, int64_t begin, int64_t end) {
    run_groups<NormReluPoolJvp, M, kBytes>(args, begin, end);
  }

  using T = Real<M>;
  using B = Block<T, kBytes>;

  struct Constants {
    B mean, rstd, gamma, beta, dmean, dcov, dgamma, dbeta;
    // [a > 0] times the tangent of a = γ x̂ + β
    DDFAST_INLINE B tangent(const B& z, const B& dz) const {
      const B x = (z - mean) * rstd;
      const B dx = rstd * (dz - dmean - x * dcov);
      return B::where_positive(gamma * x + beta, dgamma * x + gamma * dx + dbeta);
    }
  };

  template <bool kFull>
  static DDFAST_INLINE void walk(const NormReluPoolJvpArgs<M>& args, const Group<M, kBytes, kFull>& group) {
    const InstanceShape& shape = group.shape;
    const int64_t C = shape.C;
    Constants constants[kGroup];
    B sum[kGroup], row[kGroup];
    clear(sum);
    for (int64_t h = 0; h < shape.H; ++h) {
      clear(row);
      const M* dz = args.dz + group.row(h);
      for (int64_t w = 0; w < shape.W; ++w) {
        for (int i = 0; i < group.blocks; ++i) row[i] += group.load(dz, w * C, i);
      }
      for (int i = 0; i < group.blocks; ++i) sum[i] += row[i];
    }
    for (int i = 0; i < group.blocks; ++i) {
      constants[i] = {group.load(args.mean, group.statistic(), i),
                      group.load(args.rstd, group.statistic(), i),
                      group.load(args.weight, group.channel, i),
                      group.load(args.bias, group.channel, i),
                      group.mean_of(sum[i]),
                      B::fill(T(0)),
                      group.load(args.dweight, group.channel, i),
                      group.load(args.dbias, group.channel, i)};
    }
    clear(sum);
    for (int64_t h = 0; h < shape.H; ++h) {  // about the mean: x̂ sums to 0, and dz need not be small
      clear(row);
      const M* z = args.z + group.row(h);
      const M* dz = args.dz + group.row(h);
      for (int64_t w = 0; w < shape.W; ++w) {
        for (int i = 0; i < group.blocks; ++i) {
          const Constants& c = constants[i];
          row[i] += (group.load(z, w * C, i) - c.mean) * c.rstd * (group.load(dz, w * C, i) - c.dmean);
        }
      }
      for (int i = 0; i < group.blocks; ++i) sum[i] += row[i];
    }
    for (int i = 0; i < group.blocks; ++i) {
      constants[i].dcov = group.mean_of(sum[i]);
      group.store(constants[i].dmean, args.dmean, group.statistic(), i);
      group.store(constants[i].dcov, args.dcov, group.statistic(), i);
    }

    const B quarter = B::fill(T(0.25));
    for (int64_t oh = 0; oh < shape.pooled_height(); ++oh) {
      const int64_t top = group.row(2 * oh), bottom = group.row(2 * oh + 1);
      M* dy = args.dy + group.pooled_row(oh);
      for (int64_t ow = 0; ow < shape.pooled_width(); ++ow) {
        const int64_t left = 2 * ow * C, right = left + C;
        for (int i = 0; i < group.blocks; ++i) {
          const auto tangent = [&](int64_t pixel) DDFAST_INLINE_LAMBDA {
            return constants[i].tangent(group.load(args.z, pixel, i), group.load(args.dz, pixel, i));
          };
          const B upper = tangent(top + left) + tangent(top + right);
          const B lower = tangent(bottom + left) + tangent(bottom + right);
          group.store(quarter * (upper + lower), dy, ow * C, i);
        }
      }
    }
  }
};

template <typename M, int kBytes>
struct NormReluPoolBackwardJvp {
  static DDFAST_INLINE void run(const NormReluPoolBackwardJvpArgs<M>& args, int64_t begin, int64_t end) {
    run_groups<NormReluPoolBackwardJvp, M, kBytes>(args, begin, end);
  }

  using T = Real<M>;
  using B = Block<T, kBytes>;

  struct Pixel {
    B x, dx, q, dq;  // x̂ and its tangent; q = [a > 0] g / 4 and its tangent
  };
  struct Constants {
    B mean, rstd, dmean, dcov, gamma, beta;
    DDFAST_INLINE Pixel pixel(const B& z, const B& dz, const B& quarter_grad, const B& quarter_dgrad) const {
      const B x = (z - mean) * rstd;
      const B gate = gamma * x + beta;
      return {x, rstd * (dz - dmean - x * dcov), B::where_positive(gate, quarter_grad),
              B::where_positive(gate, quarter_dgrad)};
    }
  };

  template <bool kFull>
  static DDFAST_INLINE void walk(const NormReluPoolBackwardJvpArgs<M>& args, const Group<M, kBytes, kFull>& group) {
    const InstanceShape& shape = group.shape;
    const int64_t C = shape.C;
    const B zero = B::fill(T(0)), quarter = B::fill(T(0.25));
    Constants constants[kGroup];
    for (int i = 0; i < group.blocks; ++i) {
      constants[i] = {group.load(args.mean, group.statistic(), i),  group.load(args.rstd, group.statistic(), i),
                      group.load(args.dmean, group.statistic(), i), group.load(args.dcov, group.statistic(), i),
                      group.load(args.weight, group.channel, i),    group.load(args.bias, group.channel, i)};
    }
    B sum_q[kGroup], sum_qx[kGroup], sum_dq[kGroup], sum_dqx[kGroup];
    B row_q[kGroup], row_qx[kGroup], row_dq[kGroup], row_dqx[kGroup];
    clear(sum_q), clear(sum_qx), clear(sum_dq), clear(sum_dqx);
    for (int64_t h = 0; h < 2 * shape.pooled_height(); ++h) {
      clear(row_q), clear(row_qx), clear(row_dq), clear(row_dqx);
      const M* z = args.z + group.row(h);
      const M* dz = args.dz + group.row(h);
      const int64_t grad = group.pooled_row(h / 2);
      for (int64_t w = 0; w < 2 * shape.pooled_width(); ++w) {
        const int64_t cell = grad + (w / 2) * C;
        for (int i = 0; i < group.blocks; ++i) {
          const B g = quarter * group.load(args.grad_y, cell, i);
          const B dg = args.dgrad_y ? quarter * group.load(args.dgrad_y, cell, i) : zero;
          const Pixel v = constants[i].pixel(group.load(z, w * C, i), group.load(dz, w * C, i), g, dg);
          row_q[i] += v.q;
          row_qx[i] += v.q * v.x;
          row_dq[i] += v.dq;
          row_dqx[i] += v.dq * v.x + v.q * v.dx;
        }
      }
      for (int i = 0; i < group.blocks; ++i) {
        sum_q[i] += row_q[i];
        sum_qx[i] += row_qx[i];
        sum_dq[i] += row_dq[i];
        sum_dqx[i] += row_dqx[i];
      }
    }
    B mean_q[kGroup], p[kGroup], mean_dq[kGroup], dp[kGroup], along_e[kGroup], along_de[kGroup];
    for (int i = 0; i < group.blocks; ++i) {
      group.store(sum_dq[i], args.dgrad_bias, group.statistic(), i);
      group.store(sum_dqx[i], args.dgrad_weight, group.statistic(), i);
      mean_q[i] = group.mean_of(sum_q[i]);
      p[i] = group.mean_of(sum_qx[i]);
      mean_dq[i] = group.mean_of(sum_dq[i]);
      dp[i] = group.mean_of(sum_dqx[i]);
      const B r = constants[i].rstd, gamma = constants[i].gamma;
      along_e[i] = group.load(args.dweight, group.channel, i) * r - gamma * r * r * constants[i].dcov;
      along_de[i] = gamma * r;
    }

    for (int64_t h = 0; h < shape.H; ++h) {
      const M* z = args.z + group.row(h);
      const M* dz = args.dz + group.row(h);
      M* dgrad_z = args.dgrad_z + group.row(h);
      const auto write = [&](int64_t w, int i, const B& g, const B& dg) DDFAST_INLINE_LAMBDA {
        const Pixel v = constants[i].pixel(group.load(z, w * C, i), group.load(dz, w * C, i), g, dg);
        const B e = v.q - mean_q[i] - v.x * p[i];
        const B de = v.dq - mean_dq[i] - v.dx * p[i] - v.x * dp[i];
        group.store(along_e[i] * e + along_de[i] * de, dgrad_z, w * C, i);
      };
      int64_t w = 0;
      if (h < 2 * shape.pooled_height()) {
        const int64_t grad = group.pooled_row(h / 2);
        for (; w < 2 * shape.pooled_width(); ++w) {
          const int64_t cell = grad + (w / 2) * C;
          for (int i = 0; i < group.blocks; ++i) {
            const B dg = args.dgrad_y ? quarter * group.load(args.dgrad_y, cell, i) : zero;
            write(w, i, quarter * group.load(args.grad_y, cell, i), dg);
          }
        }
      }
      for (; w < shape.W; ++w) {  // not pooled
        for (int i = 0; i < group.blocks; ++i) write(w, i, zero, zero);
      }
    }
  }
};

}  // namespace ddfast
