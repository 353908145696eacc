// A sum over the threads of a block, in one fixed order.
#pragma once

#include "launch.cuh"

namespace ddfast {

// Sums two numbers over the block; every thread gets them. Needs 2 doubles of shared memory per thread, of which there
// is a power of two.
__device__ inline void block_sum(double& a, double& b) {
  double* shared = shared_memory<double>();  // [2, threads]
  const unsigned threads = blockDim.x;
  shared[threadIdx.x] = a;
  shared[threads + threadIdx.x] = b;
  __syncthreads();
  for (unsigned half = threads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      shared[threadIdx.x] += shared[threadIdx.x + half];
      shared[threads + threadIdx.x] += shared[threads + threadIdx.x + half];
    }
    __syncthreads();
  }
  a = shared[0];
  b = shared[threads];
}

}  // namespace ddfast
