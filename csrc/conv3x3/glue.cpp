// How a 3x3 convolution is computed, and the ops.
#include "glue.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "../common/checks.h"
#include "direct.h"
#include "patches.h"
#include "tiles.h"

namespace ddfast {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
constexpr int64_t kSmallSide = 2;

int64_t groups_of(const Tensor& x, const Tensor& w) { return x.size(1) / w.size(1); }

// Whether minimal filtering computes these: at least 16 channels in and out of a group, maps of more than two pixels a
// side.
bool tiles_apply(int64_t tile, const Tensor& maps, int64_t inputs, int64_t outputs) {
  return tile != kDirect && is_fast(maps) && std::min(inputs, outputs) >= kFewChannels &&
         std::min(maps.size(2), maps.size(3)) > kSmallSide;
}
bool tiles_apply(int64_t tile, const Tensor& maps, const Tensor& w, int64_t groups) {
  return tiles_apply(tile, maps, w.size(1), w.size(0) / groups);
}

}  // namespace

bool is_fast(const Tensor& maps) { return maps.is_cpu() && maps.scalar_type() == at::kFloat; }

Tensor conv3x3(int64_t tile, const Tensor& x, const Tensor& w, const Tensor& x2, const Tensor& w2, const Tensor& bias) {
  const int64_t groups = groups_of(x, w);
  if (tiles_apply(tile, x, w, groups)) {
    if (!x2.defined()) return by_tiles({x}, {w}, {{0, 0, 0}}, bias, groups, tile, false)[0];
    return by_tiles({x, x2}, {w, w2}, {{0, 0, 0}, {1, 1, 0}}, bias, groups, tile, false)[0];
  }
  if (is_fast(x) && patches_apply(w.size(1), w.size(0) / groups)) return by_patches(x, w, x2, w2, bias, groups, false);
  Tensor z = direct_forward(x, w, bias);
  return x2.defined() ? z.add_(direct_forward(x2, w2)) : z;
}

Tensor conv3x3_input(int64_t tile, const Tensor& x, const Tensor& g, const Tensor& w, const Tensor& g2,
                     const Tensor& w2) {
  const int64_t groups = groups_of(x, w);
  if (tiles_apply(tile, g, w, groups)) {
    if (!g2.defined()) return by_tiles({g}, {w}, {{0, 0, 0}}, {}, groups, tile, true)[0];
    return by_tiles({g, g2}, {w, w2}, {{0, 0, 0}, {1, 1, 0}}, {}, groups, tile, true)[0];
  }
  if (is_fast(g) && patches_apply(w.size(1), w.size(0) / groups)) return by_patches(g, w, g2, w2, {}, groups, true);
  Tensor grad = direct_input(g, x, w);
  return g2.defined() ? grad.add_(direct_input(g2, x, w2)) : grad;
}

Pair conv3x3_jvp(int64_t tile, const Tensor& x, const Tensor& w, const Tensor& dx, const Tensor& dw) {
  const int64_t groups = groups_of(x, w);
  if (tiles_apply(tile, x, w, groups)) {
    auto both = by_tiles({x, dx}, {w, dw}, {{0, 0, 0}, {0, 1, 1}, {1, 0, 1}}, {}, groups, tile, false);
    return {both[0], both[1]};
  }
  return {conv3x3(tile, x, w), conv3x3(tile, x, dw, dx, w)};
}

Pair conv3x3_input_jvp(int64_t tile, const Tensor& x, const Tensor& g, const Tensor& w, const Tensor& dg,
                       const Tensor& dw) {
  const int64_t groups = groups_of(x, w);
  if (tiles_apply(tile, g, w, groups)) {
    auto both = by_tiles({g, dg}, {w, dw}, {{0, 0, 0}, {0, 1, 1}, {1, 0, 1}}, {}, groups, tile, true);
    return {both[0], both[1]};
  }
  return {conv3x3_input(tile, x, g, w), conv3x3_input(tile, x, g, dw, dg, w)};
}

void conv3x3_weight(int64_t tile, const Tensor& g, const Tensor& x, const Tensor& into, const Tensor& g2,
                    const Tensor& x2) {
  const int64_t C = into.size(2), groups = x.size(1) / C, O = g.size(1) / groups;
  if (groups != into.size(0)) {  // students that all see the same images
    const Tensor dw = at::empty({groups, O, C, 3, 3}, into.options());
    conv3x3_weight(tile, g, x, dw, g2, x2);
    into.copy_(dw.view(into.sizes()));
    return;
  }
  if (tiles_apply(tile, x, C, O)) return weight_by_tiles(g, x, tile, g2, x2, into);
  if (is_fast(x) && patches_apply(C, O)) {
    into.copy_(weight_by_patches(g, x, groups, g2, x2).view(into.sizes()));
    return;
  }
  into.copy_(direct_weight(g, x, groups).view(into.sizes()));
  if (g2.defined()) into.add_(direct_weight(g2, x2, groups).view(into.sizes()));
}

