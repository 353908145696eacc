// norm_relu_pool: CPU kernels at every instruction set and emulated CUDA kernels, against double-precision loops.
#include <bit>

#include "../common/emulation.h"
// emulation.h comes first: it stands in for the CUDA runtime
#include "../common/test_check.h"
#include "cpu.h"
#include "launch.cuh"

namespace ddfast::test {

constexpr double kEps = 1e-5;

// All inputs and, by the formulas of the op, all results of the four faces.
struct Problem {
  InstanceShape shape;
  std::vector<double> z, dz, gamma, dgamma, beta, dbeta, grad, dgrad;
  std::vector<double> y, mean, rstd, grad_z, grad_gamma, grad_beta, dy, dmean, dcov;
  std::vector<double> dgrad_z, dgrad_gamma, dgrad_beta;     // with dgrad
  std::vector<double> second_z, second_gamma, second_beta;  // with dgrad = 0

  template <typename M>
  static Problem make(const InstanceShape& shape) {
    using T = Real<M>;
    Problem p;
    p.shape = shape;
    const size_t full = shape.N * shape.pixels() * shape.C;
    const size_t pooled = shape.N * shape.pooled_height() * shape.pooled_width() * shape.C;
    p.z = draw<M>(full, 1);
    p.dz = draw<M>(full, 2);
    p.gamma = draw<T>(shape.C, 3);
    p.dgamma = draw<T>(shape.C, 4);
    p.beta = draw<T>(shape.C, 5);
    p.dbeta = draw<T>(shape.C, 6);
    p.grad = draw<M>(pooled, 7);
    p.dgrad = draw<M>(pooled, 8);
    p.solve();
    return p;
  }

  void solve() {
    const size_t full = z.size(), pooled = grad.size(), statistics = shape.N * shape.C;
    for (auto* out : {&grad_z, &dgrad_z, &second_z}) out->resize(full);
    for (auto* out : {&y, &dy}) out->resize(pooled);
    for (auto* out : {&mean, &rstd, &grad_gamma, &grad_beta, &dmean, &dcov, &dgrad_gamma, &dgrad_beta, &second_gamma,
                      &second_beta}) {
      out->resize(statistics);
    }
    for (int64_t n = 0; n < shape.N; ++n) {
      for (int64_t c = 0; c < shape.C; ++c) solve_instance(n, c);
    }
  }

  void solve_instance(int64_t n, int64_t c) {
    const int64_t pixels = shape.pixels(), C = shape.C, OW = shape.pooled_width(), at = n * C + c;
    const auto pixel = [&](int64_t i) { return (n * pixels + i) * C + c; };
    const auto cell = [&](int64_t i) -> int64_t {
      const int64_t oh = i / shape.W / 2, ow = i % shape.W / 2;
      if (oh >= shape.pooled_height() || ow >= OW) return -1;
      return ((n * shape.pooled_height() + oh) * OW + ow) * C + c;
    };
    double m = 0, variance = 0;
    for (int64_t i = 0; i < pixels; ++i) m += z[pixel(i)] / pixels;
    for (int64_t i = 0; i < pixels; ++i) variance += std::pow(z[pixel(i)] - m, 2) / pixels;
    const double r = 1 / std::sqrt(variance + kEps);
    double dm = 0, cov = 0;
    for (int64_t i = 0; i < pixels; ++i) dm += dz[pixel(i)] / pixels;
    for (int64_t i = 0; i < pixels; ++i) cov += (z[pixel(i)] - m) * r * (dz[pixel(i)] - dm) / pixels;
    mean[at] = m;
    rstd[at] = r;
    dmean[at] = dm;
    dcov[at] = cov;
    std::vector<double> x(pixels), dx(pixels), q(pixels), dq(pixels);
    for (int64_t i = 0; i < pixels; ++i) {
      x[i] = (z[pixel(i)] - m) * r;
      dx[i] = r * (dz[pixel(i)] - dm - x[i] * cov);
      const double a = gamma[c] * x[i] + beta[c];
      if (cell(i) < 0 || a <= 0) continue;
      q[i] = grad[cell(i)] / 4;
      dq[i] = dgrad[cell(i)] / 4;
      y[cell(i)] += a / 4;
      dy[cell(i)] += (dgamma[c] * x[i] + gamma[c] * dx[i] + dbeta[c]) / 4;
    }
    double sq = 0, sqx = 0, sdq = 0, sdqx = 0, sqdx = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      sq += q[i];
      sqx += q[i] * x[i];
      sdq += dq[i];
      sdqx += dq[i] * x[i];
      sqdx += q[i] * dx[i];
    }
    grad_beta[at] = sq;
    grad_gamma[at] = sqx;
    dgrad_beta[at] = sdq;
    dgrad_gamma[at] = sdqx + sqdx;
    second_beta[at] = 0;
    second_gamma[at] = sqdx;
    const double along_e = dgamma[c] * r - gamma[c] * r * r * cov, along_de = gamma[c] * r;
    for (int64_t i = 0; i < pixels; ++i) {
      const double e = q[i] - sq / pixels - x[i] * sqx / pixels;
      const double second = -dx[i] * sqx / pixels - x[i] * sqdx / pixels;
      const double first = dq[i] - sdq / pixels - x[i] * sdqx / pixels;
      grad_z[pixel(i)] = gamma[c] * r * e;
      second_z[pixel(i)] = along_e * e + along_de * second;
      dgrad_z[pixel(i)] = along_e * e + along_de * (first + second);
    }
  }
};

