// What the kernels of norm_relu_pool read and write, on either device: pointers into channels-last memory.
//
// z is [N, H, W, C] in memory, y is [N, OH, OW, C] with OH = H / 2, OW = W / 2 (an odd last row or column is normalised
// over, and not pooled). Gradients of weight and bias come one row per image, and are summed by the caller. Maps are of
// type M: float, double, or bfloat16; everything else is of the type that is computed in, T = Real<M>.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"

namespace ddfast {

struct InstanceShape {
  int64_t N, C, H, W;

  DDFAST_HOST_DEVICE int64_t pixels() const { return H * W; }
  DDFAST_HOST_DEVICE int64_t pooled_height() const { return H / 2; }
  DDFAST_HOST_DEVICE int64_t pooled_width() const { return W / 2; }
};

// z -> y, mean, rstd
template <typename M>
struct NormReluPoolArgs {
  using T = Real<M>;
  InstanceShape shape;
  const M* z;       // [N, H, W, C]
  const T* weight;  // [C]
  const T* bias;    // [C]
  double eps;
  M* y;     // [N, OH, OW, C]
  T* mean;  // [N, C]
  T* rstd;  // [N, C]
};

// grad_y -> grad_z, grad_weight, grad_bias
template <typename M>
struct NormReluPoolBackwardArgs {
  using T = Real<M>;
  InstanceShape shape;
  const M* grad_y;  // [N, OH, OW, C]
  const M* z;       // [N, H, W, C]
  const T* mean;    // [N, C]
  const T* rstd;    // [N, C]
  const T* weight;  // [C]
  const T* bias;    // [C]
  M* grad_z;        // [N, H, W, C]
  T* grad_weight;   // [N, C]
  T* grad_bias;     // [N, C]
};

// tangents of z, weight, bias -> tangent of y; also mean of dz and mean of x̂ dz, which backward_jvp wants
template <typename M>
struct NormReluPoolJvpArgs {
  using T = Real<M>;
  InstanceShape shape;
  const M* dz;       // [N, H, W, C]
  const T* dweight;  // [C]
  const T* dbias;    // [C]
  const M* z;        // [N, H, W, C]
  const T* mean;     // [N, C]
  const T* rstd;     // [N, C]
  const T* weight;   // [C]
  const T* bias;     // [C]
  M* dy;             // [N, OH, OW, C]
  T* dmean;          // [N, C]
  T* dcov;           // [N, C]
};

// tangents of grad_y, z, weight, bias -> tangents of grad_z, grad_weight, grad_bias
template <typename M>
struct NormReluPoolBackwardJvpArgs {
  using T = Real<M>;
  InstanceShape shape;
  const M* grad_y;   // [N, OH, OW, C]
  const M* dgrad_y;  // [N, OH, OW, C] or nullptr for zero
  const M* z;        // [N, H, W, C]
  const M* dz;       // [N, H, W, C]
  const T* mean;     // [N, C]
  const T* rstd;     // [N, C]
  const T* dmean;    // [N, C]
  const T* dcov;     // [N, C]
  const T* weight;   // [C]
  const T* dweight;  // [C]
  const T* bias;     // [C]
  M* dgrad_z;        // [N, H, W, C]
  T* dgrad_weight;   // [N, C]
  T* dgrad_bias;     // [N, C]
};

}  // namespace ddfast
