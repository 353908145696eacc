// conv3x3 by minimal filtering, on a CPU in float32.
#pragma once

#include <vector>

#include "glue.h"

namespace ddfast {

// z += maps[x] ∗ filters[w], or its transpose, for each product; those of one x after another.
struct TileProduct {
  int x, w, z;
};
std::vector<at::Tensor> by_tiles(at::TensorList maps, at::TensorList filters, const std::vector<TileProduct>& products,
                                 const at::Tensor& bias, int64_t groups, int64_t tile, bool transposed);

// Written to `into`; g2 and x2 may be undefined.
void weight_by_tiles(const at::Tensor& g, const at::Tensor& x, int64_t tile, const at::Tensor& g2, const at::Tensor& x2,
                     const at::Tensor& into);

}  // namespace ddfast
