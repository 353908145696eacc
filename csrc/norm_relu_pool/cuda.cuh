// CUDA kernels of norm_relu_pool: instance norm, ReLU, 2x2 average pool; value, backward, jvp, backward of jvp.
//
// A block works on one image and a tile of neighbouring channels of channels-last memory; a thread on kVector channels,
// moved 16 bytes at a time where sizes and addresses allow, of pixels lane, lane + lanes, … Where the tile of all
// inputs fits in shared memory (kStaged) it is copied there asynchronously, all of it in flight at once, and read from
// device memory once; tiles are narrow enough for several blocks on a multiprocessor. Otherwise the same code reads
// device memory (mostly the L2 cache) once per pass. No loop divides. Every sum has one fixed order. Maps are of type
// M, also in shared memory, and computed with as T = Real<M>. The letters are those of the op's reference in
// ddfast/ops/norm_relu_pool.py.
#pragma once

#include "../common/packed.cuh"
#include "args.h"

namespace ddfast {

constexpr int kPoolThreads = 256;
constexpr int kWidestTile = 32;     // channels
constexpr int kSectorBytes = 32;    // of device memory: narrower tiles would read more than they use
constexpr int kResidentBlocks = 3;  // on a multiprocessor, where narrow tiles make room for them

template <typename T, int kVector>
struct Numbers {
  T of[kVector];

  __device__ T& operator[](int k) { return of[k]; }
  __device__ T operator[](int k) const { return of[k]; }
};

// One image's tile of one tensor, [pixels, channels], in shared or in device memory.
template <typename M, int kVector>
struct Tile {
  const M* data;
  int64_t stride;  // from pixel to pixel

  __device__ Numbers<Real<M>, kVector> at(int pixel) const {
    const Packed<M, kVector> packed = load_packed<kVector>(data + pixel * stride);
    Numbers<Real<M>, kVector> numbers;
    for (int k = 0; k < kVector; ++k) numbers[k] = packed.of[k];
    return numbers;
  }
};

// A thread's way over rows of so many places, without divisions but at its beginning.
struct Walk {
  int i, row, column;

  __device__ Walk(int first, int step, int width)
      : i(first),
        row(first / width),
        column(first % width),
        step_(step),
        rows_(step / width),
        columns_(step % width),
        width_(width) {}
  __device__ void next() {
    i += step_;
    row += rows_;
    column += columns_;
    if (column < width_) return;
    column -= width_;
    ++row;
  }

 private:
  int step_, rows_, columns_, width_;
};

template <typename M, int kVector, bool kStaged>
struct TiledInstance {
  using T = Real<M>;
  using V = Numbers<T, kVector>;
  int H, W, OH, OW;       // of one image
  int pixels, cells;      // H W, OH OW
  int tile, lane, lanes;  // channels of a block; this thread among those of its channels
  int64_t C, n, channel;  // the first of kVector; it may be ≥ C in the last tile: such a thread works, but neither
                          // loads nor stores
  T* sums;                // shared [threads, kVector]: room for the sums over a block
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
    const int columns = tile / kVector;
    n = blockIdx.x / tiles;
    channel = (blockIdx.x % tiles) * tile + threadIdx.x % columns * kVector;
    lane = threadIdx.x / columns;
    lanes = blockDim.x / columns;
    sums = shared_memory<T>();
    next = reinterpret_cast<M*>(sums + blockDim.x * kVector);
  }
  __device__ bool valid() const { return channel < C; }
  __device__ int64_t statistic() const { return n * C + channel; }
  __device__ V of_image(const T* values) const { return load(values + n * C); }  // [N, C]
  __device__ V of_channel(const T* values) const { return load(values); }        // [C]
  __device__ V load(const T* values) const {
    V numbers;
    for (int k = 0; k < kVector; ++k) numbers[k] = valid() ? values[channel + k] : T(0);
    return numbers;
  }
  __device__ void store(const V& numbers, T* values) const {  // [N, C]
    for (int k = 0; k < kVector; ++k) values[statistic() + k] = numbers[k];
  }

