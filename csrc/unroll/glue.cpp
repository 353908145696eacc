// The checkpointed unroll of a ConvNet and its adjoint, the whole loop; the formulas are those of the reference in
// ddfast/ops/unroll.py. One source for both devices.
#include "../convnet/glue.h"

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
#include "../dsa_augment/args.h"

namespace ddfast {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// What the forward sweep and the adjoint share.
struct Unroll {
  const Tensor& images;     // [I, C, H, W]
  const Tensor& labels;     // int64 [I] or [I, K]
  const Tensor& lr;         // [] or [T]
  const Optional& batches;  // int64 [T, B]
  const Optional& rows;     // [T, B, 16]
  double momentum, weight_decay;

  // All but what is a ConvNet's, which is checked before. T steps of images that S students see.
  void check(int64_t syn_steps) const {
    expect_range("syn_steps", syn_steps, 1);
    expect_not_negative("momentum", momentum, images.scalar_type());
    expect_not_negative("weight_decay", weight_decay, images.scalar_type());
    TORCH_CHECK_VALUE(images.dim() == 4, "images: expected [I, C, H, W], got ", images.sizes());
    TORCH_CHECK_VALUE(labels.dim() == (labels.is_floating_point() ? 2 : 1),
                      "labels: expected int64 [I] or target weights [I, K], got ", labels.sizes());
    expect_tensor("lr", lr);
    TORCH_CHECK_VALUE(lr.dim() == 0 || lr.sizes() == at::IntArrayRef{syn_steps}, "lr: expected [] or [", syn_steps,
                      "], got ", lr.sizes());
    TORCH_CHECK_VALUE(lr.dim() == 0 || momentum == 0, "lr: expected [] with momentum, got ", lr.sizes());
    expect_tensor("lr", lr, lr.sizes(), images.scalar_type(), images.device());
    int64_t B = images.size(0);
    if (batches.has_value()) {
      expect_tensor("batches", *batches);
      TORCH_CHECK_VALUE(batches->dim() == 2 && batches->size(0) == syn_steps && batches->size(1) > 0,
                        "batches: expected [", syn_steps, ", B], got ", batches->sizes());
      expect_tensor("batches", *batches, batches->sizes(), at::kLong, images.device());
      expect_indices("batches", *batches, images.size(0));
      B = batches->size(1);
    }
    if (rows.has_value()) {
      expect_tensor("rows", *rows, {syn_steps, B, kDsaParameters}, images.scalar_type(), images.device());
    }
  }
  Tensor take(const Tensor& values, int64_t n) const {
    return batches.has_value() ? values.index_select(0, batches->select(0, n)) : values;
  }
  Tensor minibatch(int64_t n) const {
    const Tensor taken = take(images, n);
    return rows.has_value() ? call_op<Tensor>("ddfast::dsa_augment", taken, rows->select(0, n)) : taken;
  }
  Tensor rate(int64_t n) const { return lr.dim() == 0 ? lr : lr.select(0, n); }

