// CPU kernels of norm_relu_pool: instance norm, ReLU, 2x2 average pool; value, backward, jvp, backward of jvp.
//
// Channels-last: z is [N, H, W, C] in memory, y is [N, OH, OW, C] with OH = H / 2, OW = W / 2 (an odd last row or
// column is normalised over, and not pooled). A task is one image and one block of channels, so that lanes are channels
// and every sum over pixels has one fixed order. The letters are those of the op's reference in
// ddfast/ops/norm_relu_pool.py.
#pragma once

#include <cmath>

#include "norm_relu_pool_args.h"
#include "simd.h"

namespace ddfast {

template <typename T>
int64_t channel_blocks(const InstanceShape& shape) {
  return (shape.C + kBlockLanes<T> - 1) / kBlockLanes<T>;
}

template <typename T>
int64_t norm_relu_pool_tasks(const InstanceShape& shape) {
  return shape.N * channel_blocks<T>(shape);
}

// Whether all lanes of a task are channels: not in the last block where C is no multiple of a block.
template <typename T>
bool is_full(const InstanceShape& shape, int64_t task) {
  return task % channel_blocks<T>(shape) < shape.C / kBlockLanes<T>;
}

// What one task works on, and its sums. Offsets: z(h, w) of a full-size tensor, y(oh, ow) of a pooled one.
template <typename T, int kBytes, bool kFull>
struct Instance {
  using B = Block<T, kBytes>;
  InstanceShape shape;
  int64_t n, channel;
  int lanes;

  DDFAST_INLINE Instance(const InstanceShape& shape_, int64_t task) : shape(shape_) {
    const int64_t blocks = channel_blocks<T>(shape);
    n = task / blocks;
    channel = (task % blocks) * kBlockLanes<T>;
    lanes = shape.C - channel < kBlockLanes<T> ? static_cast<int>(shape.C - channel) : kBlockLanes<T>;
  }
  DDFAST_INLINE int64_t row(int64_t h) const { return (n * shape.H + h) * shape.W * shape.C + channel; }
  DDFAST_INLINE int64_t pooled_row(int64_t oh) const {
    return (n * shape.pooled_height() + oh) * shape.pooled_width() * shape.C + channel;
  }
  DDFAST_INLINE int64_t statistic() const { return n * shape.C + channel; }
  DDFAST_INLINE B load(const T* from, int64_t offset) const { return B::template load<kFull>(from + offset, lanes); }
  DDFAST_INLINE void store(const B& values, T* to, int64_t offset) const {
    values.template store<kFull>(to + offset, lanes);
  }
  DDFAST_INLINE B mean_of(const B& sum) const { return sum * B::fill(T(1) / static_cast<T>(shape.pixels())); }
};

// Runs Face::one on every instance of the range, with all lanes or with those that are channels.
template <template <typename, int> class Face, typename T, int kBytes, typename Args>
DDFAST_INLINE void run_instances(const Args& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    if (is_full<T>(args.shape, task)) {
      Face<T, kBytes>::one(args, Instance<T, kBytes, true>(args.shape, task));
    } else {
      Face<T, kBytes>::one(args, Instance<T, kBytes, false>(args.shape, task));
    }
  }
}

template <typename T, int kBytes>
struct NormReluPool {
  static DDFAST_INLINE void run(const NormReluPoolArgs<T>& args, int64_t begin, int64_t end) {
    run_instances<NormReluPool, T, kBytes>(args, begin, end);
  }

  using B = Block<T, kBytes>;