  // This image's tile of a channels-last tensor with `count` pixels, there after arrived().
  __device__ Tile<M, kVector> tile_of(const M* tensor, int count) {
    const M* from = tensor + n * count * C + (valid() ? channel : 0);
    if (!kStaged) return {from, C};
    M* to = next + threadIdx.x % (tile / kVector) * kVector;
    for (int i = lane; i < count; i += lanes) {
      if (valid()) {
        copy_async<sizeof(M) * kVector>(to + i * tile, from + i * C);
      } else {
        for (int k = 0; k < kVector; ++k) to[i * tile + k] = M(0);
      }
    }
    next += count * tile;
    return {to, tile};
  }
  __device__ void arrived() const {
    if (kStaged) wait_for_copies();
    __syncthreads();
  }
  // The sum of value over the threads of this thread's channels, known to all of them.
  __device__ V sum(const V& value) {
    T* own = sums + threadIdx.x * kVector;
    for (int k = 0; k < kVector; ++k) own[k] = value[k];
    __syncthreads();
    for (int half = lanes / 2; half > 0; half /= 2) {
      if (lane < half) {
        for (int k = 0; k < kVector; ++k) own[k] += own[half * tile + k];
      }
      __syncthreads();
    }
    V total;
    for (int k = 0; k < kVector; ++k) total[k] = sums[threadIdx.x % (tile / kVector) * kVector + k];
    __syncthreads();
    return total;
  }
  __device__ V mean(V total) const {
    for (int k = 0; k < kVector; ++k) total[k] /= static_cast<T>(pixels);
    return total;
  }
  __device__ Walk over_pixels() const { return Walk(lane, lanes, W); }
  __device__ Walk over_cells() const { return Walk(lane, lanes, OW); }
  // The pooled cell of a pixel, or -1 where an odd last row or column is not pooled.
  __device__ int cell(const Walk& pixel) const {
    const int oh = pixel.row >> 1, ow = pixel.column >> 1;
    return oh < OH && ow < OW ? oh * OW + ow : -1;
  }
  // Pixel k of the four of a pooled cell.
  __device__ int pixel(const Walk& cell, int k) const {
    return (2 * cell.row + (k >> 1)) * W + 2 * cell.column + (k & 1);
  }
  // Writes this thread's channels of a pixel of a channels-last tensor with `count` pixels.
  __device__ void write(const V& numbers, M* tensor, int pixel, int count) const {
    Packed<M, kVector> packed;
    for (int k = 0; k < kVector; ++k) packed.of[k] = M(numbers[k]);
    store_packed(packed, tensor + (n * count + pixel) * C + channel);
  }
};

template <typename T>
__device__ T zero_unless_positive(T gate, T value) {  // ReLU that, like PyTorch's, lets a NaN through
  return gate <= T(0) ? T(0) : value;
}

template <typename M, int kVector, bool kStaged>
__global__ void norm_relu_pool_kernel(NormReluPoolArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kVector, kStaged> in(args.shape, tile);
  using V = Numbers<T, kVector>;
  const Tile<M, kVector> z = in.tile_of(args.z, in.pixels);
  in.arrived();
  V part{};
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const V value = z.at(i);
    for (int k = 0; k < kVector; ++k) part[k] += value[k];
  }
  const V mean = in.mean(in.sum(part));
  part = V{};
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const V value = z.at(i);
    for (int k = 0; k < kVector; ++k) part[k] += (value[k] - mean[k]) * (value[k] - mean[k]);
  }
  V rstd = in.mean(in.sum(part));
  for (int k = 0; k < kVector; ++k) rstd[k] = T(1) / sqrt(rstd[k] + static_cast<T>(args.eps));
  if (!in.valid()) return;
  if (in.lane == 0) {
    in.store(mean, args.mean);
    in.store(rstd, args.rstd);
  }
  const V gamma = in.of_channel(args.weight), beta = in.of_channel(args.bias);
  for (Walk cell = in.over_cells(); cell.i < in.cells; cell.next()) {
    V total{};
    for (int corner = 0; corner < 4; ++corner) {
      const V value = z.at(in.pixel(cell, corner));
      for (int k = 0; k < kVector; ++k) {
        const T a = gamma[k] * ((value[k] - mean[k]) * rstd[k]) + beta[k];
        total[k] += zero_unless_positive(a, a);
      }
    }
    for (int k = 0; k < kVector; ++k) total[k] /= 4;
    in.write(total, args.y, cell.i, in.cells);
  }
}

