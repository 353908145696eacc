// CUDA kernels of norm_relu_pool: instance norm, ReLU, 2x2 average pool; value, backward, jvp, backward of jvp.
//
// A block works on one image and a tile of neighbouring channels of channels-last memory: thread t on channel t % tile,
// pixels t / tile, t / tile + threads / tile, … Where the tile of all inputs fits in shared memory it is read from
// device memory once (kStaged); otherwise the same code reads device memory (mostly the L2 cache) once per pass. Every
// sum has one fixed order. Maps are of type M, also in shared memory, and computed with as T = Real<M>. The letters are
// those of the op's reference in ddfast/ops/norm_relu_pool.py.
#pragma once

#include "../common/launch.cuh"
#include "args.h"

namespace ddfast {

constexpr int kPoolThreads = 256;
constexpr int kWidestTile = 32;

// One image's tile of one tensor, [pixels, channels], in shared or in device memory.
template <typename M>
struct Tile {
  const M* data;
  int64_t stride;  // from pixel to pixel

  __device__ Real<M> at(int pixel) const { return data[pixel * stride]; }
};

template <typename M, bool kStaged>
struct TiledInstance {
  using T = Real<M>;
  int H, W, OH, OW;       // of one image, where 32 bits suffice and divide faster
  int pixels, cells;      // H W, OH OW
  int tile, lane, lanes;  // channels of a block; this thread among those of its channel
  int64_t C, n, channel;  // channel may be ≥ C in the last tile: such a thread works, but neither loads nor stores
  T* sums;                // shared [threads]: room for the sums over a block
  M* next;                // shared: room for the next tile

  __device__ TiledInstance(const InstanceShape& shape, int tile_)
      : H(static_cast<int>(shape.H)),
        W(static_cast<int>(shape.W)),
        OH(H / 2),
        OW(W / 2),
        pixels(H * W),
        cells(OH * OW),
        tile(tile_),
        C(shape.C) {
    const int64_t tiles = (C + tile - 1) / tile;
    n = blockIdx.x / tiles;
    channel = (blockIdx.x % tiles) * tile + threadIdx.x % tile;
    lane = threadIdx.x / tile;
    lanes = blockDim.x / tile;
    sums = shared_memory<T>();
    next = reinterpret_cast<M*>(sums + blockDim.x);
  }
  __device__ bool valid() const { return channel < C; }
  __device__ int64_t statistic() const { return n * C + channel; }
  __device__ T of_image(const T* values) const { return valid() ? values[statistic()] : T(0); }  // [N, C]
  __device__ T of_channel(const T* values) const { return valid() ? values[channel] : T(0); }    // [C]

