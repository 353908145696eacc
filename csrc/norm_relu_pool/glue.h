// Glue of norm_relu_pool's four faces, one for both devices: Backend::run(args) starts the kernel that takes these
// args.
//
// Every result is channels-last; gradients of weight and bias come one row per image from the kernels and are summed.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../common/arena.h"
#include "../common/checks.h"
#include "args.h"

namespace ddfast {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // of one image: the CUDA kernels count them in 32 bits
constexpr at::MemoryFormat kChannelsLast = at::MemoryFormat::ChannelsLast;

using Tensors3 = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// The sizes and types of all tensors, by those of z: maps are of z's type, everything else of the type that is computed
// in.
struct NormReluPoolSizes {
  InstanceShape shape;
  std::vector<int64_t> full, pooled, statistic, channel;
  at::TensorOptions maps, reals;

  explicit NormReluPoolSizes(const at::Tensor& z) {
    TORCH_CHECK_VALUE(z.dim() == 4 && z.numel() > 0 && z.size(2) >= 2 && z.size(3) >= 2,
                      "z: expected [N, C, H, W] with H and W at least 2, got ", z.sizes());
    TORCH_CHECK_VALUE(z.size(2) * z.size(3) <= kMostPixels, "z: expected at most 2^30 pixels, got ", z.sizes());
    shape = {z.size(0), z.size(1), z.size(2), z.size(3)};
    full = z.sizes().vec();
    pooled = {shape.N, shape.C, shape.pooled_height(), shape.pooled_width()};
    statistic = {shape.N, shape.C};
    channel = {shape.C};
    maps = z.options();
    reals = maps.dtype(z.scalar_type() == at::kBFloat16 ? at::kFloat : z.scalar_type());
  }

  at::Tensor map(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    return checked(name, tensor, sizes, at::typeMetaToScalarType(maps.dtype()), maps.device(), kChannelsLast);
  }
  at::Tensor real(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    return checked(name, tensor, sizes, at::typeMetaToScalarType(reals.dtype()), reals.device());
  }
  at::Tensor empty_map(at::IntArrayRef sizes) const { return empty_maps(sizes, maps.memory_format(kChannelsLast)); }
  at::Tensor empty_statistic() const { return at::empty(statistic, reals); }
};

// The kernels' name of a type of PyTorch's.
template <typename scalar_t>
using Element = std::conditional_t<std::is_same_v<scalar_t, at::BFloat16>, Bfloat16, scalar_t>;

// Calls run(M{}) with the type M of the maps.
template <typename Run>
void dispatch_maps(const at::Tensor& z, const Run& run) {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, z.scalar_type(), "norm_relu_pool", [&] { run(Element<scalar_t>{}); });
}

