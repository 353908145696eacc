// param_distance: CPU kernels at every instruction set and emulated CUDA kernels, against double-precision loops.
#include "../common/emulation.h"
// emulation.h comes first: it stands in for the CUDA runtime
#include "../common/test_check.h"
#include "cpu.h"
#include "cuda.cuh"

namespace ddfast::test {

struct Case {
  int64_t S, P;
  bool weighted;

  std::string name(const std::string& where, const char* type) const {
    return where + " " + type + " S=" + std::to_string(S) + " P=" + std::to_string(P) + (weighted ? " weighted" : "");
  }
};

template <typename T>
struct Problem {
  Case shape;
  std::vector<double> student, target, start, weight, grad;
  std::vector<double> distance, denominator, grad_student, grad_target, grad_start;

  explicit Problem(const Case& shape_) : shape(shape_) {
    const int64_t S = shape.S, P = shape.P;
    student = draw<T>(S * P, 1);
    target = draw<T>(S * P, 2);
    start = draw<T>(S * P, 3);
    weight = draw<T>(P, 4);
    for (double& w : weight) w = std::abs(w) + 0.1;
    grad = draw<T>(S, 5);
    for (auto* out : {&grad_student, &grad_target, &grad_start}) out->resize(S * P);
    for (int64_t s = 0; s < S; ++s) {
      double num = 0, den = 0;
      for (int64_t i = s * P; i < (s + 1) * P; ++i) {
        const double w = w_of(i), a = student[i] - target[i], b = start[i] - target[i];
        num += w * a * a;
        den += w * b * b;
      }
      distance.push_back(num / den);
      denominator.push_back(den);
      for (int64_t i = s * P; i < (s + 1) * P; ++i) {
        const double w = w_of(i), a = student[i] - target[i], b = start[i] - target[i];
        grad_student[i] = grad[s] * 2 * w * a / den;
        grad_start[i] = -grad[s] * 2 * w * b * num / den / den;
        grad_target[i] = -grad_student[i] - grad_start[i];
      }
    }
  }
  double w_of(int64_t i) const { return shape.weighted ? weight[i % shape.P] : 1; }

  // Calls value(args), then backward(args), and compares all that they wrote.
  template <typename Value, typename Backward>
  void check(const std::string& where, int64_t chunks, const Value& value, const Backward& backward) const {
    const std::string what = shape.name(where, sizeof(T) == 4 ? "float" : "double");
    const std::vector<T> a = as<T>(student), b = as<T>(target), c = as<T>(start), w = as<T>(weight), g = as<T>(grad);
    std::vector<double> partial = poisoned<double>(shape.S * chunks * 2);
    std::vector<T> d = poisoned<T>(shape.S), n = poisoned<T>(shape.S);
    const T* weights = shape.weighted ? w.data() : nullptr;
    value(ParamDistanceArgs<T>{shape.S, shape.P, a.data(), b.data(), c.data(), weights, partial.data(), d.data(),
                               n.data()});
    expect_close(what + " distance", d, distance);
    expect_close(what + " denominator", n, denominator);
    std::vector<T> ga = poisoned<T>(a.size()), gb = poisoned<T>(a.size()), gc = poisoned<T>(a.size());
    ParamDistanceBackwardArgs<T> args{shape.S, shape.P,  g.data(), a.data(),  b.data(),  c.data(),
                                      weights, d.data(), n.data(), ga.data(), gb.data(), gc.data()};
    backward(args);
    expect_close(what + " grad_student", ga, grad_student);
    expect_close(what + " grad_target", gb, grad_target);
    expect_close(what + " grad_start", gc, grad_start);
    args.grad_target = args.grad_start = nullptr;
    std::fill(ga.begin(), ga.end(), static_cast<T>(std::nan("")));
    backward(args);
    expect_close(what + " grad_student alone", ga, grad_student);
  }
};

template <typename T>
void check_all(const Case& shape) {
  const Problem<T> problem(shape);
  const int64_t tasks = shape.S * distance_chunks(shape.P);
  for (const InstructionSet set : {InstructionSet::base, InstructionSet::avx2, InstructionSet::avx512}) {
    if (set > best_instruction_set()) continue;
    problem.check(
        name_of(set), distance_chunks(shape.P),
        [&](const ParamDistanceArgs<T>& args) {
          run_on<ParamDistance, T>(set, args, 0, tasks / 2);  // in two ranges, as two threads would
          run_on<ParamDistance, T>(set, args, tasks / 2, tasks);
          finish_param_distance(args);
        },
        [&](const ParamDistanceBackwardArgs<T>& args) { run_on<ParamDistanceBackward, T>(set, args, 0, tasks); });
  }
  problem.check(
      "cuda", distance_chunks_cuda(shape.P),
      [](const ParamDistanceArgs<T>& args) { expect("launch", launch_param_distance(args, nullptr) == cudaSuccess); },
      [](const ParamDistanceBackwardArgs<T>& args) {
        expect("launch", launch_param_distance_backward(args, nullptr) == cudaSuccess);
      });
}

}  // namespace ddfast::test

int main() {
  using ddfast::test::Case;
  for (const Case& shape : {Case{1, 1, false}, Case{2, 7, true}, Case{3, 33, false}, Case{2, 4096, true},
                            Case{2, 4097, false}, Case{1, 20000, true}}) {
    ddfast::test::check_all<float>(shape);
    ddfast::test::check_all<double>(shape);
  }
  return ddfast::test::finish("param_distance");
}
