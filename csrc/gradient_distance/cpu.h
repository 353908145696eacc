// CPU kernels of gradient_distance: the sums of all rows in one pass, both gradients in one more.
//
// A task is one chunk of one row of one student, of the layers that args hold; partial sums do not depend on how tasks
// are spread over threads.
#pragma once

#include "../common/simd.h"
#include "args.h"

namespace ddfast {

template <typename T, int kBytes>
struct GradientDistance {
  static DDFAST_INLINE void run(const GradientDistanceArgs<T>& args, int64_t begin, int64_t end) {
    const int64_t here = tasks_of(args.layers);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t s = task / here, of_student = args.layers.of[0].first_task + task % here;
      const GradientTask at = GradientTask::of(args.layers, of_student);
      sum(args.kind, args.g + s * args.P + at.begin, args.h + s * args.P + at.begin, at.count,
          args.partial + kGradientSums * (s * args.tasks + of_student));
    }
  }

 private:
  using B = Block<T, kBytes>;
  static constexpr int kLanes = kBlockLanes<T>;

  template <bool kFull>
  static DDFAST_INLINE void add(GradientDistanceKind kind, const T* g, const T* h, int lanes, B& dot, B& gg, B& hh) {
    const B a = B::template load<kFull>(g, lanes), b = B::template load<kFull>(h, lanes);
    if (kind == GradientDistanceKind::cosine) {
      dot += a * b;
      gg += a * a;
      hh += b * b;
    } else if (kind == GradientDistanceKind::squared) {
      dot += (a - b) * (a - b);
    } else {
      dot += B::where_positive(a - b, a - b) + B::where_positive(b - a, b - a);
    }
  }

  static DDFAST_INLINE void sum(GradientDistanceKind kind, const T* g, const T* h, int64_t count, double* out) {
    B dot = B::fill(T(0)), gg = B::fill(T(0)), hh = B::fill(T(0));
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) add<true>(kind, g + i, h + i, kLanes, dot, gg, hh);
    if (i < count) add<false>(kind, g + i, h + i, static_cast<int>(count - i), dot, gg, hh);
    out[0] = out[1] = out[2] = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      out[0] += dot.lane(lane);
      out[1] += gg.lane(lane);
      out[2] += hh.lane(lane);
    }
  }
};

// Adds the chunks of every row of these layers, in order.
template <typename T>
void finish_gradient_rows(const GradientDistanceArgs<T>& args) {
  for (int64_t s = 0; s < args.S; ++s) {
    const double* partial = args.partial + kGradientSums * s * args.tasks;
    for (int64_t l = 0; l < args.layers.count; ++l) {
      const GradientLayer& layer = args.layers.of[l];
      for (int64_t row = layer.first_row; row < layer.first_row + layer.rows; ++row) {
        const int64_t at = s * args.rows + row;
        args.row_distance[at] = finish_gradient_row(args.kind, layer, row, partial, args.sums + kGradientSums * at);
      }
    }
  }
}

// Adds the rows of every student, in order.
template <typename T>
void finish_gradient_distance(const GradientDistanceArgs<T>& args) {
  for (int64_t s = 0; s < args.S; ++s) {
    double total = 0;
    for (int64_t row = 0; row < args.rows; ++row) total += args.row_distance[s * args.rows + row];
    args.distance[s] = static_cast<T>(total);
  }
}

template <typename T, int kBytes>
struct GradientDistanceBackward {
  static DDFAST_INLINE void run(const GradientDistanceBackwardArgs<T>& args, int64_t begin, int64_t end) {
    const int64_t here = tasks_of(args.layers);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t s = task / here;
      const GradientTask at = GradientTask::of(args.layers, args.layers.of[0].first_task + task % here);
      const GradientRow row = GradientRow::of(args.sums + kGradientSums * (s * args.rows + at.row));
      const int64_t first = s * args.P + at.begin;
      int64_t i = first;
      for (; i + kLanes <= first + at.count; i += kLanes) write<true>(args, row, args.grad[s], i, kLanes);
      if (i < first + at.count) {
        write<false>(args, row, args.grad[s], i, static_cast<int>(first + at.count - i));
      }
    }
  }

 private:
  using B = Block<T, kBytes>;
  static constexpr int kLanes = kBlockLanes<T>;

  template <bool kFull>
  static DDFAST_INLINE void write(const GradientDistanceBackwardArgs<T>& args, const GradientRow& row, T grad,
                                  int64_t i, int lanes) {
    const B a = B::template load<kFull>(args.g + i, lanes), b = B::template load<kFull>(args.h + i, lanes);
    B by_a, by_b;
    if (args.kind == GradientDistanceKind::cosine) {
      by_a = B::fill(grad * static_cast<T>(row.aa)) * a + B::fill(grad * static_cast<T>(row.ab)) * b;
      by_b = B::fill(grad * static_cast<T>(row.ab)) * a + B::fill(grad * static_cast<T>(row.bb)) * b;
    } else {
      const B one = B::fill(grad);
      by_a = args.kind == GradientDistanceKind::squared ? B::fill(2 * grad) * (a - b)
                                                        : B::where_positive(a - b, one) - B::where_positive(b - a, one);
      by_b = B::fill(T(0)) - by_a;
    }
    if (args.grad_g) by_a.template store<kFull>(args.grad_g + i, lanes);
    if (args.grad_h) by_b.template store<kFull>(args.grad_h + i, lanes);
  }
};

}  // namespace ddfast
