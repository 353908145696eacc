// CPU glue of gradient_distance.
#include "glue.h"

#include <ATen/Parallel.h>

#include "cpu.h"

namespace ddfast {
namespace {

struct Cpu {
  using Guard = NoDeviceGuard;

  template <typename T>
  static void run(const GradientDistanceArgs<T>& args) {
    spread<GradientDistance, T>(args);
    finish_gradient_rows(args);
  }
  template <typename T>
  static void finish(const GradientDistanceArgs<T>& args) {
    finish_gradient_distance(args);
  }
  template <typename T>
  static void run(const GradientDistanceBackwardArgs<T>& args) {
    spread<GradientDistanceBackward, T>(args);
  }

 private:
  static constexpr int64_t kGrain = 16;  // chunks of a thread at least

  template <template <typename, int> class Kernel, typename T, typename Args>
  static void spread(const Args& args) {
    at::parallel_for(0, args.S * tasks_of(args.layers), kGrain,
                     [&](int64_t begin, int64_t end) { run_best<Kernel, T>(args, begin, end); });
  }
};

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_gradient_distance<Cpu>(m); }

}  // namespace
}  // namespace ddfast