template <typename M, int kVector, bool kStaged>
__global__ void norm_relu_pool_backward_kernel(NormReluPoolBackwardArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kVector, kStaged> in(args.shape, tile);
  using V = Numbers<T, kVector>;
  const Tile<M, kVector> z = in.tile_of(args.z, in.pixels);
  const Tile<M, kVector> grad_y = in.tile_of(args.grad_y, in.cells);
  const V mean = in.of_image(args.mean), rstd = in.of_image(args.rstd);
  const V gamma = in.of_channel(args.weight), beta = in.of_channel(args.bias);
  in.arrived();
  V part_q{}, part_qx{};
  for (Walk pixel = in.over_pixels(); pixel.i < in.pixels; pixel.next()) {
    const int cell = in.cell(pixel);
    if (cell < 0) continue;
    const V value = z.at(pixel.i), grad = grad_y.at(cell);
    for (int k = 0; k < kVector; ++k) {
      const T x = (value[k] - mean[k]) * rstd[k];
      const T q = zero_unless_positive(gamma[k] * x + beta[k], grad[k] / 4);
      part_q[k] += q;
      part_qx[k] += q * x;
    }
  }
  const V sum_q = in.sum(part_q), sum_qx = in.sum(part_qx);
  if (!in.valid()) return;
  if (in.lane == 0) {
    in.store(sum_q, args.grad_bias);
    in.store(sum_qx, args.grad_weight);
  }
  const V mean_q = in.mean(sum_q), p = in.mean(sum_qx);
  for (Walk pixel = in.over_pixels(); pixel.i < in.pixels; pixel.next()) {
    const int cell = in.cell(pixel);
    const V value = z.at(pixel.i), grad = cell < 0 ? V{} : grad_y.at(cell);
    V result;
    for (int k = 0; k < kVector; ++k) {
      const T x = (value[k] - mean[k]) * rstd[k];
      const T q = cell < 0 ? T(0) : zero_unless_positive(gamma[k] * x + beta[k], grad[k] / 4);
      result[k] = gamma[k] * rstd[k] * (q - mean_q[k] - x * p[k]);
    }
    in.write(result, args.grad_z, pixel.i, in.pixels);
  }
}

template <typename M, int kVector, bool kStaged>
__global__ void norm_relu_pool_jvp_kernel(NormReluPoolJvpArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kVector, kStaged> in(args.shape, tile);
  using V = Numbers<T, kVector>;
  const Tile<M, kVector> z = in.tile_of(args.z, in.pixels);
  const Tile<M, kVector> dz = in.tile_of(args.dz, in.pixels);
  const V mean = in.of_image(args.mean), rstd = in.of_image(args.rstd);
  in.arrived();
  V part{};
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const V tangent = dz.at(i);
    for (int k = 0; k < kVector; ++k) part[k] += tangent[k];
  }
  const V dmean = in.mean(in.sum(part));
  part = V{};  // about the mean: x̂ sums to 0, and dz need not be small
  for (int i = in.lane; i < in.pixels; i += in.lanes) {
    const V value = z.at(i), tangent = dz.at(i);
    for (int k = 0; k < kVector; ++k) part[k] += (value[k] - mean[k]) * rstd[k] * (tangent[k] - dmean[k]);
  }
  const V dcov = in.mean(in.sum(part));
  if (!in.valid()) return;
  if (in.lane == 0) {
    in.store(dmean, args.dmean);
    in.store(dcov, args.dcov);
  }
  const V gamma = in.of_channel(args.weight), beta = in.of_channel(args.bias);
  const V dgamma = in.of_channel(args.dweight), dbeta = in.of_channel(args.dbias);
  for (Walk cell = in.over_cells(); cell.i < in.cells; cell.next()) {
    V total{};
    for (int corner = 0; corner < 4; ++corner) {
      const int i = in.pixel(cell, corner);
      const V value = z.at(i), tangent = dz.at(i);
      for (int k = 0; k < kVector; ++k) {
        const T x = (value[k] - mean[k]) * rstd[k];
        const T dx = rstd[k] * (tangent[k] - dmean[k] - x * dcov[k]);
        total[k] += zero_unless_positive(gamma[k] * x + beta[k], dgamma[k] * x + gamma[k] * dx + dbeta[k]);
      }
    }
    for (int k = 0; k < kVector; ++k) total[k] /= 4;
    in.write(total, args.dy, cell.i, in.cells);
  }
}

