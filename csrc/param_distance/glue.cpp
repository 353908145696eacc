// CPU glue of param_distance.
#include "glue.h"

#include <ATen/Parallel.h>

#include "cpu.h"

namespace ddfast {
namespace {

struct Cpu {
  using Guard = NoDeviceGuard;
  static int64_t chunks(int64_t P) { return distance_chunks(P); }

  template <typename T>
  static void run(const ParamDistanceArgs<T>& args) {
    spread<ParamDistance, T>(args);
    finish_param_distance(args);
  }
  template <typename T>
  static void run(const ParamDistanceBackwardArgs<T>& args) {
    spread<ParamDistanceBackward, T>(args);
  }

 private:
  static constexpr int64_t kGrain = 8;  // chunks of a thread at least

  template <template <typename, int> class Kernel, typename T, typename Args>
  static void spread(const Args& args) {
    at::parallel_for(0, args.S * chunks(args.P), kGrain,
                     [&](int64_t begin, int64_t end) { run_best<Kernel, T>(args, begin, end); });
  }
};

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_param_distance<Cpu>(m); }

}  // namespace
}  // namespace ddfast