  // This image's tile of a channels-last tensor with `count` pixels. The caller synchronises before reading it, unless
  // it reads only its own pixels of its own channel.
  __device__ Tile<M> tile_of(const M* tensor, int count) {
    const M* from = tensor + n * count * C + (valid() ? channel : 0);
    if (!kStaged) return {from, C};
    M* to = next + threadIdx.x % tile;
    for (int i = lane; i < count; i += lanes) to[i * tile] = valid() ? from[i * C] : M(0);
    next += count * tile;
    return {to, tile};
  }
  // The sum of value over the threads of this thread's channel, known to all of them.
  __device__ T sum(T value) {
    sums[threadIdx.x] = value;
    __syncthreads();
    for (int half = lanes / 2; half > 0; half /= 2) {
      if (lane < half) sums[threadIdx.x] += sums[threadIdx.x + half * tile];
      __syncthreads();
    }
    const T total = sums[threadIdx.x % tile];
    __syncthreads();
    return total;
  }
  __device__ T mean(T total) const { return total / static_cast<T>(pixels); }
  // The pooled cell of a pixel, or -1 where an odd last row or column is not pooled.
  __device__ int cell(int pixel) const {
    const int oh = pixel / W / 2, ow = pixel % W / 2;
    return oh < OH && ow < OW ? oh * OW + ow : -1;
  }
  // Pixel k of the four of a pooled cell.
  __device__ int pixel(int cell, int k) const { return (cell / OW * 2 + k / 2) * W + cell % OW * 2 + k % 2; }
  // Where a thread writes its channel of a pixel of a channels-last tensor with `count` pixels.
  __device__ int64_t output(int pixel, int count) const { return (n * count + pixel) * C + channel; }
};

template <typename T>
__device__ T zero_unless_positive(T gate, T value) {  // ReLU that, like PyTorch's, lets a NaN through
  return gate <= T(0) ? T(0) : value;
}

template <typename M, bool kStaged>
__global__ void norm_relu_pool_kernel(NormReluPoolArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kStaged> in(args.shape, tile);
  const Tile<M> z = in.tile_of(args.z, in.pixels);
  T part = 0;
  for (int i = in.lane; i < in.pixels; i += in.lanes) part += z.at(i);
  const T mean = in.mean(in.sum(part));
  part = 0;
  for (int i = in.lane; i < in.pixels; i += in.lanes) part += (z.at(i) - mean) * (z.at(i) - mean);
  const T rstd = T(1) / sqrt(in.mean(in.sum(part)) + static_cast<T>(args.eps));
  if (!in.valid()) return;
  if (in.lane == 0) {
    args.mean[in.statistic()] = mean;
    args.rstd[in.statistic()] = rstd;
  }
  const T gamma = args.weight[in.channel], beta = args.bias[in.channel];
  for (int cell = in.lane; cell < in.cells; cell += in.lanes) {
    T total = 0;
    for (int k = 0; k < 4; ++k) {
      const T a = gamma * ((z.at(in.pixel(cell, k)) - mean) * rstd) + beta;
      total += zero_unless_positive(a, a);
    }
    args.y[in.output(cell, in.cells)] = M(total / 4);
  }
}

template <typename M, bool kStaged>
__global__ void norm_relu_pool_backward_kernel(NormReluPoolBackwardArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kStaged> in(args.shape, tile);
  const Tile<M> z = in.tile_of(args.z, in.pixels);
  const Tile<M> grad_y = in.tile_of(args.grad_y, in.cells);
  const T mean = in.of_image(args.mean), rstd = in.of_image(args.rstd);
  const T gamma = in.of_channel(args.weight), beta = in.of_channel(args.bias);
  __syncthreads();
  T part_q = 0, part_qx = 0;
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const int cell = in.cell(i);
    if (cell < 0) continue;
    const T x = (z.at(i) - mean) * rstd;
    const T q = zero_unless_positive(gamma * x + beta, grad_y.at(cell) / 4);
    part_q += q;
    part_qx += q * x;
  }
  const T sum_q = in.sum(part_q), sum_qx = in.sum(part_qx);
  if (!in.valid()) return;
  if (in.lane == 0) {
    args.grad_bias[in.statistic()] = sum_q;
    args.grad_weight[in.statistic()] = sum_qx;
  }
  const T mean_q = in.mean(sum_q), p = in.mean(sum_qx);
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const int cell = in.cell(i);
    const T x = (z.at(i) - mean) * rstd;
    const T q = cell < 0 ? T(0) : zero_unless_positive(gamma * x + beta, grad_y.at(cell) / 4);
    args.grad_z[in.output(i, in.pixels)] = M(gamma * rstd * (q - mean_q - x * p));
  }
}

template <typename M, bool kStaged>
__global__ void norm_relu_pool_jvp_kernel(NormReluPoolJvpArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kStaged> in(args.shape, tile);
  const Tile<M> z = in.tile_of(args.z, in.pixels);
  const Tile<M> dz = in.tile_of(args.dz, in.pixels);
  const T mean = in.of_image(args.mean), rstd = in.of_image(args.rstd);
  T part = 0;
  for (int i = in.lane; i < in.pixels; i += in.lanes) part += dz.at(i);
  const T dmean = in.mean(in.sum(part));
  part = 0;  // about the mean: x̂ sums to 0, and dz need not be small
  for (int i = in.lane; i < in.pixels; i += in.lanes) part += (z.at(i) - mean) * rstd * (dz.at(i) - dmean);
  const T dcov = in.mean(in.sum(part));
  if (!in.valid()) return;
  if (in.lane == 0) {
    args.dmean[in.statistic()] = dmean;
    args.dcov[in.statistic()] = dcov;
  }
  const T gamma = args.weight[in.channel], beta = args.bias[in.channel];
  const T dgamma = args.dweight[in.channel], dbeta = args.dbias[in.channel];
  for (int cell = in.lane; cell < in.cells; cell += in.lanes) {
    T total = 0;
    for (int k = 0; k < 4; ++k) {
      const int i = in.pixel(cell, k);
      const T x = (z.at(i) - mean) * rstd;
      const T dx = rstd * (dz.at(i) - dmean - x * dcov);
      total += zero_unless_positive(gamma * x + beta, dgamma * x + gamma * dx + dbeta);
    }
    args.dy[in.output(cell, in.cells)] = M(total / 4);
  }
}

