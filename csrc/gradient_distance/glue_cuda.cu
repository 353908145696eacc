// CUDA glue of gradient_distance.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda.cuh"
#include "glue.h"

namespace ddfast {
namespace {

struct Cuda {
  using Guard = c10::cuda::CUDAGuard;

  template <typename T>
  static void run(const GradientDistanceArgs<T>& args) {
    C10_CUDA_CHECK(launch_gradient_distance(args, c10::cuda::getCurrentCUDAStream()));
  }
  template <typename T>
  static void finish(const GradientDistanceArgs<T>& args) {
    C10_CUDA_CHECK(launch_gradient_total(args, c10::cuda::getCurrentCUDAStream()));
  }
  template <typename T>
  static void run(const GradientDistanceBackwardArgs<T>& args) {
    C10_CUDA_CHECK(launch_gradient_distance_backward(args, c10::cuda::getCurrentCUDAStream()));
  }
};

TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_gradient_distance<Cuda>(m); }

}  // namespace
}  // namespace ddfast
