// CUDA kernels of param_distance: both squared distances in one pass, all gradients in one more.
//
// A thread moves kVector neighbouring numbers at once. Every sum has one fixed order: a thread strides over its chunk,
// a tree joins the threads, the chunks are added in turn.
#pragma once

#include <cstdint>

#include "../common/block_sum.cuh"
#include "../common/packed.cuh"
#include "args.h"

namespace ddfast {

constexpr int kDistanceThreads = 256;
constexpr int64_t kDistanceChunkCuda = 16 * kDistanceThreads;  // elements of a block

inline int64_t distance_chunks_cuda(int64_t P) { return (P + kDistanceChunkCuda - 1) / kDistanceChunkCuda; }

template <typename T, int kVector>
__global__ void param_distance_kernel(ParamDistanceArgs<T> args, int64_t chunks) {
  const int64_t task = blockIdx.x;  // chunk task % chunks of row task / chunks
  const int64_t first = (task % chunks) * kDistanceChunkCuda, row = (task / chunks) * args.P;
  const int64_t last = first + kDistanceChunkCuda < args.P ? first + kDistanceChunkCuda : args.P;
  T num = 0, den = 0;
  for (int64_t i = first + threadIdx.x * kVector; i < last; i += blockDim.x * kVector) {
    const Packed<T, kVector> target = load_packed<kVector>(args.target + row + i);
    const Packed<T, kVector> student = load_packed<kVector>(args.student + row + i);
    const Packed<T, kVector> start = load_packed<kVector>(args.start + row + i);
    Packed<T, kVector> weight{};
    if (args.weight) weight = load_packed<kVector>(args.weight + i);
    for (int k = 0; k < kVector; ++k) {
      const T a = student.of[k] - target.of[k], b = start.of[k] - target.of[k], w = args.weight ? weight.of[k] : T(1);
      num += w * a * a;
      den += w * b * b;
    }
  }
  double sums[2] = {static_cast<double>(num), static_cast<double>(den)};
  block_sum(sums[0], sums[1]);
  if (threadIdx.x == 0) {
    args.partial[2 * task] = sums[0];
    args.partial[2 * task + 1] = sums[1];
  }
}

template <typename T>
__global__ void param_distance_finish_kernel(ParamDistanceArgs<T> args, int64_t chunks) {
  const int64_t s = blockIdx.x;
  double sums[2] = {0, 0};
  for (int64_t i = s * chunks + threadIdx.x; i < (s + 1) * chunks; i += blockDim.x) {
    sums[0] += args.partial[2 * i];
    sums[1] += args.partial[2 * i + 1];
  }
  block_sum(sums[0], sums[1]);
  if (threadIdx.x == 0) {
    args.distance[s] = static_cast<T>(sums[0] / sums[1]);
    args.denominator[s] = static_cast<T>(sums[1]);
  }
}

template <typename T, int kVector>
__global__ void param_distance_backward_kernel(ParamDistanceBackwardArgs<T> args, int64_t chunks) {
  const int64_t s = blockIdx.x / chunks, row = s * args.P;
  const int64_t first = (blockIdx.x % chunks) * kDistanceChunkCuda;
  const int64_t last = first + kDistanceChunkCuda < args.P ? first + kDistanceChunkCuda : args.P;
  // d = n / D:  dd/dstudent = 2 w (student - target) / D,  dd/dstart = -d 2 w (start - target) / D
  const T along_student = 2 * args.grad[s] / args.denominator[s];
  const T along_start = -along_student * args.distance[s];
  for (int64_t i = first + threadIdx.x * kVector; i < last; i += blockDim.x * kVector) {
    const Packed<T, kVector> target = load_packed<kVector>(args.target + row + i);
    const Packed<T, kVector> student = load_packed<kVector>(args.student + row + i);
    const Packed<T, kVector> start = load_packed<kVector>(args.start + row + i);
    Packed<T, kVector> weight{}, by_student, by_start, by_target;
    if (args.weight) weight = load_packed<kVector>(args.weight + i);
    for (int k = 0; k < kVector; ++k) {
      const T w = args.weight ? weight.of[k] : T(1);
      by_student.of[k] = along_student * w * (student.of[k] - target.of[k]);
      by_start.of[k] = along_start * w * (start.of[k] - target.of[k]);
      by_target.of[k] = -by_student.of[k] - by_start.of[k];
    }
    if (args.grad_student) store_packed(by_student, args.grad_student + row + i);
    if (args.grad_start) store_packed(by_start, args.grad_start + row + i);
    if (args.grad_target) store_packed(by_target, args.grad_target + row + i);
  }
}

// Whether all rows begin at addresses from which kVectorBytes can be moved.
template <typename T, typename Args>
bool moves_vectors(const Args& args, std::initializer_list<const void*> others) {
  return args.P * sizeof(T) % kVectorBytes == 0 && are_aligned({args.student, args.target, args.start, args.weight}) &&
         are_aligned(others);
}

template <typename T>
cudaError_t launch_param_distance(const ParamDistanceArgs<T>& args, cudaStream_t stream) {
  constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
  const int64_t chunks = distance_chunks_cuda(args.P);
  const size_t shared = 2 * kDistanceThreads * sizeof(double);
  const auto kernel = moves_vectors<T>(args, {}) ? param_distance_kernel<T, kVector> : param_distance_kernel<T, 1>;
  const cudaError_t error = launch(kernel, args.S * chunks, kDistanceThreads, shared, stream, args, chunks);
  if (error != cudaSuccess) return error;
  return launch(param_distance_finish_kernel<T>, args.S, kDistanceThreads, shared, stream, args, chunks);
}

template <typename T>
cudaError_t launch_param_distance_backward(const ParamDistanceBackwardArgs<T>& args, cudaStream_t stream) {
  constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
  const int64_t chunks = distance_chunks_cuda(args.P);
  const bool vectors = moves_vectors<T>(args, {args.grad_student, args.grad_target, args.grad_start});
  const auto kernel = vectors ? param_distance_backward_kernel<T, kVector> : param_distance_backward_kernel<T, 1>;
  return launch(kernel, args.S * chunks, kDistanceThreads, 0, stream, args, chunks);
}

}  // namespace ddfast
