// gradient_distance: CPU kernels at every instruction set and emulated CUDA kernels, against double-precision loops.
#include "../common/emulation.h"
// emulation.h comes first: it stands in for the CUDA runtime
#include "../common/test_check.h"
#include "cpu.h"
#include "cuda.cuh"

namespace ddfast::test {

struct Case {
  int64_t S, P;
  std::vector<std::vector<int64_t>> layers;  // offset, rows, length
  GradientDistanceKind kind;

  // As many layers in a part as `at_once`, so that several parts are tried with few layers.
  std::vector<GradientLayers> parts(int64_t at_once, int64_t* rows, int64_t* tasks) const {
    std::vector<GradientLayers> found;
    *rows = *tasks = 0;
    for (const auto& layer : layers) {
      if (found.empty() || found.back().count == at_once) found.push_back({});
      GradientLayer& next = found.back().of[found.back().count++];
      next = {layer[0], layer[1], layer[2], *tasks, *rows};
      *tasks += next.tasks();
      *rows += next.rows;
    }
    return found;
  }
};

template <typename T>
struct Problem {
  Case shape;
  std::vector<double> g, h, grad, distance, grad_g, grad_h;

  explicit Problem(const Case& shape_) : shape(shape_) {
    const int64_t S = shape.S, P = shape.P;
    g = draw<T>(S * P, 1);
    h = draw<T>(S * P, 2);
    grad = draw<T>(S, 3);
    grad_g.resize(S * P);
    grad_h.resize(S * P);
    for (int64_t s = 0; s < S; ++s) {
      double total = 0;
      for (const auto& layer : shape.layers) {
        for (int64_t row = 0; row < layer[1]; ++row) total += add_row(s, s * P + layer[0] + row * layer[2], layer[2]);
      }
      distance.push_back(total);
    }
  }

  double add_row(int64_t s, int64_t first, int64_t length) {
    double dot = 0, gg = 0, hh = 0, other = 0;
    for (int64_t i = first; i < first + length; ++i) {
      dot += g[i] * h[i];
      gg += g[i] * g[i];
      hh += h[i] * h[i];
      const double d = g[i] - h[i];
      other += shape.kind == GradientDistanceKind::squared ? d * d : std::abs(d);
    }
    const double a = std::sqrt(gg), b = std::sqrt(hh), q = a * b + 1e-6;
    for (int64_t i = first; i < first + length; ++i) {
      const double d = g[i] - h[i];
      if (shape.kind == GradientDistanceKind::cosine) {
        grad_g[i] = grad[s] * (dot / q / q * b / a * g[i] - h[i] / q);
        grad_h[i] = grad[s] * (dot / q / q * a / b * h[i] - g[i] / q);
      } else {
        grad_g[i] = grad[s] * (shape.kind == GradientDistanceKind::squared ? 2 * d : d > 0 ? 1 : -1);
        grad_h[i] = -grad_g[i];
      }
    }
    return shape.kind == GradientDistanceKind::cosine ? 1 - dot / q : other;
  }

  // Calls run(args) for every part of the layers, then finish(args) and backward(args), and compares what they wrote.
  template <typename Run, typename Finish, typename Backward>
  void check(const std::string& where, int64_t at_once, const Run& run, const Finish& finish,
             const Backward& backward) const {
    const std::string what = where + (sizeof(T) == 4 ? " float kind " : " double kind ") +
                             std::to_string(static_cast<int64_t>(shape.kind)) + " P=" + std::to_string(shape.P);
    const std::vector<T> a = as<T>(g), b = as<T>(h), u = as<T>(grad);
    int64_t rows, tasks;
    const std::vector<GradientLayers> parts = shape.parts(at_once, &rows, &tasks);
    std::vector<double> partial = poisoned<double>(shape.S * tasks * 3);
    std::vector<double> each = poisoned<double>(shape.S * rows);
    std::vector<double> sums = poisoned<double>(shape.S * rows * 3);
    std::vector<T> d = poisoned<T>(shape.S);
    GradientDistanceArgs<T> args{shape.S,  shape.P,  rows,           tasks,       shape.kind,  {},
                                 a.data(), b.data(), partial.data(), each.data(), sums.data(), d.data()};
    for (const GradientLayers& part : parts) {
      args.layers = part;
      run(args);
    }
    finish(args);
    expect_close(what + " distance", d, distance);
    for (const bool both : {true, false}) {
      std::vector<T> ga(a.size()), gb(a.size());
      GradientDistanceBackwardArgs<T> back{shape.S,    shape.P,     rows,      tasks,
                                           shape.kind, {},          u.data(),  a.data(),
                                           b.data(),   sums.data(), ga.data(), both ? gb.data() : nullptr};
      for (const GradientLayers& part : parts) {
        back.layers = part;
        backward(back);
      }
      expect_close(what + " grad_g", ga, grad_g);
      if (both) expect_close(what + " grad_h", gb, grad_h);
    }
  }
};

template <typename T>
void check_all(const Case& shape) {
  const Problem<T> problem(shape);
  for (const int64_t at_once : {64, 1}) {
    for (const InstructionSet set : {InstructionSet::base, InstructionSet::avx2, InstructionSet::avx512}) {
      if (set > best_instruction_set()) continue;
      problem.check(
          name_of(set), at_once,
          [&](const GradientDistanceArgs<T>& args) {
            const int64_t tasks = args.S * tasks_of(args.layers);
            run_on<GradientDistance, T>(set, args, 0, tasks / 2);  // in two ranges, as two threads would
            run_on<GradientDistance, T>(set, args, tasks / 2, tasks);
            finish_gradient_rows(args);
          },
          [](const GradientDistanceArgs<T>& args) { finish_gradient_distance(args); },
          [&](const GradientDistanceBackwardArgs<T>& args) {
            run_on<GradientDistanceBackward, T>(set, args, 0, args.S * tasks_of(args.layers));
          });
    }
    problem.check(
        "cuda", at_once,
        [](const GradientDistanceArgs<T>& args) {
          expect("launch", launch_gradient_distance(args, nullptr) == cudaSuccess);
        },
        [](const GradientDistanceArgs<T>& args) {
          expect("launch", launch_gradient_total(args, nullptr) == cudaSuccess);
        },
        [](const GradientDistanceBackwardArgs<T>& args) {
          expect("launch", launch_gradient_distance_backward(args, nullptr) == cudaSuccess);
        });
  }
}

}  // namespace ddfast::test

int main() {
  using ddfast::GradientDistanceKind;
  using ddfast::test::Case;
  for (const auto kind :
       {GradientDistanceKind::cosine, GradientDistanceKind::squared, GradientDistanceKind::absolute}) {
    for (const Case& shape : {Case{1, 3, {{0, 1, 3}}, kind}, Case{2, 50, {{0, 3, 9}, {30, 2, 7}, {45, 1, 5}}, kind},
                              Case{2, 9000, {{1, 1, 4096}, {4097, 1, 4097}, {8300, 4, 100}}, kind}}) {
      ddfast::test::check_all<float>(shape);
      ddfast::test::check_all<double>(shape);
    }
  }
  return ddfast::test::finish("gradient_distance");
}
