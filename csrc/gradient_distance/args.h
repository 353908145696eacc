// What the kernels of gradient_distance read and write, on either device.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace ddfast {

enum class GradientDistanceKind : int64_t { cosine, squared, absolute };

constexpr int64_t kGradientChunk = 4096;   // elements of a task: a row is cut into as many as it needs
constexpr double kGradientEpsilon = 1e-6;  // added to products of norms
constexpr int kGradientSums = 3;           // of a row: cosine a·b, a·a, b·b; else the distance alone
constexpr int kGradientLayersAtOnce = 64;  // of a kernel's arguments, which are to fit into 4 KiB

struct GradientLayer {  // rows of weights, one after another
  int64_t offset;       // of its first number in P
  int64_t rows, length;
  int64_t first_task, first_row;  // among all tasks and rows of the layers before it

  DDFAST_HOST_DEVICE int64_t chunks() const { return (length + kGradientChunk - 1) / kGradientChunk; }
  DDFAST_HOST_DEVICE int64_t tasks() const { return rows * chunks(); }
};

struct GradientLayers {  // by value, so that nothing is copied to a device
  int64_t count;
  GradientLayer of[kGradientLayersAtOnce];
};

// The tasks and rows of the layers of one launch.
DDFAST_HOST_DEVICE inline int64_t tasks_of(const GradientLayers& layers) {
  const GradientLayer& last = layers.of[layers.count - 1];
  return last.first_task + last.tasks() - layers.of[0].first_task;
}
DDFAST_HOST_DEVICE inline int64_t rows_of(const GradientLayers& layers) {
  const GradientLayer& last = layers.of[layers.count - 1];
  return last.first_row + last.rows - layers.of[0].first_row;
}

// Which layer a row is of.
DDFAST_HOST_DEVICE inline const GradientLayer& layer_of_row(const GradientLayers& layers, int64_t row) {
  int64_t l = 0;
  while (l + 1 < layers.count && layers.of[l + 1].first_row <= row) ++l;
  return layers.of[l];
}

struct GradientTask {
  int64_t begin, count;  // its numbers in P
  int64_t row, chunk;    // chunk 0 is the first of its row

  DDFAST_HOST_DEVICE static GradientTask of(const GradientLayers& layers, int64_t task) {
    int64_t l = 0;
    while (l + 1 < layers.count && layers.of[l + 1].first_task <= task) ++l;
    const GradientLayer& layer = layers.of[l];
    const int64_t within = task - layer.first_task, row = within / layer.chunks(), chunk = within % layer.chunks();
    const int64_t first = chunk * kGradientChunk, left = layer.length - first;
    return {layer.offset + row * layer.length + first, left < kGradientChunk ? left : kGradientChunk,
            layer.first_row + row, chunk};
  }
};

template <typename T>
struct GradientDistanceArgs {
  int64_t S, P, rows, tasks;  // R and tasks of all layers
  GradientDistanceKind kind;
  GradientLayers layers;  // some of them
  const T* g;             // [S, P]
  const T* h;             // [S, P]
  double* partial;        // [S, tasks, 3]
  double* row_distance;   // [S, R]
  double* sums;           // [S, R, 3]
  T* distance;            // [S]
};

template <typename T>
struct GradientDistanceBackwardArgs {
  int64_t S, P, rows, tasks;
  GradientDistanceKind kind;
  GradientLayers layers;
  const T* grad;       // [S]
  const T* g;          // [S, P]
  const T* h;          // [S, P]
  const double* sums;  // [S, R, 3]
  T* grad_g;           // [S, P] or nullptr where not asked for
  T* grad_h;           // [S, P] or nullptr
};

// The distance of a row by its sums, and how the gradients in a and b follow from a and b:
// by a: aa a + ab b,  by b: ab a + bb b, of which cosine has all.
struct GradientRow {
  double distance, aa, ab, bb;

  DDFAST_HOST_DEVICE static GradientRow of(const double* sums) {
    const double dot = sums[0], norm_a = std::sqrt(sums[1]), norm_b = std::sqrt(sums[2]);
    const double q = norm_a * norm_b + kGradientEpsilon;
    const double slope = dot / (q * q);
    return {1 - dot / q, norm_a > 0 ? slope * norm_b / norm_a : 0 * norm_a, -1 / q,
            norm_b > 0 ? slope * norm_a / norm_b : 0 * norm_b};
  }
};

// Adds the partial sums of a row, in order; writes them, and returns its distance.
DDFAST_HOST_DEVICE inline double finish_gradient_row(GradientDistanceKind kind, const GradientLayer& layer, int64_t row,
                                                     const double* partial /* [tasks, 3] */, double* sums /* [3] */) {
  double total[kGradientSums] = {0, 0, 0};
  const int64_t first = layer.first_task + (row - layer.first_row) * layer.chunks();
  for (int64_t task = first; task < first + layer.chunks(); ++task) {
    for (int i = 0; i < kGradientSums; ++i) total[i] += partial[task * kGradientSums + i];
  }
  for (int i = 0; i < kGradientSums; ++i) sums[i] = total[i];
  return kind == GradientDistanceKind::cosine ? GradientRow::of(total).distance : total[0];
}

}  // namespace ddfast
