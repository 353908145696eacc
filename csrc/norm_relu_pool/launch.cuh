// How the CUDA kernels of norm_relu_pool are launched: vectors where addresses allow, tiles that fit in shared memory.
#pragma once

#include <initializer_list>

#include "cuda.cuh"

namespace ddfast {

// How the maps of a launch are read: `full` and `pooled` tensors of either size, at these addresses.
struct PoolMaps {
  int full, pooled;
  std::initializer_list<const void*> addresses;
};

// Channels of a thread: of bfloat16 half of what a load could be, for registers.
template <typename M>
constexpr int pool_vector = sizeof(M) < 4 ? 4 : kVectorBytes / static_cast<int>(sizeof(M));

// Channels of a block, a power of two and at least what fills a sector: the widest with which kResidentBlocks fit on a
// multiprocessor, else the narrowest. `staged` is false where not even that fits in the shared memory that a block of
// this device may ask for, `shared_limit` (cudaDevAttrMaxSharedMemoryPerBlockOptin).
struct PoolTiling {
  int tile;
  bool staged;
  size_t shared_bytes;

  template <typename M>
  static PoolTiling of(const InstanceShape& shape, const PoolMaps& maps, int vector, size_t shared_limit) {
    const size_t per_channel =
        (maps.full * shape.pixels() + maps.pooled * shape.pooled_height() * shape.pooled_width()) * sizeof(M);
    const size_t sums = kPoolThreads * sizeof(Real<M>) * vector;
    const int narrowest = kSectorBytes / static_cast<int>(sizeof(M));
    int widest = narrowest;
    while (widest < kWidestTile && widest < shape.C) widest *= 2;
    int tile = widest;
    while (tile > narrowest && kResidentBlocks * (sums + tile * per_channel) > shared_limit) tile /= 2;
    if (sums + tile * per_channel <= shared_limit) return {tile, true, sums + tile * per_channel};
    return {widest, false, sums};
  }
};

template <typename M, int kVector, typename Args>
cudaError_t launch_tiled(void (*staged)(Args, int), void (*unstaged)(Args, int), const Args& args, const PoolMaps& maps,
                         size_t shared_limit, cudaStream_t stream) {
  const PoolTiling tiling = PoolTiling::of<M>(args.shape, maps, kVector, shared_limit);
  const int64_t blocks = args.shape.N * ((args.shape.C + tiling.tile - 1) / tiling.tile);
  return launch(tiling.staged ? staged : unstaged, blocks, kPoolThreads, tiling.shared_bytes, stream, args,
                tiling.tile);
}

#define DDFAST_LAUNCH_POOL(kernel, ...)                                                                            \
  const PoolMaps maps __VA_ARGS__;                                                                                 \
  constexpr int kVector = pool_vector<M>;                                                                          \
  if (args.shape.C % kVector == 0 && are_aligned(maps.addresses)) {                                                \
    return launch_tiled<M, kVector>(kernel<M, kVector, true>, kernel<M, kVector, false>, args, maps, shared_limit, \
                                    stream);                                                                       \
  }                                                                                                                \
  return launch_tiled<M, 1>(kernel<M, 1, true>, kernel<M, 1, false>, args, maps, shared_limit, stream)

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolArgs<M>& args, size_t shared_limit, cudaStream_t stream) {
  DDFAST_LAUNCH_POOL(norm_relu_pool_kernel, {1, 0, {args.z, args.y}});
}

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardArgs<M>& args, size_t shared_limit, cudaStream_t stream) {
  DDFAST_LAUNCH_POOL(norm_relu_pool_backward_kernel, {1, 1, {args.z, args.grad_y, args.grad_z}});
}

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolJvpArgs<M>& args, size_t shared_limit, cudaStream_t stream) {
  DDFAST_LAUNCH_POOL(norm_relu_pool_jvp_kernel, {2, 0, {args.z, args.dz, args.dy}});
}

template <typename M>
cudaError_t launch_norm_relu_pool(const NormReluPoolBackwardJvpArgs<M>& args, size_t shared_limit,
                                  cudaStream_t stream) {
  DDFAST_LAUNCH_POOL(norm_relu_pool_backward_jvp_kernel,
                     {2, args.dgrad_y ? 2 : 1, {args.z, args.dz, args.grad_y, args.dgrad_y, args.dgrad_z}});
}

#undef DDFAST_LAUNCH_POOL

}  // namespace ddfast