  // total[b_n] −= rate · slopes, in one fixed order
  void descend(Tensor& total, int64_t n, const Tensor& slopes) const {
    if (!batches.has_value()) {
      total.addcmul_(rate(n), slopes, -1);
      return;
    }
    const Tensor values = slopes * -rate(n);
    if (total.is_cpu()) {
      total.index_add_(0, batches->select(0, n), values);  // index_put_ adds with atomics on a CPU, index_add_ on CUDA
    } else {
      total.index_put_({Optional(batches->select(0, n))}, values, true);
    }
  }
};

// θ_T [S, P], θ_0 … θ_{T−1} [T, S, P], and what the last stored_steps steps kept, 2·depth − 1 tensors each
std::tuple<Tensor, Tensor, std::vector<Tensor>> unroll(const Tensor& start, const Tensor& images, const Tensor& labels,
                                                       const Tensor& lr, const Optional& batches, const Optional& rows,
                                                       int64_t syn_steps, double momentum, double weight_decay,
                                                       int64_t stored_steps, int64_t width, int64_t depth,
                                                       int64_t num_classes, int64_t border, double eps,
                                                       std::string_view precision) {
  const ArenaScope scope;
  const Unroll sweep{images, labels, lr, batches, rows, momentum, weight_decay};
  check_convnet("start", start, images, labels, width, depth, num_classes, border, eps, precision);
  sweep.check(syn_steps);
  expect_range("stored_steps", stored_steps, 0, syn_steps);
  product("syn_steps", {syn_steps, start.numel(), static_cast<int64_t>(start.itemsize())});
  Tensor states = at::empty({syn_steps, start.size(0), start.size(1)}, start.options());
  Tensor end = at::empty_like(start), velocity;
  states.select(0, 0).copy_(start);
  std::vector<Tensor> kept;
  for (int64_t n = 0; n < syn_steps; ++n) {
    const Tensor theta = states.select(0, n);
    Tensor next = n + 1 < syn_steps ? states.select(0, n + 1) : end;
    auto [loss, gradient, step] =
        convnet_grad(theta, sweep.minibatch(n), sweep.take(labels, n), n >= syn_steps - stored_steps, width, depth,
                     num_classes, border, eps, precision);
    kept.insert(kept.end(), step.begin(), step.end());
    if (weight_decay != 0) gradient.add_(theta, weight_decay);
    if (momentum != 0) {
      if (velocity.defined()) gradient.add_(velocity, momentum);
      velocity = gradient;
    }
    at::addcmul_out(next, theta, sweep.rate(n), gradient, -1);
  }
  return {end, states, kept};
}

// Gradients in start [S, P], images, labels [I, K], lr, each [0] where not wanted
std::tuple<Tensor, Tensor, Tensor, Tensor> unroll_backward(const Tensor& grad, const Tensor& states,
                                                           const Tensor& images, const Tensor& labels, const Tensor& lr,
                                                           const Optional& batches, const Optional& rows,
                                                           at::TensorList kept, std::array<bool, 4> wanted,
                                                           int64_t syn_steps, double momentum, double weight_decay,
                                                           int64_t width, int64_t depth, int64_t num_classes,
                                                           int64_t border, double eps, std::string_view precision) {
  const ArenaScope scope;
  const Unroll sweep{images, labels, lr, batches, rows, momentum, weight_decay};
  expect_tensor("states", states);
  TORCH_CHECK_VALUE(states.dim() == 3 && states.numel() > 0, "states: expected [T, S, P], got ", states.sizes());
  check_convnet("states", states.select(0, 0), images, labels, width, depth, num_classes, border, eps, precision);
  expect_range("syn_steps", syn_steps, states.size(0), states.size(0));
  sweep.check(syn_steps);
  expect_tensor("grad", grad, states.sizes().slice(1), states.scalar_type(), states.device());
  const int64_t each = 2 * depth - 1, count = static_cast<int64_t>(kept.size());  // tensors of a step, and of all
  TORCH_CHECK_VALUE(count % each == 0 && count / each <= syn_steps, "kept: expected ", each,
                    " tensors for each of at most ", syn_steps, " steps, got ", count);
  TORCH_CHECK_VALUE(!wanted[2] || labels.is_floating_point(), "wanted: expected false for int64 labels, got true");
  const auto [want_start, want_images, want_labels, want_lr] = wanted;
  const Tensor empty = at::empty({0}, states.options());
  Tensor grad_images = want_images ? at::zeros_like(images, at::MemoryFormat::Contiguous) : empty;
  Tensor grad_labels = want_labels ? at::zeros_like(labels) : empty;
  Tensor grad_lr = want_lr ? at::zeros_like(lr) : empty;
  Tensor lambda = grad, sigma;
  std::vector<Tensor> stored = kept.vec();
  for (int64_t n = syn_steps - 1; n >= 0; --n) {
    const Tensor theta = states.select(0, n);
    sigma = momentum != 0 && sigma.defined() ? lambda + momentum * sigma : lambda;
    const bool earlier = n > 0 || want_start;
    std::vector<Tensor> step;
    if (!stored.empty()) {
      step.assign(stored.end() - each, stored.end());
      stored.resize(stored.size() - each);
    }
    auto [slope, h_sigma, by_images, by_labels] =
        convnet_grad_jvp(theta, sweep.minibatch(n), sweep.take(labels, n), sigma, step,
                         {earlier, want_images, want_labels}, width, depth, num_classes, border, eps, precision);
    if (want_images) {
      if (rows.has_value()) by_images = call_op<Tensor>("ddfast::dsa_augment_backward", by_images, rows->select(0, n));
      sweep.descend(grad_images, n, by_images);
    }
    if (want_labels) sweep.descend(grad_labels, n, by_labels);
    if (want_lr) {
      Tensor total = slope.sum();
      if (weight_decay != 0) total = total + weight_decay * (theta * sigma).sum();
      if (lr.dim() == 0) {
        grad_lr.sub_(total);
      } else {
        grad_lr.select(0, n).copy_(-total);
      }
    }
    if (!earlier) continue;
    if (weight_decay != 0) h_sigma.add_(sigma, weight_decay);
    lambda = at::addcmul(lambda, sweep.rate(n), h_sigma, -1);
  }
  return {want_start ? lambda : empty, grad_images, grad_labels, grad_lr};
}

void register_unroll(torch::Library& m) {
  m.impl("unroll", &unroll);
  m.impl("unroll_backward", &unroll_backward);
}

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_unroll(m); }
#ifdef DDFAST_CUDA_VERSION
TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_unroll(m); }
#endif

}  // namespace
}  // namespace ddfast
