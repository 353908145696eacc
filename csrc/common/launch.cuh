// How a CUDA kernel is launched and where its dynamic shared memory is; csrc/common/emulation.h is the same for a CPU.
#pragma once

#ifndef DDFAST_EMULATION

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

namespace ddfast {

constexpr size_t kDefaultSharedBytes = 48 * 1024;  // what every device gives a block without being asked

template <typename T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char ddfast_shared_memory[];
  return reinterpret_cast<T*>(ddfast_shared_memory);
}

// Copies so many bytes from device to shared memory, asynchronously where the hardware can; wait_for_copies() waits for
// the calling thread's.
template <size_t kBytes>
__device__ void copy_async(void* to, const void* from) {
  if constexpr (kBytes == 4 || kBytes == 8 || kBytes == 16) {
    __pipeline_memcpy_async(to, from, kBytes);
  } else {
    memcpy(to, from, kBytes);
  }
}
__device__ inline void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;  // the most that a grid can have
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace ddfast

#endif
