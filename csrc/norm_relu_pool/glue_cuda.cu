// CUDA glue of norm_relu_pool.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "glue.h"
#include "launch.cuh"

namespace ddfast {
namespace {

struct Cuda {
  using Guard = c10::cuda::CUDAGuard;

  template <typename Args>
  static void run(const Args& args) {
    int device = 0, shared_limit = 0;
    C10_CUDA_CHECK(cudaGetDevice(&device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    C10_CUDA_CHECK(launch_norm_relu_pool(args, shared_limit, c10::cuda::getCurrentCUDAStream()));
  }
};

TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_norm_relu_pool<Cuda>(m); }

}  // namespace
}  // namespace ddfast
