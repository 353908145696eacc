// CPU glue of dsa_augment.
#include "glue.h"

#include <ATen/Parallel.h>

#include "cpu.h"

namespace ddfast {
namespace {

struct Cpu {
  using Guard = NoDeviceGuard;
  static int64_t partials(const ImageShape&) { return 0; }

  template <typename T>
  static void run(const DsaAugmentArgs<T>& args) {
    at::parallel_for(0, args.shape.N, 1, [&](int64_t begin, int64_t end) { dsa_augment_images(args, begin, end); });
  }
  template <typename T>
  static void run(const DsaAugmentBackwardArgs<T>& args) {
    at::parallel_for(0, args.shape.N, 1,
                     [&](int64_t begin, int64_t end) { dsa_augment_backward_images(args, begin, end); });
  }
};

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_dsa_augment<Cpu>(m); }

}  // namespace
}  // namespace ddfast
