// 3x3 convolutions, stride 1, padding 1, and their transposes, on whichever device: by minimal filtering where the
// rules of conv3x3_applies hold, else by at::convolution.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace ddfast {

constexpr int64_t kFastTile = 4, kDirect = 0;  // outputs a side of a tile; none
constexpr int64_t kFewChannels = 16;           // below, products of tiles are too thin

// Whether minimal filtering computes these: float32 on a CPU, at least 16 channels in and out of a group, maps of more
// than two pixels a side.
bool conv3x3_applies(const at::Tensor& maps, int64_t inputs, int64_t outputs);

// Filters w [groups·O, C, 3, 3], transformed once for all convolutions with them.
class Filters {
 public:
  Filters() = default;
  Filters(at::Tensor w_, int64_t tile_) : w(std::move(w_)), tile(tile_) {}
  const at::Tensor& packed(int64_t groups, bool transposed) const;

  at::Tensor w;
  int64_t tile = kDirect;

 private:
  mutable at::Tensor packed_, transposed_;
};

// x ∗ w, or x ∗ w + x2 ∗ w2, and a bias [groups·O]: [B, groups·C, H, W] -> [B, groups·O, H, W], channels-last.
at::Tensor conv3x3(const at::Tensor& x, const Filters& w, const at::Tensor& x2 = {}, const Filters& w2 = {},
                   const at::Tensor& bias = {});

// The transpose: [B, groups·O, H, W] -> [B, groups·C, H, W]. Of x only sizes and layout count.
at::Tensor conv3x3_input(const at::Tensor& g, const at::Tensor& x, const Filters& w, const at::Tensor& g2 = {},
                         const Filters& w2 = {});

// corr(x, g), or the sum of two: [groups·O, C, 3, 3] like w, of which nothing else counts, and of `type`, which a sum
// has before it is rounded.
at::Tensor conv3x3_weight(const at::Tensor& g, const at::Tensor& x, const Filters& w, at::ScalarType type,
                          const at::Tensor& g2 = {}, const at::Tensor& x2 = {});

// The same maps, channels-last. By the strides, also those of a single channel, at::convolution chooses a layout; the
// other is several times slower.
at::Tensor channels_last(const at::Tensor& maps);

}  // namespace ddfast
