// The weight gradient of a 3x3 convolution with padding 1, on whichever device.
#pragma once

#include <ATen/core/Tensor.h>

namespace ddfast {

// corr(x, g) [groups·O, C, 3, 3] for x [B, groups·C, H, W] and g [B, groups·O, H, W].
at::Tensor conv_weight(const at::Tensor& g, const at::Tensor& x, const at::Tensor& w);

}  // namespace ddfast
