// CPU kernels of param_distance: both squared distances in one pass, all gradients in one more.
//
// A task is one chunk of one row; partial sums do not depend on how tasks are spread over threads.
#pragma once

#include "../common/simd.h"
#include "args.h"

namespace ddfast {

constexpr int64_t kDistanceChunk = 4096;  // elements of a task: short enough that float sums stay accurate

inline int64_t distance_chunks(int64_t P) { return (P + kDistanceChunk - 1) / kDistanceChunk; }

template <typename T, int kBytes>
struct ParamDistance {
  static DDFAST_INLINE void run(const ParamDistanceArgs<T>& args, int64_t begin, int64_t end) {
    const int64_t chunks = distance_chunks(args.P);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = (task % chunks) * kDistanceChunk;
      const int64_t row = (task / chunks) * args.P;
      const int64_t last = first + kDistanceChunk < args.P ? first + kDistanceChunk : args.P;
      sum(args, row, first, last, args.partial + 2 * task);
    }
  }

 private:
  using B = Block<T, kBytes>;
  static constexpr int kLanes = kBlockLanes<T>;

  template <bool kFull>
  static DDFAST_INLINE void add(const ParamDistanceArgs<T>& args, int64_t row, int64_t i, int lanes, B& num, B& den) {
    const B target = B::template load<kFull>(args.target + row + i, lanes);
    const B a = B::template load<kFull>(args.student + row + i, lanes) - target;
    const B b = B::template load<kFull>(args.start + row + i, lanes) - target;
    if (args.weight) {
      const B w = B::template load<kFull>(args.weight + i, lanes);
      num += w * (a * a);
      den += w * (b * b);
    } else {
      num += a * a;
      den += b * b;
    }
  }

  static DDFAST_INLINE void sum(const ParamDistanceArgs<T>& args, int64_t row, int64_t first, int64_t last,
                                double* out) {
    B num[2] = {B::fill(T(0)), B::fill(T(0))};  // two chains each, so that additions overlap
    B den[2] = {B::fill(T(0)), B::fill(T(0))};
    int64_t i = first;
    for (; i + 2 * kLanes <= last; i += 2 * kLanes) {
      add<true>(args, row, i, kLanes, num[0], den[0]);
      add<true>(args, row, i + kLanes, kLanes, num[1], den[1]);
    }
    for (; i + kLanes <= last; i += kLanes) add<true>(args, row, i, kLanes, num[0], den[0]);
    if (i < last) add<false>(args, row, i, static_cast<int>(last - i), num[0], den[0]);
    const B n = num[0] + num[1], d = den[0] + den[1];
    out[0] = out[1] = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      out[0] += n.lane(lane);
      out[1] += d.lane(lane);
    }
  }
};

// Adds the chunks of every row, in order.
template <typename T>
void finish_param_distance(const ParamDistanceArgs<T>& args) {
  const int64_t chunks = distance_chunks(args.P);
  for (int64_t s = 0; s < args.S; ++s) {
    double numerator = 0, denominator = 0;
    for (int64_t i = s * chunks; i < (s + 1) * chunks; ++i) {
      numerator += args.partial[2 * i];
      denominator += args.partial[2 * i + 1];
    }
    args.distance[s] = static_cast<T>(numerator / denominator);
    args.denominator[s] = static_cast<T>(denominator);
  }
}

template <typename T, int kBytes>
struct ParamDistanceBackward {
  static DDFAST_INLINE void run(const ParamDistanceBackwardArgs<T>& args, int64_t begin, int64_t end) {
    const int64_t chunks = distance_chunks(args.P);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t s = task / chunks;
      const int64_t first = (task % chunks) * kDistanceChunk;
      const int64_t last = first + kDistanceChunk < args.P ? first + kDistanceChunk : args.P;
      // d = n / D:  dd/dstudent = 2 w (student - target) / D,  dd/dstart = -d 2 w (start - target) / D
      const T scale = 2 * args.grad[s] / args.denominator[s];
      const B along_student = B::fill(scale), along_start = B::fill(-scale * args.distance[s]);
      int64_t i = first;
      for (; i + kLanes <= last; i += kLanes) write<true>(args, s * args.P, i, kLanes, along_student, along_start);
      if (i < last) {
        write<false>(args, s * args.P, i, static_cast<int>(last - i), along_student, along_start);
      }
    }
  }

 private:
  using B = Block<T, kBytes>;
  static constexpr int kLanes = kBlockLanes<T>;

  template <bool kFull>
  static DDFAST_INLINE void write(const ParamDistanceBackwardArgs<T>& args, int64_t row, int64_t i, int lanes,
                                  const B& along_student, const B& along_start) {
    const B target = B::template load<kFull>(args.target + row + i, lanes);
    B a = along_student * (B::template load<kFull>(args.student + row + i, lanes) - target);
    B b = along_start * (B::template load<kFull>(args.start + row + i, lanes) - target);
    if (args.weight) {
      const B w = B::template load<kFull>(args.weight + i, lanes);
      a = w * a;
      b = w * b;
    }
    if (args.grad_student) a.template store<kFull>(args.grad_student + row + i, lanes);
    if (args.grad_start) b.template store<kFull>(args.grad_start + row + i, lanes);
    if (args.grad_target) (B::fill(T(0)) - a - b).template store<kFull>(args.grad_target + row + i, lanes);
  }
};

}  // namespace ddfast