  template <bool kFull>
  static DDFAST_INLINE void one(const NormReluPoolArgs<T>& args, const Instance<T, kBytes, kFull>& at) {
    const InstanceShape& shape = at.shape;
    const int64_t C = shape.C;
    B sum = B::fill(T(0));
    for (int64_t h = 0; h < shape.H; ++h) {  // row sums first: short chains keep a float sum accurate
      B part[2] = {B::fill(T(0)), B::fill(T(0))};
      const T* z = args.z + at.row(h);
      int64_t w = 0;
      for (; w + 1 < shape.W; w += 2) {
        part[0] += at.load(z, w * C);
        part[1] += at.load(z, (w + 1) * C);
      }
      if (w < shape.W) part[0] += at.load(z, w * C);
      sum += part[0] + part[1];
    }
    const B mean = at.mean_of(sum);
    sum = B::fill(T(0));
    for (int64_t h = 0; h < shape.H; ++h) {
      B part[2] = {B::fill(T(0)), B::fill(T(0))};
      const T* z = args.z + at.row(h);
      int64_t w = 0;
      for (; w + 1 < shape.W; w += 2) {
        const B a = at.load(z, w * C) - mean, b = at.load(z, (w + 1) * C) - mean;
        part[0] += a * a;
        part[1] += b * b;
      }
      if (w < shape.W) {
        const B a = at.load(z, w * C) - mean;
        part[0] += a * a;
      }
      sum += part[0] + part[1];
    }
    const B rstd = reciprocal_root(at.mean_of(sum), args.eps);
    at.store(mean, args.mean, at.statistic());
    at.store(rstd, args.rstd, at.statistic());

    const B gamma = at.load(args.weight, at.channel), beta = at.load(args.bias, at.channel);
    const B quarter = B::fill(T(0.25));
    for (int64_t oh = 0; oh < shape.pooled_height(); ++oh) {
      const T* top = args.z + at.row(2 * oh);
      const T* bottom = args.z + at.row(2 * oh + 1);
      T* y = args.y + at.pooled_row(oh);
      for (int64_t ow = 0; ow < shape.pooled_width(); ++ow) {
        const B left = relu(at.load(top, 2 * ow * C), mean, rstd, gamma, beta) +
                       relu(at.load(bottom, 2 * ow * C), mean, rstd, gamma, beta);
        const B right = relu(at.load(top, (2 * ow + 1) * C), mean, rstd, gamma, beta) +
                        relu(at.load(bottom, (2 * ow + 1) * C), mean, rstd, gamma, beta);
        at.store(quarter * (left + right), y, ow * C);
      }
    }
  }

  static DDFAST_INLINE B relu(const B& z, const B& mean, const B& rstd, const B& gamma, const B& beta) {
    const B a = gamma * ((z - mean) * rstd) + beta;
    return B::where_positive(a, a);
  }

  static DDFAST_INLINE B reciprocal_root(const B& variance, double eps) {
    T values[kBlockLanes<T>];
    variance.template store<true>(values, kBlockLanes<T>);
    for (T& value : values) value = T(1) / std::sqrt(value + static_cast<T>(eps));
    return B::load(values);
  }
};

