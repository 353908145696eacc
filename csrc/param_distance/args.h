// What the kernels of param_distance read and write, on either device.
#pragma once

#include <cstdint>

namespace ddfast {

template <typename T>
struct ParamDistanceArgs {
  int64_t S, P;
  const T* student;  // [S, P]
  const T* target;   // [S, P]
  const T* start;    // [S, P]
  const T* weight;   // [P] or nullptr
  double* partial;   // [S, chunks, 2]: sum of w (student - target)^2, of w (start - target)^2
  T* distance;       // [S]
  T* denominator;    // [S]
};

template <typename T>
struct ParamDistanceBackwardArgs {
  int64_t S, P;
  const T* grad;         // [S]
  const T* student;      // [S, P]
  const T* target;       // [S, P]
  const T* start;        // [S, P]
  const T* weight;       // [P] or nullptr
  const T* distance;     // [S]
  const T* denominator;  // [S]
  T* grad_student;       // [S, P] or nullptr where not asked for
  T* grad_target;        // [S, P] or nullptr
  T* grad_start;         // [S, P] or nullptr
};

}  // namespace ddfast
