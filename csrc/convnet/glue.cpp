// The ConvNet on flat parameters: logits, gradient, and the gradient's jvp by forward over reverse, without an autograd
// graph. Composed of conv3x3 and norm_relu_pool; one source for both devices.
//
// S students are folded into channels: maps are [B, S·C, H, W], channels-last, and convolutions have S groups. Images
// that all students see keep their C channels, and the first convolution one group. With the precision bfloat16, maps
// and the weights of convolutions are bfloat16, and everything else is float. The formulas, and their names, are those
// of the reference in ddfast/ops/convnet.py.
#include "glue.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "../common/arena.h"
#include "../common/checks.h"
#include "../conv3x3/glue.h"
#include "first_block.h"
#include "layout.h"

namespace ddfast {
namespace {

using at::Tensor;
using Tensors3 = std::tuple<Tensor, Tensor, Tensor>;

template <typename... Arguments>
Tensors3 call(const char* name, const Arguments&... arguments) {
  return call_op<Tensors3>(name, arguments...);
}

struct Block {
  Tensor x, z, mean, rstd;     // the block's input and its convolution's result; no z where first_block.h computes it
  Tensor dx, dz, dmean, dcov;  // their tangents
};

struct Forward {
  std::vector<Block> blocks;
  Tensor y, dy, features, logits;  // the last map [B, S·width, H, W], its tangent; [S, B, F]; [S, B, K]
};

FirstBlock first_of(const Tensor& x, const Weights& weights) {
  const auto& [w, gamma, beta] = weights.blocks[0];
  return {x, w, gamma.contiguous(), beta.contiguous(), weights.bias.size(0)};
}

FirstTangents tangents_of(const Weights& dots) {
  const auto& [dw, dgamma, dbeta] = dots.blocks[0];
  return {dw, dgamma.contiguous(), dbeta.contiguous()};
}

FirstForward first_of(const Block& block) { return {{}, block.mean, block.rstd, {}, block.dmean, block.dcov}; }

// What one block makes of x; with `dots` and dx, which is undefined for images, also the tangents.
struct BlockResult {
  Block block;
  Tensor y, dy;
};

BlockResult run_block(int64_t i, const Weights& weights, const Weights* dots, const Tensor& x, const Tensor& dx,
                      const Layout& layout, at::TensorList kept) {
  const auto& [w, gamma, beta] = weights.blocks[i];
  const int64_t tile = layout.tile();
  BlockResult result{{x, {}, {}, {}, dx, {}, {}, {}}, {}, {}};
  Block& block = result.block;
  if (i == 0 && first_block_applies(x, w)) {
    const std::optional<FirstTangents> tangents = dots ? std::optional(tangents_of(*dots)) : std::nullopt;
    const FirstForward first = first_forward(first_of(x, weights), layout.eps, dots ? &*tangents : nullptr);
    block.mean = first.mean, block.rstd = first.rstd, block.dmean = first.dmean, block.dcov = first.dcov;
    result.y = first.y, result.dy = first.dy;
    return result;
  }
  const bool is_kept = i > 0 && !kept.empty();
  if (is_kept) block.z = kept[2 * i - 1];
  if (dots && dx.defined() && !is_kept) {
    std::tie(block.z, block.dz) = conv3x3_jvp(tile, x, w, dx, dots->blocks[i].w);
  } else {
    if (!is_kept) block.z = conv3x3(tile, x, w);
    if (dots)
      block.dz = dx.defined() ? conv3x3(tile, x, dots->blocks[i].w, dx, w) : conv3x3(tile, x, dots->blocks[i].w);
  }
  std::tie(result.y, block.mean, block.rstd) = call("ddfast::norm_relu_pool", block.z, gamma, beta, layout.eps);
  if (dots) {
    std::tie(result.dy, block.dmean, block.dcov) =
        call("ddfast::norm_relu_pool_jvp", block.dz, dots->blocks[i].gamma, dots->blocks[i].beta, block.z, block.mean,
             block.rstd, gamma, beta);
  }
  return result;
}

Forward forward(const Weights& weights, const Weights* dots, const Tensor& images, const Layout& layout,
                at::TensorList kept, bool for_backward) {
  Forward out;
  out.y = fold(images, layout);
  for (int64_t i = 0; i < layout.depth; ++i) {
    BlockResult result = run_block(i, weights, dots, out.y, out.dy, layout, kept);
    out.y = result.y, out.dy = result.dy;
    if (for_backward) out.blocks.push_back(std::move(result.block));
  }
  out.features = features_of(out.y, weights.weight);
  out.logits = at::baddbmm(weights.bias.unsqueeze(1), out.features, weights.weight.mT());
  return out;
}

Tensor targets_of(const Tensor& labels, const Tensor& logits) {  // int64 [(S,) B] or [(S,) B, K] -> [(S,) B, K]
  if (labels.is_floating_point()) return labels;
  std::vector<int64_t> sizes = labels.sizes().vec();
  sizes.push_back(logits.size(2));
  return at::zeros(sizes, logits.options()).scatter_(-1, labels.unsqueeze(-1), 1);
}

// Of a ConvNet of this layout and these images [B, C, H, W] or [S, B, C, H, W], before anything is computed of them.
void check_layout(const Layout& layout, const Tensor& images) {
  constexpr int64_t kMostDepth = 30, kMostSide = int64_t{1} << 30;  // more pixels than norm_relu_pool takes
  TORCH_CHECK_VALUE(layout.precision == "default" || layout.precision == "float32" || layout.precision == "bfloat16",
                    "precision: expected one of default, float32, bfloat16, got '", layout.precision, "'");
  expect_range("width", layout.width, 1);
  expect_range("depth", layout.depth, 1, kMostDepth);
  expect_range("num_classes", layout.num_classes, 1);
  expect_range("border", layout.border, 0, kMostSide);
  expect_not_negative("eps", layout.eps);
  const auto [H, W] = layout.map(images, 0);
  TORCH_CHECK_VALUE(H <= kMostSide && W <= kMostSide && H * W <= kMostSide,
                    "images, border: expected at most 2^30 pixels with the border, got ", H, " x ", W);
  const int64_t least = int64_t{1} << layout.depth;
  TORCH_CHECK_VALUE(H >= least && W >= least, "images, depth: expected at least ", least, " pixels a side, got ", H,
                    " x ", W);
}

void check(const char* name, const Tensor& parameters, const Tensor& images, const Layout& layout) {
  expect_real(name, parameters);
  expect_tensor("images", images);
  TORCH_CHECK_VALUE(parameters.dim() == 2 && parameters.numel() > 0, name, ": expected [S, P], got ",
                    parameters.sizes());
  TORCH_CHECK_VALUE((images.dim() == 4 || images.dim() == 5) && images.numel() > 0,
                    "images: expected [B, C, H, W] or [S, B, C, H, W], got ", images.sizes());
  TORCH_CHECK_VALUE(images.dim() == 4 || images.size(0) == parameters.size(0), "images: expected ", parameters.size(0),
                    " students, got ", images.sizes());
  expect_tensor("images", images, images.sizes(), parameters.scalar_type(), parameters.device());
  TORCH_CHECK_TYPE(layout.precision != "bfloat16" || parameters.scalar_type() == at::kFloat, name,
                   ": expected float with the precision bfloat16, got ", parameters.scalar_type());
  check_layout(layout, images);
  const int64_t expected = layout.num_parameters(images);
  TORCH_CHECK_VALUE(parameters.size(1) == expected, name, ": expected [S, ", expected, "] for this ConvNet, got ",
                    parameters.sizes());
}

void check_labels(const Tensor& parameters, const Tensor& images, const Tensor& labels, const Layout& layout) {
  expect_tensor("labels", labels);
  const bool soft = labels.is_floating_point();
  std::vector<int64_t> sizes{images.size(-4)};
  if (soft) sizes.push_back(layout.num_classes);
  if (labels.dim() > static_cast<int64_t>(sizes.size())) sizes.insert(sizes.begin(), parameters.size(0));
  expect_tensor("labels", labels, sizes, soft ? parameters.scalar_type() : at::kLong, parameters.device());
  if (!soft) expect_indices("labels", labels, layout.num_classes);
}

// What convnet_grad kept, or nothing.
void check_kept(const Tensor& parameters, const Tensor& images, at::TensorList kept, const Layout& layout) {
  const int64_t count = 2 * layout.depth - 1;
  TORCH_CHECK_VALUE(kept.empty() || static_cast<int64_t>(kept.size()) == count, "kept: expected ", count,
                    " tensors, got ", kept.size());
  for (int64_t i = 0; i < static_cast<int64_t>(kept.size()); ++i) {
    const auto [H, W] = layout.map(images, i / 2 + 1);  // a pooled map, then the next block's z, as large
    expect_tensor("kept", kept[i], {images.size(-4), parameters.size(0) * layout.width, H, W},
                  layout.map_type(parameters), parameters.device());
  }
}

Tensor convnet_forward(const Tensor& parameters, const Tensor& images, int64_t width, int64_t depth,
                       int64_t num_classes, int64_t border, double eps, std::string_view precision) {
  const Layout layout{width, depth, num_classes, border, eps, precision};
  check("parameters", parameters, images, layout);
  const ArenaScope scope;
  return forward(Weights(parameters, images, layout), nullptr, images, layout, {}, false).logits;
}

// [S, B, F], what the linear layer is given.
Tensor convnet_features(const Tensor& parameters, const Tensor& images, int64_t width, int64_t depth,
                        int64_t num_classes, int64_t border, double eps, std::string_view precision) {
  const Layout layout{width, depth, num_classes, border, eps, precision};
  check("parameters", parameters, images, layout);
  const ArenaScope scope;
  return forward(Weights(parameters, images, layout), nullptr, images, layout, {}, false).features.contiguous();
}

// The gradient of ⟨features, cotangent⟩ in the images.
Tensor convnet_features_backward(const Tensor& cotangent, const Tensor& parameters, const Tensor& images, int64_t width,
                                 int64_t depth, int64_t num_classes, int64_t border, double eps,
                                 std::string_view precision) {
  const Layout layout{width, depth, num_classes, border, eps, precision};
  check("parameters", parameters, images, layout);
  const auto [H, W] = layout.map(images, depth);
  const Tensor along =
      checked("cotangent", cotangent, parameters, {parameters.size(0), images.size(-4), width * H * W});
  const ArenaScope scope;
  const Weights weights(parameters, images, layout);
  auto [blocks, y, dy, features, logits] = forward(weights, nullptr, images, layout, {}, true);
  Tensor g = unfeatures(along, y);
  y.reset(), features.reset();
  for (int64_t i = depth - 1; i >= 0; --i) {
    const auto& [w, gamma, beta] = weights.blocks[i];
    const Block block = std::move(blocks[i]);
    if (!block.z.defined()) {
      g = first_backward_input(first_of(block.x, weights), first_of(block), g);
      break;
    }
    const Tensor g_z =
        std::get<0>(call("ddfast::norm_relu_pool_backward", g, block.z, block.mean, block.rstd, gamma, beta));
    g = conv3x3_input(layout.tile(), block.x, g_z, w);
  }
  return unfold(g, images, border);
}

}  // namespace

void check_convnet(const char* name, const Tensor& parameters, const Tensor& images, const Tensor& labels,
                   int64_t width, int64_t depth, int64_t num_classes, int64_t border, double eps,
                   std::string_view precision) {
  const Layout layout{width, depth, num_classes, border, eps, precision};
  check(name, parameters, images, layout);
  check_labels(parameters, images, labels, layout);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> convnet_grad(const Tensor& parameters, const Tensor& images,
                                                             const Tensor& labels, bool keep, int64_t width,
                                                             int64_t depth, int64_t num_classes, int64_t border,
                                                             double eps, std::string_view precision) {
  const Layout layout{width, depth, num_classes, border, eps, precision};
  check("parameters", parameters, images, layout);
  const ArenaScope scope;
  check_labels(parameters, images, labels, layout);
  const Weights weights(parameters, images, layout);
  auto [blocks, y, dy, features, logits] = forward(weights, nullptr, images, layout, {}, true);
  const Tensor targets = targets_of(labels, logits), log_p = logits.log_softmax(2);
  const double B = static_cast<double>(logits.size(1));
  const Tensor delta = (targets.sum(-1, true) * logits.softmax(2) - targets) / B;  // [S, B, K]
  const Tensor losses = (targets * log_p).sum({1, 2}) / -B;

  Gradient gradient(parameters);
  gradient.linear(at::bmm(delta.mT(), features), delta.sum(1));
  Tensor g_y = unfeatures(at::bmm(delta, weights.weight), y);
  y.reset(), features.reset();
  const int64_t tile = layout.tile();
  std::vector<Tensor> kept(keep ? 2 * depth - 1 : 0);
  for (int64_t i = depth - 1; i >= 0; --i) {
    const auto& [w, gamma, beta] = weights.blocks[i];
    Block block = std::move(blocks[i]);
    if (keep) kept[2 * i] = g_y;
    if (!block.z.defined()) {
      const auto [g_w, g_gamma, g_beta] = first_backward(first_of(block.x, weights), first_of(block), g_y);
      gradient.block(w.size(1), g_gamma, g_beta, g_w);
      break;
    }
    if (keep && i > 0) kept[2 * i - 1] = block.z;
    auto [g_z, g_gamma, g_beta] =
        call("ddfast::norm_relu_pool_backward", g_y, block.z, block.mean, block.rstd, gamma, beta);
    block.z.reset();
    conv3x3_weight(tile, g_z, block.x, gradient.block(w.size(1), g_gamma, g_beta));
    if (i > 0) g_y = conv3x3_input(tile, block.x, g_z, w);
  }
  return {losses, gradient.flat, kept};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> convnet_grad_jvp(const Tensor& parameters, const Tensor& images,
                                                            const Tensor& labels, const Tensor& direction,
                                                            at::TensorList kept, std::array<bool, 3> wanted,
                                                            int64_t width, int64_t depth, int64_t num_classes,
                                                            int64_t border, double eps, std::string_view precision) {
  const Layout layout{width, depth, num_classes, border, eps, precision};
  const auto [want_parameters, want_images, want_labels] = wanted;
  check("parameters", parameters, images, layout);
  const ArenaScope scope;
  check_labels(parameters, images, labels, layout);
  const Tensor sigma = checked("direction", direction, parameters, parameters.sizes());
  check_kept(parameters, images, kept, layout);
  const Weights weights(parameters, images, layout), dots(sigma, images, layout);
  auto [blocks, y, dy, f, logits] = forward(weights, &dots, images, layout, kept, true);

  const Tensor df = features_of(dy, weights.weight), targets = targets_of(labels, logits);
  Tensor dlogits = at::baddbmm(dots.bias.unsqueeze(1), df, weights.weight.mT());  // [S, B, K]
  dlogits.baddbmm_(f, dots.weight.mT());
  const double B = static_cast<double>(logits.size(1));
  const Tensor row_sums = targets.sum(-1, true), p = logits.softmax(2);
  const Tensor p_dot = (p * dlogits).sum(2, true);
  const Tensor delta = (row_sums * p - targets) / B, ddelta = row_sums * p * (dlogits - p_dot) / B;

  const Tensor empty = at::empty({0}, parameters.options());
  Tensor by_parameters = empty, by_images = empty;
  Gradient second(want_parameters ? parameters : parameters.narrow(0, 0, 0));
  if (want_parameters) {
    second.linear(at::bmm(ddelta.mT(), f).baddbmm_(delta.mT(), df), ddelta.sum(1));
  }
  Tensor g_y = unfeatures(at::bmm(delta, weights.weight), y);
  Tensor dg_y = unfeatures(at::bmm(ddelta, weights.weight).baddbmm_(delta, dots.weight), y);
  const int64_t tile = layout.tile();
  y.reset(), dy.reset(), f.reset();
  for (int64_t i = depth - 1; i >= 0; --i) {
    const auto& [w, gamma, beta] = weights.blocks[i];
    const auto& [dw, dgamma, dbeta] = dots.blocks[i];
    Block block = std::move(blocks[i]);
    if (!block.z.defined()) {
      const auto [h_w, h_gamma, h_beta, dg_x] = first_backward_jvp(
          first_of(block.x, weights), tangents_of(dots), first_of(block), g_y, dg_y, want_parameters, want_images);
      if (want_parameters) second.block(w.size(1), h_gamma, h_beta, h_w);
      dg_y = dg_x;
      break;
    }
    const Tensor g_z =
        std::get<0>(call("ddfast::norm_relu_pool_backward", g_y, block.z, block.mean, block.rstd, gamma, beta));
    auto [dg_z, h_gamma, h_beta] =
        call("ddfast::norm_relu_pool_backward_jvp", g_y, std::optional<Tensor>(dg_y), block.z, block.dz, block.mean,
             block.rstd, block.dmean, block.dcov, gamma, dgamma, beta);
    block.z.reset(), block.dz.reset();
    if (want_parameters) {
      const Tensor h_w = second.block(w.size(1), h_gamma, h_beta);
      conv3x3_weight(tile, dg_z, block.x, h_w, block.dx.defined() ? g_z : Tensor(), block.dx);
    }
    if (i > 0 && kept.empty()) {
      std::tie(g_y, dg_y) = conv3x3_input_jvp(tile, block.x, g_z, w, dg_z, dw);
    } else {
      if (i > 0 || want_images) dg_y = conv3x3_input(tile, block.x, g_z, dw, dg_z, w);
      if (i > 0) g_y = kept[2 * i - 2];
    }
  }
  if (want_images) by_images = unfold(dg_y, images, border);
  if (want_parameters) by_parameters = second.flat;
  return {(delta * dlogits).sum({1, 2}), by_parameters, by_images,
          want_labels ? ((p_dot - dlogits) / B).sum_to_size(targets.sizes()) : empty};
}

namespace {

void register_convnet(torch::Library& m) {
  m.impl("convnet_forward", &convnet_forward);
  m.impl("convnet_features", &convnet_features);
  m.impl("convnet_features_backward", &convnet_features_backward);
  m.impl("convnet_grad", &convnet_grad);
  m.impl("convnet_grad_jvp", &convnet_grad_jvp);
}

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_convnet(m); }
#ifdef DDFAST_CUDA_VERSION
TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_convnet(m); }
#endif

}  // namespace
}  // namespace ddfast
