// CUDA kernels of gradient_distance: the sums of all rows in one pass, both gradients in one more.
//
// A block takes one chunk of one row. Every sum has one fixed order: a thread strides over its chunk, a tree joins the
// threads, chunks and rows are added in turn.
#pragma once

#include <cstdint>

#include "../common/block_sum.cuh"
#include "args.h"

namespace ddfast {

constexpr int kGradientThreads = 128;

template <typename T>
__global__ void gradient_distance_kernel(GradientDistanceArgs<T> args, int64_t first_task, int64_t tasks) {
  const int64_t s = blockIdx.x / tasks, task = first_task + blockIdx.x % tasks;
  const GradientTask at = GradientTask::of(args.layers, task);
  const T* g = args.g + s * args.P + at.begin;
  const T* h = args.h + s * args.P + at.begin;
  T dot = 0, gg = 0, hh = 0;
  for (int64_t i = threadIdx.x; i < at.count; i += blockDim.x) {
    const T a = g[i], b = h[i];
    if (args.kind == GradientDistanceKind::cosine) {
      dot += a * b;
      gg += a * a;
      hh += b * b;
    } else {
      dot += args.kind == GradientDistanceKind::squared ? (a - b) * (a - b) : (a < b ? b - a : a - b);
    }
  }
  double sums[4] = {static_cast<double>(dot), static_cast<double>(gg), static_cast<double>(hh), 0};
  block_sum(sums[0], sums[1]);
  __syncthreads();  // before the shared memory is written again
  block_sum(sums[2], sums[3]);
  if (threadIdx.x == 0) {
    double* out = args.partial + kGradientSums * (s * args.tasks + task);
    for (int i = 0; i < kGradientSums; ++i) out[i] = sums[i];
  }
}

template <typename T>
__global__ void gradient_rows_kernel(GradientDistanceArgs<T> args, int64_t first_row, int64_t rows) {
  const int64_t s = blockIdx.x;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) {
    const int64_t row = first_row + i, at = s * args.rows + row;
    const double* partial = args.partial + kGradientSums * s * args.tasks;
    args.row_distance[at] =
        finish_gradient_row(args.kind, layer_of_row(args.layers, row), row, partial, args.sums + kGradientSums * at);
  }
}

template <typename T>
__global__ void gradient_total_kernel(GradientDistanceArgs<T> args) {
  const int64_t s = blockIdx.x;
  double sums[2] = {0, 0};
  for (int64_t row = threadIdx.x; row < args.rows; row += blockDim.x) sums[0] += args.row_distance[s * args.rows + row];
  block_sum(sums[0], sums[1]);
  if (threadIdx.x == 0) args.distance[s] = static_cast<T>(sums[0]);
}

template <typename T>
__global__ void gradient_distance_backward_kernel(GradientDistanceBackwardArgs<T> args, int64_t first_task,
                                                  int64_t tasks) {
  const int64_t s = blockIdx.x / tasks;
  const GradientTask at = GradientTask::of(args.layers, first_task + blockIdx.x % tasks);
  const GradientRow row = GradientRow::of(args.sums + kGradientSums * (s * args.rows + at.row));
  const T grad = args.grad[s];
  for (int64_t i = s * args.P + at.begin + threadIdx.x; i < s * args.P + at.begin + at.count; i += blockDim.x) {
    const T a = args.g[i], b = args.h[i];
    T by_a, by_b;
    if (args.kind == GradientDistanceKind::cosine) {
      by_a = grad * static_cast<T>(row.aa) * a + grad * static_cast<T>(row.ab) * b;
      by_b = grad * static_cast<T>(row.ab) * a + grad * static_cast<T>(row.bb) * b;
    } else {
      const T sign = a < b ? T(-1) : a > b ? T(1) : T(0);
      by_a = args.kind == GradientDistanceKind::squared ? 2 * grad * (a - b) : grad * sign;
      by_b = -by_a;
    }
    if (args.grad_g) args.grad_g[i] = by_a;
    if (args.grad_h) args.grad_h[i] = by_b;
  }
}

// Of some layers: their sums, and the distances of their rows.
template <typename T>
cudaError_t launch_gradient_distance(const GradientDistanceArgs<T>& args, cudaStream_t stream) {
  const int64_t tasks = tasks_of(args.layers);
  const size_t shared = 2 * kGradientThreads * sizeof(double);
  const cudaError_t error = launch(gradient_distance_kernel<T>, args.S * tasks, kGradientThreads, shared, stream, args,
                                   args.layers.of[0].first_task, tasks);
  if (error != cudaSuccess) return error;
  return launch(gradient_rows_kernel<T>, args.S, kGradientThreads, 0, stream, args, args.layers.of[0].first_row,
                rows_of(args.layers));
}

// After all layers.
template <typename T>
cudaError_t launch_gradient_total(const GradientDistanceArgs<T>& args, cudaStream_t stream) {
  return launch(gradient_total_kernel<T>, args.S, kGradientThreads, 2 * kGradientThreads * sizeof(double), stream,
                args);
}

template <typename T>
cudaError_t launch_gradient_distance_backward(const GradientDistanceBackwardArgs<T>& args, cudaStream_t stream) {
  const int64_t tasks = tasks_of(args.layers);
  return launch(gradient_distance_backward_kernel<T>, args.S * tasks, kGradientThreads, 0, stream, args,
                args.layers.of[0].first_task, tasks);
}

}  // namespace ddfast
