// CUDA kernels of dsa_augment: a thread is a pixel. Where the contrast is drawn a sum over the image is needed: blocks
// leave partial sums, and the next kernel adds them, in one fixed order.
#pragma once

#include <algorithm>

#include "../common/block_sum.cuh"
#include "../common/packed.cuh"
#include "args.h"

namespace ddfast {

constexpr int kDsaThreads = 256;
constexpr size_t kDsaShared = 2 * kDsaThreads * sizeof(double);
constexpr int64_t kDsaChunk = 4 * kDsaThreads;  // numbers that a block sums

inline int64_t dsa_parts(const ImageShape& shape) { return (shape.H * shape.W + kDsaThreads - 1) / kDsaThreads; }
inline int64_t dsa_chunks(const ImageShape& shape) { return (shape.C * shape.H * shape.W + kDsaChunk - 1) / kDsaChunk; }
// Doubles of scratch memory; the result, and the gradient.
inline int64_t dsa_partials(const ImageShape& shape) { return shape.N * std::max(dsa_parts(shape), dsa_chunks(shape)); }

// The sum over an image of which there are so many partial sums; for all threads of a block.
__device__ inline double dsa_sum(const double* partial, int64_t n, int64_t count) {
  double sums[2] = {0, 0};
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sums[0] += partial[n * count + i];
  block_sum(sums[0], sums[1]);
  return sums[0];
}

template <typename T, int kVector>  // kVector 0: of any layout, else the numbers of an image lie side by side
__global__ void dsa_augment_sums_kernel(DsaAugmentArgs<T> args, int64_t chunks) {
  constexpr int kStep = kVector > 0 ? kVector : 1;
  const int64_t n = blockIdx.x / chunks, first = (blockIdx.x % chunks) * kDsaChunk;
  if (!dsa_row(args.rows, n).is_contrast()) return;  // all threads of the block
  const int64_t W = args.shape.W, pixels = args.shape.H * W, size = args.shape.C * pixels;
  const int64_t last = first + kDsaChunk < size ? first + kDsaChunk : size;
  T sum = 0;
  for (int64_t i = first + threadIdx.x * kStep; i < last; i += blockDim.x * kStep) {
    if constexpr (kVector > 0) {
      const Packed<T, kStep> values = load_packed<kStep>(args.images.data + n * args.images.n + i);
      for (int k = 0; k < kStep; ++k) sum += values.of[k];
    } else {
      sum += args.images.at(n, i / pixels, i % pixels / W, i % W);
    }
  }
  double sums[2] = {static_cast<double>(sum), 0};
  block_sum(sums[0], sums[1]);
  if (threadIdx.x == 0) args.partial[blockIdx.x] = sums[0];
}

template <typename T>
__global__ void dsa_augment_kernel(DsaAugmentArgs<T> args, int64_t parts, int64_t chunks) {
  const int64_t n = blockIdx.x / parts, pixels = args.shape.H * args.shape.W;
  const DsaRow<T> row = dsa_row(args.rows, n);
  T level = args.linear ? T(0) : row.brightness;
  if (row.is_contrast()) {
    const double mean = dsa_sum(args.partial, n, chunks) / static_cast<double>(args.shape.C * pixels);
    level += static_cast<T>((1 - row.contrast) * mean);
  }
  const int64_t i = (blockIdx.x % parts) * kDsaThreads + threadIdx.x;
  if (i < pixels) dsa_pixel(args, row, level, n, i / args.shape.W, i % args.shape.W);
}

template <typename T>
__global__ void dsa_augment_backward_kernel(DsaAugmentBackwardArgs<T> args, int64_t parts) {
  const int64_t n = blockIdx.x / parts, W = args.shape.W;
  const DsaRow<T> row = dsa_row(args.rows, n);
  const int64_t i = (blockIdx.x % parts) * kDsaThreads + threadIdx.x;
  double sums[2] = {0, 0};
  if (i < args.shape.H * W) sums[0] = dsa_pixel_backward(args, row, n, i / W, i % W);
  if (!row.is_contrast()) return;
  block_sum(sums[0], sums[1]);
  if (threadIdx.x == 0) args.partial[blockIdx.x] = sums[0];
}

// The colours' transpose, in place; a thread has kVector neighbouring pixels, in all channels.
template <typename T, int kVector>
__global__ void dsa_augment_color_backward_kernel(DsaAugmentBackwardArgs<T> args, int64_t parts, int64_t blocks) {
  const int64_t n = blockIdx.x / blocks, C = args.shape.C, pixels = args.shape.H * args.shape.W;
  const DsaRow<T> row = dsa_row(args.rows, n);
  if (!row.is_contrast() && !row.is_saturation()) return;  // all threads of the block
  T level = 0;
  if (row.is_contrast()) {
    level = static_cast<T>((1 - row.contrast) * dsa_sum(args.partial, n, parts) / static_cast<double>(C * pixels));
  }
  const int64_t i = ((blockIdx.x % blocks) * kDsaThreads + threadIdx.x) * kVector;
  if (i >= pixels) return;
  T* const values = args.grad_images.data + n * C * pixels + i;  // the gradient is contiguous
  Packed<T, kVector> grey{};
  for (int64_t c = 0; c < C && row.is_saturation(); ++c) {
    const Packed<T, kVector> value = load_packed<kVector>(values + c * pixels);
    for (int k = 0; k < kVector; ++k) grey.of[k] += value.of[k] / static_cast<T>(C);
  }
  for (int64_t c = 0; c < C; ++c) {
    Packed<T, kVector> value = load_packed<kVector>(values + c * pixels);
    for (int k = 0; k < kVector; ++k) {
      value.of[k] = row.contrast * (row.saturation * (value.of[k] - grey.of[k]) + grey.of[k]) + level;
    }
    store_packed(value, values + c * pixels);
  }
}

template <typename T>
cudaError_t launch_dsa_augment(const DsaAugmentArgs<T>& args, cudaStream_t stream) {
  constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
  const ImageShape& shape = args.shape;
  const int64_t chunks = dsa_chunks(shape), parts = dsa_parts(shape), size = shape.C * shape.H * shape.W;
  const bool vectors = args.images.is_dense(shape) && size % kVector == 0 && are_aligned({args.images.data});
  const auto sums = vectors ? dsa_augment_sums_kernel<T, kVector> : dsa_augment_sums_kernel<T, 0>;
  const cudaError_t error = launch(sums, shape.N * chunks, kDsaThreads, kDsaShared, stream, args, chunks);
  if (error != cudaSuccess) return error;
  return launch(dsa_augment_kernel<T>, shape.N * parts, kDsaThreads, kDsaShared, stream, args, parts, chunks);
}

template <typename T>
cudaError_t launch_dsa_augment(const DsaAugmentBackwardArgs<T>& args, cudaStream_t stream) {
  constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
  const int64_t N = args.shape.N, parts = dsa_parts(args.shape), pixels = args.shape.H * args.shape.W;
  const cudaError_t error =
      launch(dsa_augment_backward_kernel<T>, N * parts, kDsaThreads, kDsaShared, stream, args, parts);
  if (error != cudaSuccess) return error;
  const bool vectors = pixels % kVector == 0 && are_aligned({args.grad_images.data});
  const auto colors = vectors ? dsa_augment_color_backward_kernel<T, kVector> : dsa_augment_color_backward_kernel<T, 1>;
  const int64_t each = kDsaThreads * (vectors ? kVector : 1), blocks = (pixels + each - 1) / each;
  return launch(colors, N * blocks, kDsaThreads, kDsaShared, stream, args, parts, blocks);
}

}  // namespace ddfast
