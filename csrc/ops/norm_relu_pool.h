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
#include <vector>

#include "../kernels/norm_relu_pool_args.h"
#include "checks.h"

namespace ddfast {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // of one image: the CUDA kernels count them in 32 bits
constexpr at::MemoryFormat kChannelsLast = at::MemoryFormat::ChannelsLast;

using Tensors3 = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

struct NormReluPoolSizes {
  InstanceShape shape;
  std::vector<int64_t> full, pooled, statistic, channel;

  explicit NormReluPoolSizes(const at::Tensor& z) {
    TORCH_CHECK(z.dim() == 4 && z.numel() > 0 && z.size(2) >= 2 && z.size(3) >= 2,
                "z: expected [N, C, H, W] with H and W at least 2, got ", z.sizes());
    TORCH_CHECK(z.size(2) * z.size(3) <= kMostPixels, "z: expected fewer than 2^30 pixels, got ", z.sizes());
    shape = {z.size(0), z.size(1), z.size(2), z.size(3)};
    full = z.sizes().vec();
    pooled = {shape.N, shape.C, shape.pooled_height(), shape.pooled_width()};
    statistic = {shape.N, shape.C};
    channel = {shape.C};
  }

  static at::Tensor empty_image(const at::Tensor& like, at::IntArrayRef sizes) {
    return at::empty(sizes, like.options().memory_format(kChannelsLast));
  }
};

template <typename Backend>
Tensors3 norm_relu_pool(const at::Tensor& z, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const typename Backend::Guard guard(z.device());
  const NormReluPoolSizes sizes(z);
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor weight_ = checked("weight", weight, z, sizes.channel);
  const at::Tensor bias_ = checked("bias", bias, z, sizes.channel);
  at::Tensor y = sizes.empty_image(z, sizes.pooled);
  at::Tensor mean = at::empty(sizes.statistic, z.options());
  at::Tensor rstd = at::empty(sizes.statistic, z.options());
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "norm_relu_pool", [&] {
    Backend::run(NormReluPoolArgs<scalar_t>{sizes.shape, z_.const_data_ptr<scalar_t>(),
                                            weight_.const_data_ptr<scalar_t>(), bias_.const_data_ptr<scalar_t>(), eps,
                                            y.mutable_data_ptr<scalar_t>(), mean.mutable_data_ptr<scalar_t>(),
                                            rstd.mutable_data_ptr<scalar_t>()});
  });
  return {y, mean, rstd};
}

template <typename Backend>
Tensors3 norm_relu_pool_backward(const at::Tensor& grad_y, const at::Tensor& z, const at::Tensor& mean,
                                 const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& bias) {
  const typename Backend::Guard guard(z.device());
  const NormReluPoolSizes sizes(z);
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor grad_y_ = checked("grad_y", grad_y, z, sizes.pooled, kChannelsLast);
  const at::Tensor mean_ = checked("mean", mean, z, sizes.statistic);
  const at::Tensor rstd_ = checked("rstd", rstd, z, sizes.statistic);
  const at::Tensor weight_ = checked("weight", weight, z, sizes.channel);
  const at::Tensor bias_ = checked("bias", bias, z, sizes.channel);
  at::Tensor grad_z = sizes.empty_image(z, sizes.full);
  at::Tensor grad_weight = at::empty(sizes.statistic, z.options());
  at::Tensor grad_bias = at::empty(sizes.statistic, z.options());
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "norm_relu_pool_backward", [&] {
    Backend::run(NormReluPoolBackwardArgs<scalar_t>{
        sizes.shape, grad_y_.const_data_ptr<scalar_t>(), z_.const_data_ptr<scalar_t>(),
        mean_.const_data_ptr<scalar_t>(), rstd_.const_data_ptr<scalar_t>(), weight_.const_data_ptr<scalar_t>(),
        bias_.const_data_ptr<scalar_t>(), grad_z.mutable_data_ptr<scalar_t>(), grad_weight.mutable_data_ptr<scalar_t>(),
        grad_bias.mutable_data_ptr<scalar_t>()});
  });
  return {grad_z, grad_weight.sum(0), grad_bias.sum(0)};
}