template <typename T, int kBytes>
struct NormReluPoolBackward {
  static DDFAST_INLINE void run(const NormReluPoolBackwardArgs<T>& args, int64_t begin, int64_t end) {
    run_instances<NormReluPoolBackward, T, kBytes>(args, begin, end);
  }

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
  static DDFAST_INLINE void one(const NormReluPoolBackwardArgs<T>& args, const Instance<T, kBytes, kFull>& at) {
    const InstanceShape& shape = at.shape;
    const int64_t C = shape.C;
    const B quarter = B::fill(T(0.25));
    const Constants constants{at.load(args.mean, at.statistic()), at.load(args.rstd, at.statistic()),
                              at.load(args.weight, at.channel), at.load(args.bias, at.channel)};
    B sum_q = B::fill(T(0)), sum_qx = B::fill(T(0));
    for (int64_t h = 0; h < 2 * shape.pooled_height(); ++h) {
      B row_q = B::fill(T(0)), row_qx = B::fill(T(0));
      const T* z = args.z + at.row(h);
      const T* grad = args.grad_y + at.pooled_row(h / 2);
      for (int64_t ow = 0; ow < shape.pooled_width(); ++ow) {
        const B g = quarter * at.load(grad, ow * C);
        const Pixel left = constants.pixel(at.load(z, 2 * ow * C), g);
        const Pixel right = constants.pixel(at.load(z, (2 * ow + 1) * C), g);
        row_q += left.q + right.q;
        row_qx += left.q * left.x + right.q * right.x;
      }
      sum_q += row_q;
      sum_qx += row_qx;
    }
    at.store(sum_q, args.grad_bias, at.statistic());
    at.store(sum_qx, args.grad_weight, at.statistic());

    const B mean_q = at.mean_of(sum_q), p = at.mean_of(sum_qx), scale = constants.gamma * constants.rstd;
    for (int64_t h = 0; h < shape.H; ++h) {
      const T* z = args.z + at.row(h);
      T* grad_z = args.grad_z + at.row(h);
      const auto write = [&](int64_t w, const B& g) DDFAST_INLINE_LAMBDA {
        const Pixel v = constants.pixel(at.load(z, w * C), g);
        at.store(scale * (v.q - mean_q - v.x * p), grad_z, w * C);
      };
      int64_t w = 0;
      if (h < 2 * shape.pooled_height()) {
        const T* grad = args.grad_y + at.pooled_row(h / 2);
        for (; w < 2 * shape.pooled_width(); ++w) write(w, quarter * at.load(grad, w / 2 * C));
      }
      for (; w < shape.W; ++w) write(w, B::fill(T(0)));  // not pooled
    }
  }
};

template <typename T, int kBytes>
struct NormReluPoolJvp {
  static DDFAST_INLINE void run(const NormReluPoolJvpArgs<T>& args, int64_t begin, int64_t end) {
    run_instances<NormReluPoolJvp, T, kBytes>(args, begin, end);
  }

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
  static DDFAST_INLINE void one(const NormReluPoolJvpArgs<T>& args, const Instance<T, kBytes, kFull>& at) {
    const InstanceShape& shape = at.shape;
    const int64_t C = shape.C;
    Constants constants{at.load(args.mean, at.statistic()),
                        at.load(args.rstd, at.statistic()),
                        at.load(args.weight, at.channel),
                        at.load(args.bias, at.channel),
                        B::fill(T(0)),
                        B::fill(T(0)),
                        at.load(args.dweight, at.channel),
                        at.load(args.dbias, at.channel)};
    B sum = B::fill(T(0));
    for (int64_t h = 0; h < shape.H; ++h) {
      B row = B::fill(T(0));
      const T* dz = args.dz + at.row(h);
      for (int64_t w = 0; w < shape.W; ++w) row += at.load(dz, w * C);
      sum += row;
    }
    constants.dmean = at.mean_of(sum);
    sum = B::fill(T(0));
    for (int64_t h = 0; h < shape.H; ++h) {  // about the mean: x̂ sums to 0, and dz need not be small
      B row = B::fill(T(0));
      const T* z = args.z + at.row(h);
      const T* dz = args.dz + at.row(h);
      for (int64_t w = 0; w < shape.W; ++w) {
        row += (at.load(z, w * C) - constants.mean) * constants.rstd * (at.load(dz, w * C) - constants.dmean);
      }
      sum += row;
    }
    constants.dcov = at.mean_of(sum);
    at.store(constants.dmean, args.dmean, at.statistic());
    at.store(constants.dcov, args.dcov, at.statistic());

    const B quarter = B::fill(T(0.25));
    for (int64_t oh = 0; oh < shape.pooled_height(); ++oh) {
      const int64_t top = at.row(2 * oh), bottom = at.row(2 * oh + 1);
      T* dy = args.dy + at.pooled_row(oh);
      for (int64_t ow = 0; ow < shape.pooled_width(); ++ow) {
        const int64_t left = 2 * ow * C, right = left + C;
        const B upper = constants.tangent(at.load(args.z, top + left), at.load(args.dz, top + left)) +
                        constants.tangent(at.load(args.z, top + right), at.load(args.dz, top + right));
        const B lower = constants.tangent(at.load(args.z, bottom + left), at.load(args.dz, bottom + left)) +
                        constants.tangent(at.load(args.z, bottom + right), at.load(args.dz, bottom + right));
        at.store(quarter * (upper + lower), dy, ow * C);
      }
    }
  }
};