template <typename M, typename Run>
void check(const Problem& p, const std::string& where, const Run& run) {
  using T = Real<M>;
  const InstanceShape& s = p.shape;
  const std::string what = where + " " + name_of_type<M>() + " N=" + std::to_string(s.N) + " C=" + std::to_string(s.C) +
                           " H=" + std::to_string(s.H) + " W=" + std::to_string(s.W);
  const auto z = as<M>(p.z), dz = as<M>(p.dz), grad = as<M>(p.grad), dgrad = as<M>(p.dgrad);
  const auto gamma = as<T>(p.gamma), dgamma = as<T>(p.dgamma), beta = as<T>(p.beta), dbeta = as<T>(p.dbeta),
             mean = as<T>(p.mean), rstd = as<T>(p.rstd), dmean = as<T>(p.dmean), dcov = as<T>(p.dcov);
  auto full = poisoned<M>(z.size()), pooled = poisoned<M>(grad.size());
  auto first = poisoned<T>(mean.size()), second = poisoned<T>(mean.size());

  run(NormReluPoolArgs<M>{s, z.data(), gamma.data(), beta.data(), kEps, pooled.data(), first.data(), second.data()});
  expect_close(what + " y", pooled, p.y);
  expect_close(what + " mean", first, p.mean);
  expect_close(what + " rstd", second, p.rstd);

  run(NormReluPoolBackwardArgs<M>{s, grad.data(), z.data(), mean.data(), rstd.data(), gamma.data(), beta.data(),
                                  full.data(), first.data(), second.data()});
  expect_close(what + " grad_z", full, p.grad_z);
  expect_close(what + " grad_weight", first, p.grad_gamma);
  expect_close(what + " grad_bias", second, p.grad_beta);

  pooled = poisoned<M>(grad.size());
  run(NormReluPoolJvpArgs<M>{s, dz.data(), dgamma.data(), dbeta.data(), z.data(), mean.data(), rstd.data(),
                             gamma.data(), beta.data(), pooled.data(), first.data(), second.data()});
  expect_close(what + " dy", pooled, p.dy);
  expect_close(what + " dmean", first, p.dmean);
  expect_close(what + " dcov", second, p.dcov);

  for (const bool zero : {false, true}) {
    full = poisoned<M>(z.size());
    run(NormReluPoolBackwardJvpArgs<M>{s, grad.data(), zero ? nullptr : dgrad.data(), z.data(), dz.data(), mean.data(),
                                       rstd.data(), dmean.data(), dcov.data(), gamma.data(), dgamma.data(), beta.data(),
                                       full.data(), first.data(), second.data()});
    expect_close(what + (zero ? " second_z" : " dgrad_z"), full, zero ? p.second_z : p.dgrad_z);
    expect_close(what + (zero ? " second_weight" : " dgrad_weight"), first, zero ? p.second_gamma : p.dgrad_gamma);
    expect_close(what + (zero ? " second_bias" : " dgrad_bias"), second, zero ? p.second_beta : p.dgrad_beta);
  }
}

template <typename M>
struct OnCpu {
  InstructionSet set;

  void operator()(const NormReluPoolArgs<M>& args) const { run<NormReluPool>(args); }
  void operator()(const NormReluPoolBackwardArgs<M>& args) const { run<NormReluPoolBackward>(args); }
  void operator()(const NormReluPoolJvpArgs<M>& args) const { run<NormReluPoolJvp>(args); }
  void operator()(const NormReluPoolBackwardJvpArgs<M>& args) const { run<NormReluPoolBackwardJvp>(args); }

