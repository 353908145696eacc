// CUDA glue of param_distance.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda.cuh"
#include "glue.h"

namespace ddfast {
namespace {

struct Cuda {
  using Guard = c10::cuda::CUDAGuard;
  static int64_t chunks(int64_t P) { return distance_chunks_cuda(P); }

  template <typename T>
  static void run(const ParamDistanceArgs<T>& args) {
    C10_CUDA_CHECK(launch_param_distance(args, c10::cuda::getCurrentCUDAStream()));
  }
  template <typename T>
  static void run(const ParamDistanceBackwardArgs<T>& args) {
    C10_CUDA_CHECK(launch_param_distance_backward(args, c10::cuda::getCurrentCUDAStream()));
  }
};

TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_param_distance<Cuda>(m); }

}  // namespace
}  // namespace ddfast
