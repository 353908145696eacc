// Glue of gradient_distance, one for both devices: Backend::run(args) starts the kernel that takes these args.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "args.h"

namespace ddfast {

// The layers of a flat gradient, by (offset, rows, length) each, as many at once as a kernel takes.
struct GradientLayout {
  std::vector<GradientLayers> parts;
  int64_t rows = 0, tasks = 0;

  GradientLayout(at::IntArrayRef layers, int64_t P) {
    TORCH_CHECK_VALUE(!layers.empty() && layers.size() % 3 == 0,
                      "layers: expected offset, rows and length of each, got ", layers.size(), " numbers");
    int64_t end = 0;
    for (size_t i = 0; i < layers.size(); i += 3) {
      const int64_t offset = layers[i], count = layers[i + 1], length = layers[i + 2];
      TORCH_CHECK_VALUE(offset >= end && offset <= P && count >= 1 && length >= 1 && count <= (P - offset) / length,
                        "layers: expected parts of ", P, " parameters one after another, got ", layers);
      end = offset + count * length;
      if (parts.empty() || parts.back().count == kGradientLayersAtOnce) parts.push_back({});
      GradientLayer& layer = parts.back().of[parts.back().count++];
      layer = {offset, count, length, tasks, rows};
      tasks += layer.tasks();
      rows += count;
    }
  }
};

inline GradientDistanceKind expect_kind(int64_t kind) {
  TORCH_CHECK_VALUE(kind >= 0 && kind <= 2, "kind: expected 0, 1 or 2, got ", kind);
  return static_cast<GradientDistanceKind>(kind);
}

template <typename Backend>
std::tuple<at::Tensor, at::Tensor> gradient_distance(const at::Tensor& g, const at::Tensor& h, at::IntArrayRef layers,
                                                     int64_t kind) {
  const typename Backend::Guard guard(expect_real("g", g).device());
  TORCH_CHECK_VALUE(g.dim() == 2 && g.numel() > 0, "g: expected [S, P], got ", g.sizes());
  const int64_t S = g.size(0), P = g.size(1);
  const GradientDistanceKind kind_ = expect_kind(kind);
  const GradientLayout layout(layers, P);
  const at::Tensor g_ = g.contiguous(), h_ = checked("h", h, g, {S, P});
  at::Tensor distance = at::empty({S}, g.options());
  at::Tensor sums = at::empty({S, layout.rows, kGradientSums}, g.options().dtype(at::kDouble));
  at::Tensor partial = at::empty({S, layout.tasks, kGradientSums}, g.options().dtype(at::kDouble));
  at::Tensor row_distance = at::empty({S, layout.rows}, g.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "gradient_distance", [&] {
    GradientDistanceArgs<scalar_t> args{S,
                                        P,
                                        layout.rows,
                                        layout.tasks,
                                        kind_,
                                        {},
                                        g_.const_data_ptr<scalar_t>(),
                                        h_.const_data_ptr<scalar_t>(),
                                        partial.mutable_data_ptr<double>(),
                                        row_distance.mutable_data_ptr<double>(),
                                        sums.mutable_data_ptr<double>(),
                                        distance.mutable_data_ptr<scalar_t>()};
    for (const GradientLayers& part : layout.parts) {
      args.layers = part;
      Backend::run(args);
    }
    Backend::finish(args);
  });
  return {distance, sums};
}

template <typename Backend>
std::tuple<at::Tensor, at::Tensor> gradient_distance_backward(const at::Tensor& grad, const at::Tensor& g,
                                                              const at::Tensor& h, const at::Tensor& sums,
                                                              at::IntArrayRef layers, int64_t kind,
                                                              std::array<bool, 2> wanted) {
  const typename Backend::Guard guard(expect_real("g", g).device());
  TORCH_CHECK_VALUE(g.dim() == 2 && g.numel() > 0, "g: expected [S, P], got ", g.sizes());
  const int64_t S = g.size(0), P = g.size(1);
  const GradientDistanceKind kind_ = expect_kind(kind);
  const GradientLayout layout(layers, P);
  const at::Tensor g_ = g.contiguous(), h_ = checked("h", h, g, {S, P});
  const at::Tensor grad_ = checked("grad", grad, g, {S});
  const at::Tensor sums_ = checked("sums", sums, {S, layout.rows, kGradientSums}, at::kDouble, g.device());
  std::array<at::Tensor, 2> out;  // what is in no layer has no gradient
  for (int i = 0; i < 2; ++i) out[i] = wanted[i] ? at::zeros({S, P}, g.options()) : at::empty({0}, g.options());
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "gradient_distance_backward", [&] {
    GradientDistanceBackwardArgs<scalar_t> args{S,
                                                P,
                                                layout.rows,
                                                layout.tasks,
                                                kind_,
                                                {},
                                                grad_.const_data_ptr<scalar_t>(),
                                                g_.const_data_ptr<scalar_t>(),
                                                h_.const_data_ptr<scalar_t>(),
                                                sums_.const_data_ptr<double>(),
                                                wanted[0] ? out[0].mutable_data_ptr<scalar_t>() : nullptr,
                                                wanted[1] ? out[1].mutable_data_ptr<scalar_t>() : nullptr};
    for (const GradientLayers& part : layout.parts) {
      args.layers = part;
      Backend::run(args);
    }
  });
  return {out[0], out[1]};
}

template <typename Backend>
void register_gradient_distance(torch::Library& m) {
  m.impl("gradient_distance", &gradient_distance<Backend>);
  m.impl("gradient_distance_backward", &gradient_distance_backward<Backend>);
}

}  // namespace ddfast
