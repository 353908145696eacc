// Glue of dsa_augment, one for both devices: Backend::run(args) starts the kernel that takes these args.
//
// Images may have any layout; what comes out is channels-last, the gradient contiguous. Backend::partials(shape)
// numbers are scratch memory.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "../common/checks.h"
#include "args.h"

namespace ddfast {

template <typename T, typename Data>
Maps<T> maps_of(const at::Tensor& tensor, Data* data) {
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

inline ImageShape image_shape(const char* name, const at::Tensor& images) {
  TORCH_CHECK_VALUE(images.dim() == 4 && images.numel() > 0 && images.size(2) >= 2 && images.size(3) >= 2, name,
                    ": expected [B, C, H, W] with H and W at least 2, got ", images.sizes());
  return {images.size(0), images.size(1), images.size(2), images.size(3)};
}

template <typename Backend>
at::Tensor dsa_scratch(const at::Tensor& images, const ImageShape& shape) {
  return at::empty({Backend::partials(shape)}, images.options().dtype(at::kDouble));
}

template <typename Backend, bool kLinear>
at::Tensor dsa_augment(const at::Tensor& images, const at::Tensor& rows) {
  const char* name = kLinear ? "dimages" : "images";
  const typename Backend::Guard guard(expect_real(name, images).device());
  const ImageShape shape = image_shape(name, images);
  const at::Tensor rows_ = checked("rows", rows, images, {shape.N, kDsaParameters});
  // one channel too gets the strides of channels-last, by which convolutions choose their layout
  at::Tensor out =
      at::empty_strided(images.sizes(), {shape.C * shape.H * shape.W, 1, shape.W * shape.C, shape.C}, images.options());
  const at::Tensor partial = dsa_scratch<Backend>(images, shape);
  AT_DISPATCH_FLOATING_TYPES(images.scalar_type(), "dsa_augment", [&] {
    Backend::run(DsaAugmentArgs<scalar_t>{
        shape, kLinear, maps_of<const scalar_t>(images, images.const_data_ptr<scalar_t>()),
        rows_.const_data_ptr<scalar_t>(), maps_of<scalar_t>(out, out.mutable_data_ptr<scalar_t>()),
        partial.mutable_data_ptr<double>()});
  });
  return out;
}

template <typename Backend>
at::Tensor dsa_augment_backward(const at::Tensor& grad, const at::Tensor& rows) {
  const typename Backend::Guard guard(expect_real("grad", grad).device());
  const ImageShape shape = image_shape("grad", grad);
  const at::Tensor rows_ = checked("rows", rows, grad, {shape.N, kDsaParameters});
  at::Tensor grad_images = at::empty(grad.sizes(), grad.options().memory_format(at::MemoryFormat::Contiguous));
  const at::Tensor partial = dsa_scratch<Backend>(grad, shape);
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "dsa_augment_backward", [&] {
    Backend::run(DsaAugmentBackwardArgs<scalar_t>{
        shape, maps_of<const scalar_t>(grad, grad.const_data_ptr<scalar_t>()), rows_.const_data_ptr<scalar_t>(),
        maps_of<scalar_t>(grad_images, grad_images.mutable_data_ptr<scalar_t>()), partial.mutable_data_ptr<double>()});
  });
  return grad_images;
}

template <typename Backend>
void register_dsa_augment(torch::Library& m) {
  m.impl("dsa_augment", &dsa_augment<Backend, false>);
  m.impl("dsa_augment_jvp", &dsa_augment<Backend, true>);
  m.impl("dsa_augment_backward", &dsa_augment_backward<Backend>);
}

}  // namespace ddfast