template <typename Backend>
Tensors3 norm_relu_pool_jvp(const at::Tensor& dz, const at::Tensor& dweight, const at::Tensor& dbias,
                            const at::Tensor& z, const at::Tensor& mean, const at::Tensor& rstd,
                            const at::Tensor& weight, const at::Tensor& bias) {
  const typename Backend::Guard guard(z.device());
  const NormReluPoolSizes sizes(z);
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor dz_ = checked("dz", dz, z, sizes.full, kChannelsLast);
  const at::Tensor dweight_ = checked("dweight", dweight, z, sizes.channel);
  const at::Tensor dbias_ = checked("dbias", dbias, z, sizes.channel);
  const at::Tensor mean_ = checked("mean", mean, z, sizes.statistic);
  const at::Tensor rstd_ = checked("rstd", rstd, z, sizes.statistic);
  const at::Tensor weight_ = checked("weight", weight, z, sizes.channel);
  const at::Tensor bias_ = checked("bias", bias, z, sizes.channel);
  at::Tensor dy = sizes.empty_image(z, sizes.pooled);
  at::Tensor dmean = at::empty(sizes.statistic, z.options());
  at::Tensor dcov = at::empty(sizes.statistic, z.options());
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "norm_relu_pool_jvp", [&] {
    Backend::run(NormReluPoolJvpArgs<scalar_t>{
        sizes.shape, dz_.const_data_ptr<scalar_t>(), dweight_.const_data_ptr<scalar_t>(),
        dbias_.const_data_ptr<scalar_t>(), z_.const_data_ptr<scalar_t>(), mean_.const_data_ptr<scalar_t>(),
        rstd_.const_data_ptr<scalar_t>(), weight_.const_data_ptr<scalar_t>(), bias_.const_data_ptr<scalar_t>(),
        dy.mutable_data_ptr<scalar_t>(), dmean.mutable_data_ptr<scalar_t>(), dcov.mutable_data_ptr<scalar_t>()});
  });
  return {dy, dmean, dcov};
}

template <typename Backend>
Tensors3 norm_relu_pool_backward_jvp(const at::Tensor& grad_y, const std::optional<at::Tensor>& dgrad_y,
                                     const at::Tensor& z, const at::Tensor& dz, const at::Tensor& mean,
                                     const at::Tensor& rstd, const at::Tensor& dmean, const at::Tensor& dcov,
                                     const at::Tensor& weight, const at::Tensor& dweight, const at::Tensor& bias) {
  const typename Backend::Guard guard(z.device());
  const NormReluPoolSizes sizes(z);
  const at::Tensor z_ = z.contiguous(kChannelsLast);
  const at::Tensor grad_y_ = checked("grad_y", grad_y, z, sizes.pooled, kChannelsLast);
  at::Tensor dgrad_y_;
  if (dgrad_y.has_value()) dgrad_y_ = checked("dgrad_y", *dgrad_y, z, sizes.pooled, kChannelsLast);
  const at::Tensor dz_ = checked("dz", dz, z, sizes.full, kChannelsLast);
  const at::Tensor mean_ = checked("mean", mean, z, sizes.statistic);
  const at::Tensor rstd_ = checked("rstd", rstd, z, sizes.statistic);
  const at::Tensor dmean_ = checked("dmean", dmean, z, sizes.statistic);
  const at::Tensor dcov_ = checked("dcov", dcov, z, sizes.statistic);
  const at::Tensor weight_ = checked("weight", weight, z, sizes.channel);
  const at::Tensor dweight_ = checked("dweight", dweight, z, sizes.channel);
  const at::Tensor bias_ = checked("bias", bias, z, sizes.channel);
  at::Tensor dgrad_z = sizes.empty_image(z, sizes.full);
  at::Tensor dgrad_weight = at::empty(sizes.statistic, z.options());
  at::Tensor dgrad_bias = at::empty(sizes.statistic, z.options());
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "norm_relu_pool_backward_jvp", [&] {
    Backend::run(NormReluPoolBackwardJvpArgs<scalar_t>{
        sizes.shape, grad_y_.const_data_ptr<scalar_t>(),
        dgrad_y_.defined() ? dgrad_y_.const_data_ptr<scalar_t>() : nullptr, z_.const_data_ptr<scalar_t>(),
        dz_.const_data_ptr<scalar_t>(), mean_.const_data_ptr<scalar_t>(), rstd_.const_data_ptr<scalar_t>(),
        dmean_.const_data_ptr<scalar_t>(), dcov_.const_data_ptr<scalar_t>(), weight_.const_data_ptr<scalar_t>(),
        dweight_.const_data_ptr<scalar_t>(), bias_.const_data_ptr<scalar_t>(), dgrad_z.mutable_data_ptr<scalar_t>(),
        dgrad_weight.mutable_data_ptr<scalar_t>(), dgrad_bias.mutable_data_ptr<scalar_t>()});
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
