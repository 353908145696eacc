// CPU glue of norm_relu_pool.
#include "glue.h"

#include <ATen/Parallel.h>

#include "cpu.h"

namespace ddfast {
namespace {

struct Cpu {
  using Guard = NoDeviceGuard;

  template <typename M>
  static void run(const NormReluPoolArgs<M>& args) {
    spread<NormReluPool, M>(args);
  }
  template <typename M>
  static void run(const NormReluPoolBackwardArgs<M>& args) {
    spread<NormReluPoolBackward, M>(args);
  }
  template <typename M>
  static void run(const NormReluPoolJvpArgs<M>& args) {
    spread<NormReluPoolJvp, M>(args);
  }
  template <typename M>
  static void run(const NormReluPoolBackwardJvpArgs<M>& args) {
    spread<NormReluPoolBackwardJvp, M>(args);
  }

 private:
  template <template <typename, int> class Kernel, typename M, typename Args>
  static void spread(const Args& args) {
    at::parallel_for(0, norm_relu_pool_tasks<M>(args.shape), 1,
                     [&](int64_t begin, int64_t end) { run_best<Kernel, M>(args, begin, end); });
  }
};

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_norm_relu_pool<Cpu>(m); }

}  // namespace
}  // namespace ddfast
