// What every op checks before it reads memory or computes with sizes: tensors, numbers, products that overflow.
//
// An op is called from Python with whatever its schema lets pass: undefined tensors, freed storages, any integer.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <initializer_list>
#include <limits>

namespace ddfast {

// The tensor, once it is known to be dense and to have all of its memory.
inline const at::Tensor& expect_tensor(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.defined(), name, ": expected a tensor, got None");
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, name, ": expected a dense tensor, got ", tensor.layout());
  const size_t bytes = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize(),
                                                        static_cast<size_t>(tensor.storage_offset()));
  TORCH_CHECK_VALUE(tensor.numel() == 0 || (tensor.has_storage() && tensor.storage().nbytes() >= bytes), name,
                    ": expected a tensor of ", bytes, " bytes of memory, got one whose storage was freed");
  return tensor;
}

// The same of a tensor that sets the type of an op's others.
inline const at::Tensor& expect_real(const char* name, const at::Tensor& tensor, bool or_bfloat16 = false) {
  expect_tensor(name, tensor);
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || (or_bfloat16 && type == at::kBFloat16), name,
                   ": expected float32", or_bfloat16 ? ", float64 or bfloat16" : " or float64", ", got ", type);
  return tensor;
}

// The same of a tensor of these sizes, this type and this device.
inline const at::Tensor& expect_tensor(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes,
                                       at::ScalarType type, at::Device device) {
  expect_tensor(name, tensor);
  TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, ": expected ", sizes, ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, ": expected ", type, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == device, name, ": expected device ", device, ", got ", tensor.device());
  return tensor;
}

// The same, dense in the wanted layout.
inline at::Tensor checked(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType type,
                          at::Device device, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return expect_tensor(name, tensor, sizes, type, device).contiguous(format);
}

// The same of a tensor that is to match `like` in type and device.
inline at::Tensor checked(const char* name, const at::Tensor& tensor, const at::Tensor& like, at::IntArrayRef sizes,
                          at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return checked(name, tensor, sizes, like.scalar_type(), like.device(), format);
}

// Raises for int64 indices outside 0 … count − 1; not on a GPU, where looking at them would mean waiting.
inline void expect_indices(const char* name, const at::Tensor& indices, int64_t count) {
  if (!indices.is_cpu()) return;
  const at::Tensor dense = indices.contiguous();
  const int64_t* values = dense.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < dense.numel(); ++i) {
    TORCH_CHECK_VALUE(0 <= values[i] && values[i] < count, name, ": expected 0 to ", count - 1, ", got ", values[i]);
  }
}

inline void expect_range(const char* name, int64_t value, int64_t least,
                         int64_t most = std::numeric_limits<int64_t>::max()) {
  if (most == std::numeric_limits<int64_t>::max()) {
    TORCH_CHECK_VALUE(value >= least, name, ": expected at least ", least, ", got ", value);
  } else {
    TORCH_CHECK_VALUE(least <= value && value <= most, name, ": expected ", least, " to ", most, ", got ", value);
  }
}

// Of a number that is computed with in this type.
inline void expect_not_negative(const char* name, double value, at::ScalarType type = at::kDouble) {
  const double most = type == at::kDouble ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  TORCH_CHECK_VALUE(0 <= value && value <= most, name, ": expected a finite number of at least 0, got ", value);
}

// The product of sizes, none of them negative; `names` are those of the arguments that made it too large.
inline int64_t product(const char* names, std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (const int64_t factor : factors) {
    TORCH_CHECK_VALUE(!c10::mul_overflows(result, factor, &result), names,
                      ": expected sizes whose product is below 2^63, got ", at::IntArrayRef(factors));
  }
  return result;
}

// What CUDAGuard is for a device that needs none.
struct NoDeviceGuard {
  explicit NoDeviceGuard(at::Device) {}
};

}  // namespace ddfast