  template <template <typename, int> class Kernel, typename Args>
  void run(const Args& args) const {
    const int64_t tasks = norm_relu_pool_tasks<M>(args.shape);
    std::thread other([&] { run_on<Kernel, M>(set, args, 0, tasks / 2); });
    run_on<Kernel, M>(set, args, tasks / 2, tasks);
    other.join();
  }
};

template <typename M>
void check_all(const InstanceShape& shape) {
  const Problem problem = Problem::make<M>(shape);
  for (const InstructionSet set : {InstructionSet::base, InstructionSet::avx2, InstructionSet::avx512}) {
    if (set > best_instruction_set()) continue;
    check<M>(problem, name_of(set), OnCpu<M>{set});
  }
  // Shared memory for several blocks of wide tiles, for one of narrow tiles, and for none: the second path.
  const size_t sums = kPoolThreads * sizeof(Real<M>) * pool_vector<M>;
  const size_t widest = sums + 3 * shape.pixels() * kWidestTile * sizeof(M);
  for (const size_t limit : {kResidentBlocks * widest, sums + 3 * shape.pixels() * kSectorBytes, size_t{0}}) {
    check<M>(problem, "cuda with " + std::to_string(limit) + " bytes", [limit](const auto& args) {
      expect("launch", launch_norm_relu_pool(args, limit, nullptr) == cudaSuccess);
    });
  }
}

struct RoundingArgs {
  const float* given;  // [16]
  Bfloat16* stored;    // [16]
  float* again;        // [16]
};

template <typename T, int kBytes>
struct Rounding {
  static DDFAST_INLINE void run(const RoundingArgs& args, int64_t, int64_t) {
    Block<T, kBytes>::load(args.given).store(args.stored);
    Block<T, kBytes>::load(args.stored).store(args.again);
  }
};

// A lane of a block is rounded as a single number is: to nearest, ties to even.
void check_rounding(InstructionSet set) {
  const float inf = std::numeric_limits<float>::infinity(), ulp = 1.0f / 128;  // of bfloat16, from 1 to 2
  const std::vector<std::pair<float, float>> cases = {{1, 1},
                                                      {1 + ulp / 2, 1},
                                                      {1 + ulp * 1.5f, 1 + 2 * ulp},
                                                      {1 + ulp * 0.501f, 1 + ulp},
                                                      {-1 - ulp / 2, -1},
                                                      {-1 - ulp * 0.51f, -1 - ulp},
                                                      {0, 0},
                                                      {-0.0f, -0.0f},
                                                      {3e38f, 0x1.c4p+127f},
                                                      {3.4e38f, inf},
                                                      {-inf, -inf},
                                                      {inf, inf},
                                                      {0x1p-133f, 0x1p-133f},
                                                      {0x1p-149f, 0},
                                                      {std::bit_cast<float>(0x7f800001u), std::nanf("")},
                                                      {std::bit_cast<float>(0x7fffffffu), std::nanf("")}};
  std::vector<float> given, again(16);
  for (const auto& [from, to] : cases) given.push_back(from);
  std::vector<Bfloat16> stored(16);
  run_on<Rounding, float>(set, RoundingArgs{given.data(), stored.data(), again.data()}, 0, 1);
  for (int i = 0; i < 16; ++i) {
    const float expected = cases[i].second;
    const auto same = [&](float got) {
      if (std::isnan(expected)) return std::isnan(got);
      return got == expected && std::signbit(got) == std::signbit(expected);
    };
    expect("rounding of " + std::to_string(given[i]) + " " + name_of(set),
           same(again[i]) && same(stored[i]) && same(Bfloat16(given[i])));
  }
}

}  // namespace ddfast::test

int main() {
  using ddfast::InstanceShape;
  for (const InstanceShape& shape :
       {InstanceShape{1, 1, 2, 2}, InstanceShape{2, 3, 5, 4}, InstanceShape{1, 35, 4, 7}, InstanceShape{2, 40, 9, 9},
        InstanceShape{1, 16, 16, 16}, InstanceShape{2, 150, 3, 5}}) {
    ddfast::test::check_all<float>(shape);
#ifndef __SANITIZE_THREAD__  // minutes, and races do not depend on the type
    ddfast::test::check_all<double>(shape);
    ddfast::test::check_all<ddfast::Bfloat16>(shape);
#endif
  }
  using ddfast::InstructionSet;
  for (const InstructionSet set : {InstructionSet::base, InstructionSet::avx2, InstructionSet::avx512}) {
    if (set <= ddfast::best_instruction_set()) ddfast::test::check_rounding(set);
  }
  return ddfast::test::finish("norm_relu_pool");
}
