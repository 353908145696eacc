// Runs the CUDA kernels on a CPU: a block's threads are host threads, __syncthreads a barrier; include it before a
// .cuh.
//
// Blocks run one after another. Shared memory is filled with NaN bytes before each, so that a value read before it was
// written shows; the thread sanitizer sees a missing barrier as a race.
#pragma once

#define DDFAST_EMULATION

#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__

struct dim3 {
  unsigned x;
  explicit dim3(unsigned x_ = 1) : x(x_) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };

namespace ddfast::emulation {

struct Block {
  std::barrier<> synchronised;
  std::vector<double> shared;  // doubles, for their alignment
};

inline thread_local Block* current = nullptr;

}  // namespace ddfast::emulation

inline thread_local dim3 threadIdx, blockIdx, blockDim;

inline void __syncthreads() { ddfast::emulation::current->synchronised.arrive_and_wait(); }

namespace ddfast {

using std::sqrt;

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulation::current->shared.data());
}

template <size_t kBytes>
void copy_async(void* to, const void* from) {
  std::memcpy(to, from, kBytes);
}
inline void wait_for_copies() {}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int count, size_t shared_bytes, cudaStream_t,
                   Arguments... arguments) {
  emulation::Block state{std::barrier<>(count), std::vector<double>(shared_bytes / sizeof(double) + 1)};
  std::barrier<> finished(count);
  const auto run_thread = [&](unsigned thread) {
    emulation::current = &state;
    threadIdx = dim3(thread);
    blockDim = dim3(count);
    for (int64_t index = 0; index < blocks; ++index) {
      if (thread == 0) std::memset(state.shared.data(), 0xff, state.shared.size() * sizeof(double));
      finished.arrive_and_wait();
      blockIdx = dim3(static_cast<unsigned>(index));
      kernel(arguments...);
      finished.arrive_and_wait();
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < count; ++thread) threads.emplace_back(run_thread, thread);
  for (std::thread& thread : threads) thread.join();
  return cudaSuccess;
}

}  // namespace ddfast
