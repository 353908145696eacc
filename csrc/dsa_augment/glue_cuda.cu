// CUDA glue of dsa_augment.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda.cuh"
#include "glue.h"

namespace ddfast {
namespace {

struct Cuda {
  using Guard = c10::cuda::CUDAGuard;
  static int64_t partials(const ImageShape& shape) { return dsa_partials(shape); }

  template <typename Args>
  static void run(const Args& args) {
    C10_CUDA_CHECK(launch_dsa_augment(args, c10::cuda::getCurrentCUDAStream()));
  }
};

TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_dsa_augment<Cuda>(m); }

}  // namespace
}  // namespace ddfast
