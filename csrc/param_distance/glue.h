// Glue of param_distance, one for both devices: Backend::run(args) starts the kernel that takes these args.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "../common/checks.h"
#include "args.h"

namespace ddfast {

struct ParamDistanceInputs {
  at::Tensor student, target, start;  // [S, P]
  at::Tensor weight;                  // [P] or undefined
  int64_t S, P;

  ParamDistanceInputs(const at::Tensor& student_, const at::Tensor& target_, const at::Tensor& start_,
                      const std::optional<at::Tensor>& weight_) {
    TORCH_CHECK_VALUE(student_.dim() == 2 && student_.numel() > 0, "student: expected [S, P], got ", student_.sizes());
    S = student_.size(0);
    P = student_.size(1);
    student = student_.contiguous();
    target = checked("target", target_, student_, {S, P});
    start = checked("start", start_, student_, {S, P});
    if (weight_.has_value()) weight = checked("weight", *weight_, student_, {P});
  }

  template <typename T>
  const T* weight_or_null() const {
    return weight.defined() ? weight.const_data_ptr<T>() : nullptr;
  }
};

// Gradients in student, target, start: [S, P] where wanted, else [0].
struct ParamDistanceGradients {
  std::array<at::Tensor, 3> tensors;
  std::array<bool, 3> wanted;

  ParamDistanceGradients(const ParamDistanceInputs& in, std::array<bool, 3> wanted_) : wanted(wanted_) {
    for (int i = 0; i < 3; ++i) {
      tensors[i] = wanted[i] ? at::empty({in.S, in.P}, in.student.options()) : at::empty({0}, in.student.options());
    }
  }

  template <typename T>
  T* pointer(int i) const {
    return wanted[i] ? tensors[i].mutable_data_ptr<T>() : nullptr;
  }
  std::tuple<at::Tensor, at::Tensor, at::Tensor> tuple() const { return {tensors[0], tensors[1], tensors[2]}; }
};

template <typename Backend>
std::tuple<at::Tensor, at::Tensor> param_distance(const at::Tensor& student, const at::Tensor& target,
                                                  const at::Tensor& start, const std::optional<at::Tensor>& weight) {
  const typename Backend::Guard guard(expect_real("student", student).device());
  const ParamDistanceInputs in(student, target, start, weight);
  at::Tensor distance = at::empty({in.S}, in.student.options());
  at::Tensor denominator = at::empty({in.S}, in.student.options());
  at::Tensor partial = at::empty({in.S, Backend::chunks(in.P), 2}, in.student.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(in.student.scalar_type(), "param_distance", [&] {
    Backend::run(ParamDistanceArgs<scalar_t>{
        in.S, in.P, in.student.const_data_ptr<scalar_t>(), in.target.const_data_ptr<scalar_t>(),
        in.start.const_data_ptr<scalar_t>(), in.weight_or_null<scalar_t>(), partial.mutable_data_ptr<double>(),
        distance.mutable_data_ptr<scalar_t>(), denominator.mutable_data_ptr<scalar_t>()});
  });
  return {distance, denominator};
}

template <typename Backend>
std::tuple<at::Tensor, at::Tensor, at::Tensor> param_distance_backward(
    const at::Tensor& grad, const at::Tensor& student, const at::Tensor& target, const at::Tensor& start,
    const std::optional<at::Tensor>& weight, const at::Tensor& distance, const at::Tensor& denominator,
    std::array<bool, 3> wanted) {
  const typename Backend::Guard guard(expect_real("student", student).device());
  const ParamDistanceInputs in(student, target, start, weight);
  const at::Tensor grad_ = checked("grad", grad, in.student, {in.S});
  const at::Tensor distance_ = checked("distance", distance, in.student, {in.S});
  const at::Tensor denominator_ = checked("denominator", denominator, in.student, {in.S});
  const ParamDistanceGradients out(in, wanted);
  AT_DISPATCH_FLOATING_TYPES(in.student.scalar_type(), "param_distance_backward", [&] {
    Backend::run(ParamDistanceBackwardArgs<scalar_t>{
        in.S, in.P, grad_.const_data_ptr<scalar_t>(), in.student.const_data_ptr<scalar_t>(),
        in.target.const_data_ptr<scalar_t>(), in.start.const_data_ptr<scalar_t>(), in.weight_or_null<scalar_t>(),
        distance_.const_data_ptr<scalar_t>(), denominator_.const_data_ptr<scalar_t>(), out.pointer<scalar_t>(0),
        out.pointer<scalar_t>(1), out.pointer<scalar_t>(2)});
  });
  return out.tuple();
}

template <typename Backend>
void register_param_distance(torch::Library& m) {
  m.impl("param_distance", &param_distance<Backend>);
  m.impl("param_distance_backward", &param_distance_backward<Backend>);
}

}  // namespace ddfast
