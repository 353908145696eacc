// conv3x3 by minimal filtering, on a CPU in float32.
#pragma once

#include "glue.h"

namespace ddfast {

// w [groups·O, C, 3, 3] as the kernels read it: for the forward, or the input gradient (transposed).
at::Tensor pack_tiles(const at::Tensor& w, int64_t groups, int64_t tile, bool transposed);

// The forward, or the input gradient (transposed); x2 and bias may be undefined.
at::Tensor by_tiles(const at::Tensor& x, const Filters& w, const at::Tensor& x2, const Filters& w2,
                    const at::Tensor& bias, int64_t groups, bool transposed);

// [groups·O, C, 3, 3]; g2 and x2 may be undefined.
at::Tensor weight_by_tiles(const at::Tensor& g, const at::Tensor& x, int64_t groups, int64_t tile, const at::Tensor& g2,
                           const at::Tensor& x2);

}  // namespace ddfast