template <typename M, bool kStaged>
__global__ void norm_relu_pool_backward_jvp_kernel(NormReluPoolBackwardJvpArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kStaged> in(args.shape, tile);
  const Tile<M> z = in.tile_of(args.z, in.pixels);
  const Tile<M> dz = in.tile_of(args.dz, in.pixels);
  const Tile<M> grad_y = in.tile_of(args.grad_y, in.cells);
  Tile<M> dgrad_y{};
  if (args.dgrad_y) dgrad_y = in.tile_of(args.dgrad_y, in.cells);
  const T mean = in.of_image(args.mean), rstd = in.of_image(args.rstd);
  const T dmean = in.of_image(args.dmean), dcov = in.of_image(args.dcov);
  const T gamma = in.of_channel(args.weight), beta = in.of_channel(args.bias), dgamma = in.of_channel(args.dweight);
  __syncthreads();
  T part_q = 0, part_qx = 0, part_dq = 0, part_dqx = 0;
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const int cell = in.cell(i);
    if (cell < 0) continue;
    const T x = (z.at(i) - mean) * rstd;
    const T dx = rstd * (dz.at(i) - dmean - x * dcov);
    const T q = zero_unless_positive(gamma * x + beta, grad_y.at(cell) / 4);
    const T dq = args.dgrad_y ? zero_unless_positive(gamma * x + beta, dgrad_y.at(cell) / 4) : T(0);
    part_q += q;
    part_qx += q * x;
    part_dq += dq;
    part_dqx += dq * x + q * dx;
  }
  const T sum_q = in.sum(part_q), sum_qx = in.sum(part_qx), sum_dq = in.sum(part_dq), sum_dqx = in.sum(part_dqx);
  if (!in.valid()) return;
  if (in.lane == 0) {
    args.dgrad_bias[in.statistic()] = sum_dq;
    args.dgrad_weight[in.statistic()] = sum_dqx;
  }
  const T mean_q = in.mean(sum_q), p = in.mean(sum_qx), mean_dq = in.mean(sum_dq), dp = in.mean(sum_dqx);
  const T along_e = dgamma * rstd - gamma * rstd * rstd * dcov, along_de = gamma * rstd;
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const int cell = in.cell(i);
    const T x = (z.at(i) - mean) * rstd;
    const T dx = rstd * (dz.at(i) - dmean - x * dcov);
    const T gate = gamma * x + beta;
    const T q = cell < 0 ? T(0) : zero_unless_positive(gate, grad_y.at(cell) / 4);
    const T dq = cell < 0 || !args.dgrad_y ? T(0) : zero_unless_positive(gate, dgrad_y.at(cell) / 4);
    args.dgrad_z[in.output(i, in.pixels)] =
        M(along_e * (q - mean_q - x * p) + along_de * (dq - mean_dq - dx * p - x * dp));
  }
}

// Channels of a block, a power of two: no more than there are or than kWidestTile, and no fewer than fill a memory
// sector of 32 bytes, for then more would be read than is used.
template <typename M>
int widest_tile(const InstanceShape& shape) {
  int tile = 32 / static_cast<int>(sizeof(M));
  while (tile < kWidestTile && tile < shape.C) tile *= 2;
  return tile;
}

// `full` and `pooled`: how many tensors of either size the kernel reads. `shared_limit`: what a block of this device
// may ask for (cudaDevAttrMaxSharedMemoryPerBlockOptin). The widest tile whose inputs fit is staged, for long rows of
// neighbouring addresses; where none fits, none is.
template <typename M, typename Args>
cudaError_t launch_tiled(void (*staged)(Args, int), void (*unstaged)(Args, int), const Args& args, int full, int pooled,
                         size_t shared_limit, cudaStream_t stream) {
  const InstanceShape& shape = args.shape;
  const int64_t per_channel = full * shape.pixels() + pooled * shape.pooled_height() * shape.pooled_width();
  const auto bytes = [&](int64_t elements) { return kPoolThreads * sizeof(Real<M>) + elements * sizeof(M); };
  const int widest = widest_tile<M>(shape);
  int tile = widest;
  while (tile * sizeof(M) >= 32 && bytes(per_channel * tile) > shared_limit) tile /= 2;
  const bool fits = tile * sizeof(M) >= 32;
  if (!fits) tile = widest;
  const int64_t blocks = shape.N * ((shape.C + tile - 1) / tile);
  return launch(fits ? staged : unstaged, blocks, kPoolThreads, bytes(fits ? per_channel * tile : 0), stream, args,
                tile);
}

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolArgs<M>& args, size_t shared_limit, cudaStream_t stream) {
  return launch_tiled<M>(norm_relu_pool_kernel<M, true>, norm_relu_pool_kernel<M, false>, args, 1, 0, shared_limit,
                         stream);
}

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardArgs<M>& args, size_t shared_limit, cudaStream_t stream) {
  return launch_tiled<M>(norm_relu_pool_backward_kernel<M, true>, norm_relu_pool_backward_kernel<M, false>, args, 1, 1,
                         shared_limit, stream);
}

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolJvpArgs<M>& args, size_t shared_limit, cudaStream_t stream) {
  return launch_tiled<M>(norm_relu_pool_jvp_kernel<M, true>, norm_relu_pool_jvp_kernel<M, false>, args, 2, 0,
                         shared_limit, stream);
}

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardJvpArgs<M>& args, size_t shared_limit,
                                  cudaStream_t stream) {
  return launch_tiled<M>(norm_relu_pool_backward_jvp_kernel<M, true>, norm_relu_pool_backward_jvp_kernel<M, false>,
                         args, 2, args.dgrad_y ? 2 : 1, shared_limit, stream);
}

}  // namespace ddfast
