// Which ConvNet a row of flat parameters is, its pieces by layer, and images and maps as the ops lay them out.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <array>
#include <string_view>
#include <vector>

#include "../common/checks.h"
#include "../conv3x3/glue.h"

namespace ddfast {

using at::Tensor;

struct Layout {
  int64_t width, depth, num_classes, border;
  double eps;
  std::string_view precision;

  // (H, W) of the map that a block is given, or of the last one's result
  std::array<int64_t, 2> map(const Tensor& images, int64_t block) const {
    return {(images.size(-2) + 2 * border) >> block, (images.size(-1) + 2 * border) >> block};
  }
  // P
  int64_t num_parameters(const Tensor& images) const {
    const char* names = "width, depth, num_classes";
    const auto [H, W] = map(images, depth);
    int64_t total = 0;
    const auto add = [&](int64_t count) {
      TORCH_CHECK_VALUE(!c10::add_overflows(total, count, &total), names, ": expected fewer than 2^63 parameters");
    };
    for (int64_t block = 0; block < depth; ++block) {
      add(product(names, {width, block == 0 ? images.size(-3) : width, 9}));
      add(product(names, {width, 3}));
    }
    add(product(names, {num_classes, width, H, W}));
    add(num_classes);
    return total;
  }

  int64_t tile() const { return precision == "default" ? kFastTile : kDirect; }

  at::ScalarType map_type(const Tensor& parameters) const {
    return precision == "bfloat16" ? at::kBFloat16 : parameters.scalar_type();
  }
};

struct BlockWeights {
  Tensor w, gamma, beta;  // [S·width, I, 3, 3], [S·width], [S·width]
};

// A row of flat parameters by layer. With one student the pieces are views, so that a gradient can be written to them.
struct Weights {
  std::vector<BlockWeights> blocks;
  Tensor weight, bias;  // [S, K, F], [S, K]

  Weights(const Tensor& flat, const Tensor& images, const Layout& layout) {  // flat [S, P]
    const int64_t S = flat.size(0), width = layout.width, K = layout.num_classes;
    int64_t offset = 0;
    const auto next = [&](int64_t count) {
      offset += count;
      return flat.narrow(1, offset - count, count);
    };
    for (int64_t block = 0; block < layout.depth; ++block) {
      const int64_t inputs = block == 0 ? images.size(-3) : width;
      const Tensor w = next(width * inputs * 9).reshape({S * width, inputs, 3, 3}).to(layout.map_type(flat));
      next(width);  // the bias of the convolution: without effect before an instance norm
      const Tensor gamma = next(width).reshape({S * width});
      blocks.push_back({w, gamma, next(width).reshape({S * width})});
    }
    const auto [H, W] = layout.map(images, layout.depth);
    weight = next(K * width * H * W).reshape({S, K, width * H * W});
    bias = next(K);
  }
};

// A gradient in the flat layout, filled layer by layer.
class Gradient {
 public:
  explicit Gradient(const Tensor& like) : flat(at::empty(like.sizes(), like.options())), end_(like.size(1)) {}

  // Layers come from the last one backwards.
  void linear(const Tensor& weight, const Tensor& bias) {
    put(bias);
    put(weight);
  }
  // Where the filters' gradient is to be written, [S, width, inputs, 3, 3]; or it is there already.
  Tensor block(int64_t inputs, const Tensor& gamma, const Tensor& beta, const Tensor& w = {}) {
    put(beta);
    put(gamma);
    const int64_t S = flat.size(0), width = gamma.numel() / S;
    next(width).zero_();  // the bias of the convolution
    Tensor to = next(width * inputs * 9).view({S, width, inputs, 3, 3});
    return w.defined() ? to.copy_(w.view(to.sizes())) : to;
  }

  Tensor flat;  // [S, P]

 private:
  Tensor next(int64_t count) {
    end_ -= count;
    return flat.narrow(1, end_, count);
  }
  void put(const Tensor& piece) {
    const int64_t S = flat.size(0);
    next(piece.numel() / S).copy_(piece.reshape({S, -1}));
  }
  int64_t end_;
};

// [B, C, H, W] or [S, B, C, H, W] -> [B, (S·)C, H + 2·border, W + 2·border]
inline Tensor fold(const Tensor& images, const Layout& layout) {
  const int64_t border = layout.border;
  const Tensor typed = images.to(layout.map_type(images));
  const Tensor folded = typed.dim() == 5 ? typed.transpose(0, 1).flatten(1, 2) : typed;
  if (border == 0) return channels_last(folded);
  return channels_last(at::constant_pad_nd(folded, {border, border, border, border}));
}

inline Tensor unfold(const Tensor& grad, const Tensor& images, int64_t border) {
  const Tensor inner =
      grad.narrow(2, border, images.size(-2)).narrow(3, border, images.size(-1)).to(images.scalar_type());
  if (images.dim() == 4) return inner.contiguous();
  return inner.unflatten(1, {images.size(0), images.size(2)}).transpose(0, 1).contiguous();
}

// [B, S·C, H, W] -> [S, B, C·H·W], to multiply with weight [S, K, C·H·W]
inline Tensor features_of(const Tensor& y, const Tensor& weight) {
  const int64_t S = weight.size(0);
  const Tensor features = y.reshape({y.size(0), S, y.size(1) / S, y.size(2), y.size(3)}).transpose(0, 1).flatten(2);
  return features.to(weight.scalar_type());
}

// [S, B, C·H·W] -> like y
inline Tensor unfeatures(const Tensor& features, const Tensor& y) {
  const int64_t S = features.size(0);
  const Tensor maps = features.reshape({S, y.size(0), y.size(1) / S, y.size(2), y.size(3)}).transpose(0, 1);
  return channels_last(maps.flatten(1, 2).to(y.scalar_type()));
}

}  // namespace ddfast
