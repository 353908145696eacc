// 3x3 convolutions, stride 1, padding 1, and their transposes, on whichever device: by minimal filtering (tiles.h) or
// over patches (patches.h) where these apply, else by at::convolution (direct.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace ddfast {

constexpr int64_t kFastTile = 4, kDirect = 0;  // outputs a side of a tile; none
constexpr int64_t kFewChannels = 16;           // below, products of tiles are too thin

// Whether tiles.h and patches.h compute with them.
bool is_fast(const at::Tensor& maps);

// x ∗ w, or x ∗ w + x2 ∗ w2, and a bias [groups·O]: [B, groups·C, H, W] -> [B, groups·O, H, W], channels-last.
at::Tensor conv3x3(int64_t tile, const at::Tensor& x, const at::Tensor& w, const at::Tensor& x2 = {},
                   const at::Tensor& w2 = {}, const at::Tensor& bias = {});

// The transpose: [B, groups·O, H, W] -> [B, groups·C, H, W]. Of x only sizes and layout count.
at::Tensor conv3x3_input(int64_t tile, const at::Tensor& x, const at::Tensor& g, const at::Tensor& w,
                         const at::Tensor& g2 = {}, const at::Tensor& w2 = {});

// Value and tangent: x ∗ w and x ∗ dw + dx ∗ w; of the transpose likewise.
using Pair = std::pair<at::Tensor, at::Tensor>;
Pair conv3x3_jvp(int64_t tile, const at::Tensor& x, const at::Tensor& w, const at::Tensor& dx, const at::Tensor& dw);
Pair conv3x3_input_jvp(int64_t tile, const at::Tensor& x, const at::Tensor& g, const at::Tensor& w,
                       const at::Tensor& dg, const at::Tensor& dw);

// corr(x, g), or the sum of two, written to `into` [S, O, C, 3, 3], in whose type the sum is taken; the filters of each
// of the S are contiguous. x has S·C channels, or C that all S see.
void conv3x3_weight(int64_t tile, const at::Tensor& g, const at::Tensor& x, const at::Tensor& into,
                    const at::Tensor& g2 = {}, const at::Tensor& x2 = {});

// The same maps, channels-last; undefined ones stay so. By the strides, also those of a single channel, at::convolution
// chooses a layout; the other is several times slower.
at::Tensor channels_last(const at::Tensor& maps);

}  // namespace ddfast
