// What every op checks of its tensors before it takes raw pointers: type, device, sizes, layout.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace ddfast {

// The tensor, dense in the wanted layout, once it is known to have these sizes, this type and this device.
inline at::Tensor checked(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType type,
                          at::Device device, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  TORCH_CHECK(tensor.sizes() == sizes, name, ": expected ", sizes, ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, ": expected ", type, ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == device, name, ": expected device ", device, ", got ", tensor.device());
  return tensor.contiguous(format);
}

// The same of a tensor that is to match `like` in type and device.
inline at::Tensor checked(const char* name, const at::Tensor& tensor, const at::Tensor& like, at::IntArrayRef sizes,
                          at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return checked(name, tensor, sizes, like.scalar_type(), like.device(), format);
}

// What CUDAGuard is for a device that needs none.
struct NoDeviceGuard {
  explicit NoDeviceGuard(at::Device) {}
};

}  // namespace ddfast