template <typename T, int kBytes>
struct NormReluPoolBackwardJvp {
  static DDFAST_INLINE void run(const NormReluPoolBackwardJvpArgs<T>& args, int64_t begin, int64_t end) {
    run_instances<NormReluPoolBackwardJvp, T, kBytes>(args, begin, end);
  }

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
  static DDFAST_INLINE void one(const NormReluPoolBackwardJvpArgs<T>& args, const Instance<T, kBytes, kFull>& at) {
    const InstanceShape& shape = at.shape;
    const int64_t C = shape.C;
    const B zero = B::fill(T(0)), quarter = B::fill(T(0.25));
    const Constants constants{at.load(args.mean, at.statistic()),  at.load(args.rstd, at.statistic()),
                              at.load(args.dmean, at.statistic()), at.load(args.dcov, at.statistic()),
                              at.load(args.weight, at.channel),    at.load(args.bias, at.channel)};
    B sum_q = zero, sum_qx = zero, sum_dq = zero, sum_dqx = zero;
    for (int64_t h = 0; h < 2 * shape.pooled_height(); ++h) {
      B row_q = zero, row_qx = zero, row_dq = zero, row_dqx = zero;
      const T* z = args.z + at.row(h);
      const T* dz = args.dz + at.row(h);
      const int64_t grad = at.pooled_row(h / 2);
      for (int64_t w = 0; w < 2 * shape.pooled_width(); ++w) {
        const int64_t cell = grad + (w / 2) * C;
        const B dg = args.dgrad_y ? quarter * at.load(args.dgrad_y, cell) : zero;
        const Pixel v =
            constants.pixel(at.load(z, w * C), at.load(dz, w * C), quarter * at.load(args.grad_y, cell), dg);
        row_q += v.q;
        row_qx += v.q * v.x;
        row_dq += v.dq;
        row_dqx += v.dq * v.x + v.q * v.dx;
      }
      sum_q += row_q;
      sum_qx += row_qx;
      sum_dq += row_dq;
      sum_dqx += row_dqx;
    }
    at.store(sum_dq, args.dgrad_bias, at.statistic());
    at.store(sum_dqx, args.dgrad_weight, at.statistic());

    const B mean_q = at.mean_of(sum_q), p = at.mean_of(sum_qx);
    const B mean_dq = at.mean_of(sum_dq), dp = at.mean_of(sum_dqx);
    const B r = constants.rstd;
    const B along_e = at.load(args.dweight, at.channel) * r - constants.gamma * r * r * constants.dcov;
    const B along_de = constants.gamma * r;
    for (int64_t h = 0; h < shape.H; ++h) {
      const T* z = args.z + at.row(h);
      const T* dz = args.dz + at.row(h);
      T* dgrad_z = args.dgrad_z + at.row(h);
      const auto write = [&](int64_t w, const B& g, const B& dg) DDFAST_INLINE_LAMBDA {
        const Pixel v = constants.pixel(at.load(z, w * C), at.load(dz, w * C), g, dg);
        const B e = v.q - mean_q - v.x * p;
        const B de = v.dq - mean_dq - v.dx * p - v.x * dp;
        at.store(along_e * e + along_de * de, dgrad_z, w * C);
      };
      int64_t w = 0;
      if (h < 2 * shape.pooled_height()) {
        const int64_t grad = at.pooled_row(h / 2);
        for (; w < 2 * shape.pooled_width(); ++w) {
          const B dg = args.dgrad_y ? quarter * at.load(args.dgrad_y, grad + w / 2 * C) : zero;
          write(w, quarter * at.load(args.grad_y, grad + w / 2 * C), dg);
        }
      }
      for (; w < shape.W; ++w) write(w, zero, zero);  // not pooled
    }
  }
};

}  // namespace ddfast
