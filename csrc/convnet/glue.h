// The ConvNet on flat parameters, for the ops that are made of it; see convnet.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

namespace ddfast {

template <typename T>
using Passed = std::conditional_t<std::is_arithmetic_v<T>, T, const T&>;

// An op of ddfast, on whichever device, or its reference where there is no kernel.
template <typename Result, typename... Arguments>
Result call_op(const char* name, const Arguments&... arguments) {
  using Signature = Result(Passed<Arguments>...);
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>().call(arguments...);
}

// What the ops below check of their arguments; `name` is that of the parameters.
void check_convnet(const char* name, const at::Tensor& parameters, const at::Tensor& images, const at::Tensor& labels,
                   int64_t width, int64_t depth, int64_t num_classes, int64_t border, double eps,
                   std::string_view precision);

std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>> convnet_grad(
    const at::Tensor& parameters, const at::Tensor& images, const at::Tensor& labels, bool keep, int64_t width,
    int64_t depth, int64_t num_classes, int64_t border, double eps, std::string_view precision);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> convnet_grad_jvp(
    const at::Tensor& parameters, const at::Tensor& images, const at::Tensor& labels, const at::Tensor& direction,
    at::TensorList kept, std::array<bool, 3> wanted, int64_t width, int64_t depth, int64_t num_classes, int64_t border,
    double eps, std::string_view precision);

}  // namespace ddfast
