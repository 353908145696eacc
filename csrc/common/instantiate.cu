// Compiles every CUDA kernel for all types, without torch.
#include "../dsa_augment/cuda.cuh"
#include "../gradient_distance/cuda.cuh"
#include "../norm_relu_pool/launch.cuh"
#include "../param_distance/cuda.cuh"

namespace ddfast {

#define DDFAST_INSTANTIATE(T)                                                                                   \
  template cudaError_t launch_dsa_augment(const DsaAugmentArgs<T>&, cudaStream_t);                              \
  template cudaError_t launch_dsa_augment(const DsaAugmentBackwardArgs<T>&, cudaStream_t);                      \
  template cudaError_t launch_gradient_distance(const GradientDistanceArgs<T>&, cudaStream_t);                  \
  template cudaError_t launch_gradient_total(const GradientDistanceArgs<T>&, cudaStream_t);                     \
  template cudaError_t launch_gradient_distance_backward(const GradientDistanceBackwardArgs<T>&, cudaStream_t); \
  template cudaError_t launch_param_distance(const ParamDistanceArgs<T>&, cudaStream_t);                        \
  template cudaError_t launch_param_distance_backward(const ParamDistanceBackwardArgs<T>&, cudaStream_t);

#define DDFAST_INSTANTIATE_MAPS(M)                                                                      \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolArgs<M>&, size_t, cudaStream_t);         \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardArgs<M>&, size_t, cudaStream_t); \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolJvpArgs<M>&, size_t, cudaStream_t);      \
  template cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardJvpArgs<M>&, size_t, cudaStream_t);

DDFAST_INSTANTIATE(float)
DDFAST_INSTANTIATE(double)
DDFAST_INSTANTIATE_MAPS(float)
DDFAST_INSTANTIATE_MAPS(double)
DDFAST_INSTANTIATE_MAPS(Bfloat16)

}  // namespace ddfast
