// CPU glue of norm_relu_pool.
#include "norm_relu_pool.h"

#include <ATen/Parallel.h>

#include "../kernels/norm_relu_pool.h"

namespace ddfast {
namespace {

struct Cpu {
  using Guard = NoDeviceGuard;

  template <typename T>
  static void run(const NormReluPoolArgs<T>& args) {
    spread<NormReluPool, T>(args);
  }
  template <typename T>
  static void run(const NormReluPoolBackwardArgs<T>& args) {
    spread<NormReluPoolBackward, T>(args);
  }
  template <typename T>
  static void run(const NormReluPoolJvpArgs<T>& args) {
    spread<NormReluPoolJvp, T>(args);
  }
  template <typename T>
  static void run(const NormReluPoolBackwardJvpArgs<T>& args) {
    spread<NormReluPoolBackwardJvp, T>(args);
  }

 private:
  template <template <typename, int> class Kernel, typename T, typename Args>
  static void spread(const Args& args) {
    at::parallel_for(0, norm_relu_pool_tasks<T>(args.shape), 1,
                     [&](int64_t begin, int64_t end) { run_best<Kernel, T>(args, begin, end); });
  }
};

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_norm_relu_pool<Cpu>(m); }

}  // namespace
}  // namespace ddfast