// What a tensor holds, as numbers of type T; nullptr of an undefined one. Its type is known to be that.
template <typename T>
const T* in(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <typename T>
T* out(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename Backend>
Tensors3 norm_relu_pool(const at::Tensor& z, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const typename Backend::Guard guard(expect_real("z", z, true).device());
  const NormReluPoolSizes sizes(z);
  expect_not_negative("eps", eps, z.scalar_type());
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor weight_ = sizes.real("weight", weight, sizes.channel);
  const at::Tensor bias_ = sizes.real("bias", bias, sizes.channel);
  at::Tensor y = sizes.empty_map(sizes.pooled);
  at::Tensor mean = sizes.empty_statistic();
  at::Tensor rstd = sizes.empty_statistic();
  dispatch_maps(z, [&](auto element) {
    using M = decltype(element);
    using T = Real<M>;
    Backend::run(NormReluPoolArgs<M>{sizes.shape, in<M>(z_), in<T>(weight_), in<T>(bias_), eps, out<M>(y), out<T>(mean),
                                     out<T>(rstd)});
  });
  return {y, mean, rstd};
}

template <typename Backend>
Tensors3 norm_relu_pool_backward(const at::Tensor& grad_y, const at::Tensor& z, const at::Tensor& mean,
                                 const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& bias) {
  const typename Backend::Guard guard(expect_real("z", z, true).device());
  const NormReluPoolSizes sizes(z);
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor grad_y_ = sizes.map("grad_y", grad_y, sizes.pooled);
  const at::Tensor mean_ = sizes.real("mean", mean, sizes.statistic);
  const at::Tensor rstd_ = sizes.real("rstd", rstd, sizes.statistic);
  const at::Tensor weight_ = sizes.real("weight", weight, sizes.channel);
  const at::Tensor bias_ = sizes.real("bias", bias, sizes.channel);
  at::Tensor grad_z = sizes.empty_map(sizes.full);
  at::Tensor grad_weight = sizes.empty_statistic();
  at::Tensor grad_bias = sizes.empty_statistic();
  dispatch_maps(z, [&](auto element) {
    using M = decltype(element);
    using T = Real<M>;
    Backend::run(NormReluPoolBackwardArgs<M>{sizes.shape, in<M>(grad_y_), in<M>(z_), in<T>(mean_), in<T>(rstd_),
                                             in<T>(weight_), in<T>(bias_), out<M>(grad_z), out<T>(grad_weight),
                                             out<T>(grad_bias)});
  });
  return {grad_z, grad_weight.sum(0), grad_bias.sum(0)};
}

template <typename Backend>
Tensors3 norm_relu_pool_jvp(const at::Tensor& dz, const at::Tensor& dweight, const at::Tensor& dbias,
                            const at::Tensor& z, const at::Tensor& mean, const at::Tensor& rstd,
                            const at::Tensor& weight, const at::Tensor& bias) {
  const typename Backend::Guard guard(expect_real("z", z, true).device());
  const NormReluPoolSizes sizes(z);
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor dz_ = sizes.map("dz", dz, sizes.full);
  const at::Tensor dweight_ = sizes.real("dweight", dweight, sizes.channel);
  const at::Tensor dbias_ = sizes.real("dbias", dbias, sizes.channel);
  const at::Tensor mean_ = sizes.real("mean", mean, sizes.statistic);
  const at::Tensor rstd_ = sizes.real("rstd", rstd, sizes.statistic);
  const at::Tensor weight_ = sizes.real("weight", weight, sizes.channel);
  const at::Tensor bias_ = sizes.real("bias", bias, sizes.channel);
  at::Tensor dy = sizes.empty_map(sizes.pooled);
  at::Tensor dmean = sizes.empty_statistic();
  at::Tensor dcov = sizes.empty_statistic();
  dispatch_maps(z, [&](auto element) {
    using M = decltype(element);
    using T = Real<M>;
    Backend::run(NormReluPoolJvpArgs<M>{sizes.shape, in<M>(dz_), in<T>(dweight_), in<T>(dbias_), in<M>(z_),
                                        in<T>(mean_), in<T>(rstd_), in<T>(weight_), in<T>(bias_), out<M>(dy),
                                        out<T>(dmean), out<T>(dcov)});
  });
  return {dy, dmean, dcov};
}

template <typename Backend>
Tensors3 norm_relu_pool_backward_jvp(const at::Tensor& grad_y, const std::optional<at::Tensor>& dgrad_y,
                                     const at::Tensor& z, const at::Tensor& dz, const at::Tensor& mean,
                                     const at::Tensor& rstd, const at::Tensor& dmean, const at::Tensor& dcov,
                                     const at::Tensor& weight, const at::Tensor& dweight, const at::Tensor& bias) {
  const typename Backend::Guard guard(expect_real("z", z, true).device());
  const NormReluPoolSizes sizes(z);
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor grad_y_ = sizes.map("grad_y", grad_y, sizes.pooled);
  at::Tensor dgrad_y_;
  if (dgrad_y.has_value()) dgrad_y_ = sizes.map("dgrad_y", *dgrad_y, sizes.pooled);
  const at::Tensor dz_ = sizes.map("dz", dz, sizes.full);
  const at::Tensor mean_ = sizes.real("mean", mean, sizes.statistic);
  const at::Tensor rstd_ = sizes.real("rstd", rstd, sizes.statistic);
  const at::Tensor dmean_ = sizes.real("dmean", dmean, sizes.statistic);
  const at::Tensor dcov_ = sizes.real("dcov", dcov, sizes.statistic);
  const at::Tensor weight_ = sizes.real("weight", weight, sizes.channel);
  const at::Tensor dweight_ = sizes.real("dweight", dweight, sizes.channel);
  const at::Tensor bias_ = sizes.real("bias", bias, sizes.channel);
  at::Tensor dgrad_z = sizes.empty_map(sizes.full);
  at::Tensor dgrad_weight = sizes.empty_statistic();
  at::Tensor dgrad_bias = sizes.empty_statistic();
  dispatch_maps(z, [&](auto element) {
    using M = decltype(element);
    using T = Real<M>;
    Backend::run(NormReluPoolBackwardJvpArgs<M>{sizes.shape, in<M>(grad_y_), in<M>(dgrad_y_), in<M>(z_), in<M>(dz_),
                                                in<T>(mean_), in<T>(rstd_), in<T>(dmean_), in<T>(dcov_), in<T>(weight_),
                                                in<T>(dweight_), in<T>(bias_), out<M>(dgrad_z), out<T>(dgrad_weight),
                                                out<T>(dgrad_bias)});
  });
  return {dgrad_z, dgrad_weight.sum(0), dgrad_bias.sum(0)};
}

template <typename Backend>
void register_norm_relu_pool(torch::Library& m) {
  m.impl("norm_relu_pool", &norm_relu_pool<Backend>);
  m.impl("norm_relu_pool_backward", &norm_relu_pool_backward<Backend>);
  m.impl("norm_relu_pool_jvp", &norm_relu_pool_jvp<Backend>);
  m.impl("norm_relu_pool_backward_jvp", &norm_relu_pool_backward_jvp<Backend>);
}

}  // namespace ddfast
