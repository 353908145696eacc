// How the CPU kernels of norm_relu_pool go over maps: groups of adjacent blocks of channels of one image, pixel by
// pixel.
#pragma once

#include <algorithm>

#include "../common/simd.h"
#include "args.h"

namespace ddfast {

template <typename M>
constexpr int kChannels = kBlockLanes<Real<M>>;  // of one block

template <typename M>
int64_t channel_blocks(const InstanceShape& shape) {
  return (shape.C + kChannels<M> - 1) / kChannels<M>;
}

template <typename M>
int64_t norm_relu_pool_tasks(const InstanceShape& shape) {
  return shape.N * channel_blocks<M>(shape);
}

constexpr int64_t kGroup = 8;  // tasks that are walked together, at most

template <typename B>
DDFAST_INLINE void clear(B (&sums)[kGroup]) {
  for (B& sum : sums) sum = sum.fill(0);
}

// What one group of tasks works on. Offsets of its first channel: row(h) in a full-size tensor, pooled_row(oh) in a
// pooled one.
template <typename M, int kBytes, bool kFull>
struct Group {
  using T = Real<M>;
  using B = Block<T, kBytes>;
  InstanceShape shape;
  int64_t n, channel;
  int blocks, lanes;

  DDFAST_INLINE Group(const InstanceShape& shape_, int64_t task, int64_t blocks_)
      : shape(shape_), blocks(static_cast<int>(blocks_)) {
    n = task / channel_blocks<M>(shape);
    channel = (task % channel_blocks<M>(shape)) * kChannels<M>;
    lanes = kFull ? kChannels<M> : static_cast<int>(shape.C - channel);
  }
  DDFAST_INLINE int64_t row(int64_t h) const { return (n * shape.H + h) * shape.W * shape.C + channel; }
  DDFAST_INLINE int64_t pooled_row(int64_t oh) const {
    return (n * shape.pooled_height() + oh) * shape.pooled_width() * shape.C + channel;
  }
  DDFAST_INLINE int64_t statistic() const { return n * shape.C + channel; }
  // Of a map, or of what there is per channel: `Element` is M or T.
  template <typename Element>
  DDFAST_INLINE B load(const Element* from, int64_t offset, int block) const {
    return B::template load<kFull>(from + offset + block * kChannels<M>, lanes);
  }
  template <typename Element>
  DDFAST_INLINE void store(const B& values, Element* to, int64_t offset, int block) const {
    values.template store<kFull>(to + offset + block * kChannels<M>, lanes);
  }
  DDFAST_INLINE B mean_of(const B& sum) const { return sum * B::fill(T(1) / static_cast<T>(shape.pixels())); }
};

// Runs Face::walk on the tasks of the range in groups; the last block of an image, where only some lanes are channels,
// is a group of its own.
template <template <typename, int> class Face, typename M, int kBytes, typename Args>
DDFAST_INLINE void run_groups(const Args& args, int64_t begin, int64_t end) {
  const int64_t blocks = channel_blocks<M>(args.shape), full = args.shape.C / kChannels<M>;
  for (int64_t task = begin; task < end;) {
    const int64_t left = std::min(full - task % blocks, end - task), together = std::min(left, kGroup);
    if (together > 0) {
      Face<M, kBytes>::walk(args, Group<M, kBytes, true>(args.shape, task, together));
      task += together;
    } else {
      Face<M, kBytes>::walk(args, Group<M, kBytes, false>(args.shape, task++, 1));
    }
  }
}

}  // namespace ddfast