Tensor channels_last(const Tensor& maps) {
  if (!maps.defined()) return maps;
  if (maps.size(1) != 1) return maps.contiguous(at::MemoryFormat::ChannelsLast);
  return maps.squeeze(1).contiguous().unsqueeze(3).permute({0, 3, 1, 2});
}

namespace {

// The second term of an op is like the first.
void check_second(const char* names, const Optional& first, const Tensor& like_first, const Optional& second,
                  const Tensor& like_second) {
  TORCH_CHECK_VALUE(first.has_value() == second.has_value(), names, ": expected both tensors, or none");
  if (!first.has_value()) return;
  expect_tensor(names, *first, like_first.sizes(), like_first.scalar_type(), like_first.device());
  expect_tensor(names, *second, like_second.sizes(), like_second.scalar_type(), like_second.device());
}

void check_tile(int64_t tile) {
  TORCH_CHECK_VALUE(tile == 0 || tile == 2 || tile == 4, "tile: expected 0, 2 or 4, got ", tile);
}

// How many groups of so many channels maps have.
int64_t groups_of(const char* name, const Tensor& maps, int64_t channels) {
  TORCH_CHECK_VALUE(maps.dim() == 4 && maps.numel() > 0, name, ": expected [B, C, H, W], got ", maps.sizes());
  TORCH_CHECK_VALUE(maps.size(1) % channels == 0, name, ": expected channels for groups of ", channels, ", got ",
                    maps.sizes());
  return maps.size(1) / channels;
}

void check_filters(const Tensor& w, const Tensor& maps) {
  expect_tensor("w", w);
  TORCH_CHECK_VALUE(w.dim() == 4 && w.size(2) == 3 && w.size(3) == 3 && w.numel() > 0, "w: expected [O, C, 3, 3], got ",
                    w.sizes());
  expect_tensor("w", w, w.sizes(), maps.scalar_type(), maps.device());
}

Tensor value(const Optional& tensor) { return tensor.value_or(Tensor()); }

Tensor forward_op(const Tensor& x, const Tensor& w, const Optional& bias, const Optional& x2, const Optional& w2,
                  int64_t tile) {
  check_filters(w, expect_real("x", x, true));
  check_tile(tile);
  const int64_t groups = groups_of("x", x, w.size(1));
  TORCH_CHECK_VALUE(w.size(0) % groups == 0, "w: expected outputs for ", groups, " groups, got ", w.sizes());
  check_second("x2, w2", x2, x, w2, w);
  if (bias.has_value()) expect_tensor("bias", *bias, {w.size(0)}, w.scalar_type(), w.device());
  return conv3x3(tile, x, w, value(x2), value(w2), value(bias));
}

Tensor input_op(const Tensor& g, const Tensor& w, const Optional& g2, const Optional& w2, int64_t groups,
                int64_t tile) {
  check_filters(w, expect_real("g", g, true));
  check_tile(tile);
  expect_range("groups", groups, 1, w.size(0));
  TORCH_CHECK_VALUE(w.size(0) % groups == 0, "w: expected outputs for ", groups, " groups, got ", w.sizes());
  TORCH_CHECK_VALUE(groups_of("g", g, w.size(0) / groups) == groups, "g: expected ", w.size(0), " channels, got ",
                    g.sizes());
  check_second("g2, w2", g2, g, w2, w);
  product("g, w, groups", {g.size(0), groups, w.size(1), g.size(2), g.size(3)});
  const Tensor x = at::empty({g.size(0), groups * w.size(1), g.size(2), g.size(3)},
                             g.options().memory_format(at::MemoryFormat::ChannelsLast));
  return conv3x3_input(tile, x, g, w, value(g2), value(w2));
}

Tensor weight_op(const Tensor& g, const Tensor& x, const Optional& g2, const Optional& x2, int64_t groups,
                 int64_t tile) {
  expect_real("g", g, true), expect_tensor("x", x);
  check_tile(tile);
  expect_range("groups", groups, 1);
  TORCH_CHECK_VALUE(g.dim() == 4 && g.numel() > 0 && g.size(1) % groups == 0, "g: expected [B, groups·O, H, W] for ",
                    groups, " groups, got ", g.sizes());
  TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() > 0 && x.size(1) % groups == 0, "x: expected [B, groups·C, H, W] for ",
                    groups, " groups, got ", x.sizes());
  expect_tensor("x", x, {g.size(0), x.size(1), g.size(2), g.size(3)}, g.scalar_type(), g.device());
  check_second("g2, x2", g2, g, x2, x);
  product("g, x", {g.size(1), x.size(1) / groups, 9});
  const Tensor dw = at::empty({g.size(1), x.size(1) / groups, 3, 3}, g.options().memory_format(std::nullopt));
  conv3x3_weight(tile, g, x, dw.unflatten(0, {groups, g.size(1) / groups}), value(g2), value(x2));
  return dw;
}

void register_conv3x3(torch::Library& m) {
  m.impl("conv3x3", &forward_op);
  m.impl("conv3x3_input", &input_op);
  m.impl("conv3x3_weight", &weight_op);
}

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_conv3x3(m); }
#ifdef DDFAST_CUDA_VERSION
TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_conv3x3(m); }
#endif

}  // namespace
}  // namespace ddfast