template <typename M, int kVector, bool kStaged>
__global__ void norm_relu_pool_backward_jvp_kernel(NormReluPoolBackwardJvpArgs<M> args, int tile) {
  using T = Real<M>;
  TiledInstance<M, kVector, kStaged> in(args.shape, tile);
  using V = Numbers<T, kVector>;
  const Tile<M, kVector> z = in.tile_of(args.z, in.pixels);
  const Tile<M, kVector> dz = in.tile_of(args.dz, in.pixels);
  const Tile<M, kVector> grad_y = in.tile_of(args.grad_y, in.cells);
  Tile<M, kVector> dgrad_y{};
  if (args.dgrad_y) dgrad_y = in.tile_of(args.dgrad_y, in.cells);
  const V mean = in.of_image(args.mean), rstd = in.of_image(args.rstd);
  const V dmean = in.of_image(args.dmean), dcov = in.of_image(args.dcov);
  const V gamma = in.of_channel(args.weight), beta = in.of_channel(args.bias), dgamma = in.of_channel(args.dweight);
  in.arrived();
  V part_q{}, part_qx{}, part_dq{}, part_dqx{};
  for (Walk pixel = in.over_pixels(); pixel.i < in.pixels; pixel.next()) {
    const int cell = in.cell(pixel);
    if (cell < 0) continue;
    const V value = z.at(pixel.i), tangent = dz.at(pixel.i), grad = grad_y.at(cell);
    const V dgrad = args.dgrad_y ? dgrad_y.at(cell) : V{};
    for (int k = 0; k < kVector; ++k) {
      const T x = (value[k] - mean[k]) * rstd[k];
      const T dx = rstd[k] * (tangent[k] - dmean[k] - x * dcov[k]);
      const T q = zero_unless_positive(gamma[k] * x + beta[k], grad[k] / 4);
      const T dq = args.dgrad_y ? zero_unless_positive(gamma[k] * x + beta[k], dgrad[k] / 4) : T(0);
      part_q[k] += q;
      part_qx[k] += q * x;
      part_dq[k] += dq;
      part_dqx[k] += dq * x + q * dx;
    }
  }
  const V sum_q = in.sum(part_q), sum_qx = in.sum(part_qx), sum_dq = in.sum(part_dq), sum_dqx = in.sum(part_dqx);
  if (!in.valid()) return;
  if (in.lane == 0) {
    in.store(sum_dq, args.dgrad_bias);
    in.store(sum_dqx, args.dgrad_weight);
  }
  const V mean_q = in.mean(sum_q), p = in.mean(sum_qx), mean_dq = in.mean(sum_dq), dp = in.mean(sum_dqx);
  for (Walk pixel = in.over_pixels(); pixel.i < in.pixels; pixel.next()) {
    const int cell = in.cell(pixel);
    const V value = z.at(pixel.i), tangent = dz.at(pixel.i), grad = cell < 0 ? V{} : grad_y.at(cell);
    const V dgrad = cell < 0 || !args.dgrad_y ? V{} : dgrad_y.at(cell);
    V result;
    for (int k = 0; k < kVector; ++k) {
      const T x = (value[k] - mean[k]) * rstd[k];
      const T dx = rstd[k] * (tangent[k] - dmean[k] - x * dcov[k]);
      const T gate = gamma[k] * x + beta[k];
      const T q = cell < 0 ? T(0) : zero_unless_positive(gate, grad[k] / 4);
      const T dq = cell < 0 || !args.dgrad_y ? T(0) : zero_unless_positive(gate, dgrad[k] / 4);
      const T along_de = gamma[k] * rstd[k], along_e = dgamma[k] * rstd[k] - along_de * rstd[k] * dcov[k];
      result[k] = along_e * (q - mean_q[k] - x * p[k]) + along_de * (dq - mean_dq[k] - dx * p[k] - x * dp[k]);
    }
    in.write(result, args.dgrad_z, pixel.i, in.pixels);
  }
}
}  // namespace ddfast
