// 3x3 convolutions with padding 1 without a transform, on whichever device and in whichever type.
#pragma once

#include <ATen/core/Tensor.h>

namespace ddfast {

// x ∗ w, and a bias [groups·O]: [B, groups·O, H, W], channels-last, for x [B, groups·C, H, W] and w [groups·O, C, 3,
// 3].
at::Tensor direct_forward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias = {});

// Its transpose, like x, for g [B, groups·O, H, W].
at::Tensor direct_input(const at::Tensor& g, const at::Tensor& x, const at::Tensor& w);

// corr(x, g) [groups·O, C, 3, 3].
at::Tensor direct_weight(const at::Tensor& g, const at::Tensor& x, int64_t groups);

}  // namespace ddfast
