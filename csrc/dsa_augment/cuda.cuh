// CUDA kernels of dsa_augment: a block is one image; threads stride over its pixels, a tree joins their sums.
#pragma once

#include "../common/block_sum.cuh"
#include "args.h"

namespace ddfast {

constexpr int kDsaThreads = 256;

template <typename T>
__global__ void dsa_augment_kernel(DsaAugmentArgs<T> args) {
  const int64_t n = blockIdx.x, W = args.shape.W, pixels = args.shape.H * W;
  const DsaRow<T> row = dsa_row(args.rows, n);
  T level = args.linear ? T(0) : row.brightness;
  if (row.is_contrast()) {  // the same for all threads of the block
    double sums[2] = {0, 0};
    for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
      sums[0] += channel_mean(args.shape, args.images, n, i / W, i % W);
    }
    block_sum(sums[0], sums[1]);
    level += static_cast<T>((1 - row.contrast) * sums[0] / static_cast<double>(pixels));
  }
  for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) dsa_pixel(args, row, level, n, i / W, i % W);
}

template <typename T>
__global__ void dsa_augment_backward_kernel(DsaAugmentBackwardArgs<T> args) {
  const int64_t n = blockIdx.x, W = args.shape.W, pixels = args.shape.H * W;
  const DsaRow<T> row = dsa_row(args.rows, n);
  double sums[2] = {0, 0};
  for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
    sums[0] += dsa_pixel_backward(args, row, n, i / W, i % W);
  }
  T level = 0;
  if (row.is_contrast()) {
    block_sum(sums[0], sums[1]);
    level = static_cast<T>((1 - row.contrast) * sums[0] / static_cast<double>(args.shape.C * pixels));
  }
  for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {  // each thread its own pixels again
    dsa_color_backward(args, row, level, n, i / W, i % W);
  }
}

template <typename T>
cudaError_t launch_dsa_augment(const DsaAugmentArgs<T>& args, cudaStream_t stream) {
  return launch(dsa_augment_kernel<T>, args.shape.N, kDsaThreads, 2 * kDsaThreads * sizeof(double), stream, args);
}

template <typename T>
cudaError_t launch_dsa_augment(const DsaAugmentBackwardArgs<T>& args, cudaStream_t stream) {
  return launch(dsa_augment_backward_kernel<T>, args.shape.N, kDsaThreads, 2 * kDsaThreads * sizeof(double), stream,
                args);
}

}  // namespace ddfast
