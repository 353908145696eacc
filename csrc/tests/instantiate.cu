// Compiles every CUDA kernel for both types, without torch.
#include "../kernels/dsa_augment.cuh"
#include "../kernels/norm_relu_pool.cuh"
#include "../kernels/param_distance.cuh"

namespace ddfast {

#define DDFAST_INSTANTIATE(T)                                                                             \
  template cudaError_t launch_dsa_augment(const DsaAugmentArgs<T>&, cudaStream_t);                        \
  template cudaError_t launch_dsa_augment(const DsaAugmentBackwardArgs<T>&, cudaStream_t);                \
  template cudaError_t launch_param_distance(const ParamDistanceArgs<T>&, cudaStream_t);                  \
  template cudaError_t launch_param_distance_backward(const ParamDistanceBackwardArgs<T>&, cudaStream_t); \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolArgs<T>&, size_t, cudaStream_t);           \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardArgs<T>&, size_t, cudaStream_t);   \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolJvpArgs<T>&, size_t, cudaStream_t);        \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardJvpArgs<T>&, size_t, cudaStream_t);

DDFAST_INSTANTIATE(float)
DDFAST_INSTANTIATE(double)

}  // namespace ddfast
