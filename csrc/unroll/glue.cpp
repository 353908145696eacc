// The checkpointed unroll of a ConvNet and its adjoint, the whole loop; the formulas are those of the reference in
// ddfast/ops/unroll.py. One source for both devices.
#include "../convnet/glue.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>
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

// What the last steps kept, 2·depth − 1 tensors each, given up one step after another from the last back.
class Kept {
 public:
  Kept(at::TensorList kept, int64_t depth, int64_t syn_steps) : stored_(kept.vec()), each_(2 * depth - 1) {
    const int64_t count = static_cast<int64_t>(stored_.size());
    TORCH_CHECK_VALUE(count % each_ == 0 && count / each_ <= syn_steps, "kept: expected ", each_,
                      " tensors for each of at most ", syn_steps, " steps, got ", count);
  }
  // Those of a step; none where it kept none.
  std::vector<Tensor> pop() {
    if (stored_.empty()) return {};
    const std::vector<Tensor> step(stored_.end() - each_, stored_.end());
    stored_.resize(stored_.size() - each_);
    return step;
  }

 private:
  std::vector<Tensor> stored_;
  int64_t each_;
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
  Kept stored(kept, depth, syn_steps);
  TORCH_CHECK_VALUE(!wanted[2] || labels.is_floating_point(), "wanted: expected false for int64 labels, got true");
  const auto [want_start, want_images, want_labels, want_lr] = wanted;
  const Tensor empty = at::empty({0}, states.options());
  Tensor grad_images = want_images ? at::zeros_like(images, at::MemoryFormat::Contiguous) : empty;
  Tensor grad_labels = want_labels ? at::zeros_like(labels) : empty;
  Tensor grad_lr = want_lr ? at::zeros_like(lr) : empty;
  Tensor lambda = grad, sigma;
  for (int64_t n = syn_steps - 1; n >= 0; --n) {
    const Tensor theta = states.select(0, n);
    sigma = momentum != 0 && sigma.defined() ? lambda + momentum * sigma : lambda;
    const bool earlier = n > 0 || want_start;
    const std::vector<Tensor> step = stored.pop();
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

// A step of Adam and its adjoint; the formulas are those of ddfast/ops/_adam.py.
struct Adam {
  double beta1, beta2, eps, added, own;

  void check(at::ScalarType dtype) const {
    TORCH_CHECK_VALUE(beta1 >= 0 && beta1 < 1, "beta1: expected from 0 to below 1, got ", beta1);
    TORCH_CHECK_VALUE(beta2 >= 0 && beta2 < 1, "beta2: expected from 0 to below 1, got ", beta2);
    expect_not_negative("adam_eps", eps, dtype);
    expect_not_negative("added", added, dtype);
    expect_not_negative("own", own, dtype);
  }
  Tensor decayed(const Tensor& theta, const Tensor& gradient) const {
    return added == 0 ? gradient : at::add(gradient, theta, added);
  }
  // Makes `state` [3, S, P], θ, m and v, those after the k-th step.
  void step(Tensor& state, const Tensor& gradient, const Tensor& lr, int64_t k) const {
    Tensor theta = state[0], m = state[1], v = state[2];
    const Tensor u = decayed(theta, gradient);
    m.mul_(beta1).add_(u, 1 - beta1);
    v.mul_(beta2).addcmul_(u, u, 1 - beta2);
    if (own != 0) theta.copy_(at::addcmul(theta, lr, theta, -own));
    const Tensor denominator = (v / (1 - std::pow(beta2, k))).sqrt_().add_(eps);
    theta.addcmul_(lr, (m / (1 - std::pow(beta1, k))).div_(denominator), -1);
  }
  // Of step k from θ, which led to m and v: makes the cotangents [3, S, P] of θ, m and v those before it, all but what
  // passes through the gradient, whose own is returned, with that of the learning rate.
  std::pair<Tensor, Tensor> reverse(const Tensor& theta, const Tensor& m, const Tensor& v, const Tensor& gradient,
                                    const Tensor& lr, int64_t k, Tensor& cotangents) const {
    Tensor by_theta = cotangents[0], by_m = cotangents[1], by_v = cotangents[2];
    const double correction1 = 1 - std::pow(beta1, k), correction2 = 1 - std::pow(beta2, k);
    const Tensor root = (v / correction2).sqrt_(), denominator = root + eps;
    const Tensor moved = (m / correction1).div_(denominator);
    Tensor by_lr = -(by_theta * moved).sum();
    if (own != 0) by_lr.sub_((by_theta * theta).sum(), own);
    const Tensor by_mean = (by_theta * -lr).div_(denominator);
    const Tensor by_root = (by_mean * moved).neg_().div_(root * (2 * correction2));
    by_v.add_(at::where(v > 0, by_root, at::zeros({}, v.options())));  // where v is 0, so is the gradient
    by_m.add_(by_mean / correction1);
    const Tensor direction = (by_m * (1 - beta1)).addcmul_(decayed(theta, gradient), by_v, 2 * (1 - beta2));
    if (own != 0) by_theta.copy_(at::addcmul(by_theta, lr, by_theta, -own));
    if (added != 0) by_theta.add_(direction, added);
    by_m.mul_(beta1);
    by_v.mul_(beta2);
    return {direction, by_lr};
  }
};

// θ_T, m and v after it [S, P], g_0 … g_{T−1} [T, S, P], θ, m and v that every `every`-th step begins with
// [⌈T / every⌉, 3, S, P], and what the last stored_steps steps kept
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> unroll_adam(
    const Tensor& start, const Tensor& m, const Tensor& v, const Tensor& images, const Tensor& labels, const Tensor& lr,
    const Optional& batches, const Optional& rows, int64_t syn_steps, int64_t first, int64_t every, double beta1,
    double beta2, double eps, double added, double own, int64_t stored_steps, int64_t width, int64_t depth,
    int64_t num_classes, int64_t border, double norm_eps, std::string_view precision) {
  const ArenaScope scope;
  const Unroll sweep{images, labels, lr, batches, rows, 0, 0};
  const Adam adam{beta1, beta2, eps, added, own};
  check_convnet("start", start, images, labels, width, depth, num_classes, border, norm_eps, precision);
  sweep.check(syn_steps);
  adam.check(start.scalar_type());
  expect_tensor("m", m, start.sizes(), start.scalar_type(), start.device());
  expect_tensor("v", v, start.sizes(), start.scalar_type(), start.device());
  expect_range("first", first, 0);
  expect_range("every", every, 1, syn_steps);
  expect_range("stored_steps", stored_steps, 0, syn_steps);
  product("syn_steps", {syn_steps, 4, start.numel(), static_cast<int64_t>(start.itemsize())});
  const int64_t S = start.size(0), P = start.size(1);
  Tensor gradients = at::empty({syn_steps, S, P}, start.options());
  Tensor begins = at::empty({(syn_steps - 1) / every + 1, 3, S, P}, start.options());
  Tensor state = at::stack({start, m, v});
  std::vector<Tensor> kept;
  for (int64_t n = 0; n < syn_steps; ++n) {
    if (n % every == 0) begins[n / every].copy_(state);
    auto [loss, gradient, step] =
        convnet_grad(state[0], sweep.minibatch(n), sweep.take(labels, n), n >= syn_steps - stored_steps, width, depth,
                     num_classes, border, norm_eps, precision);
    kept.insert(kept.end(), step.begin(), step.end());
    gradients[n].copy_(gradient);
    adam.step(state, gradient, sweep.rate(n), first + n + 1);
  }
  return {state[0].clone(), state[1].clone(), state[2].clone(), gradients, begins, kept};
}

// Gradients in start, m, v [S, P], images, labels [I, K], lr, each [0] where not wanted
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> unroll_adam_backward(
    const Tensor& grad, const Tensor& by_m, const Tensor& by_v, const Tensor& gradients, const Tensor& begins,
    const Tensor& images, const Tensor& labels, const Tensor& lr, const Optional& batches, const Optional& rows,
    at::TensorList kept, std::array<bool, 6> wanted, int64_t syn_steps, int64_t first, int64_t every, double beta1,
    double beta2, double eps, double added, double own, int64_t width, int64_t depth, int64_t num_classes,
    int64_t border, double norm_eps, std::string_view precision) {
  const ArenaScope scope;
  const Unroll sweep{images, labels, lr, batches, rows, 0, 0};
  const Adam adam{beta1, beta2, eps, added, own};
  expect_tensor("gradients", gradients);
  TORCH_CHECK_VALUE(gradients.dim() == 3 && gradients.numel() > 0, "gradients: expected [T, S, P], got ",
                    gradients.sizes());
  check_convnet("gradients", gradients[0], images, labels, width, depth, num_classes, border, norm_eps, precision);
  expect_range("syn_steps", syn_steps, gradients.size(0), gradients.size(0));
  sweep.check(syn_steps);
  adam.check(gradients.scalar_type());
  expect_range("first", first, 0);
  expect_range("every", every, 1, syn_steps);
  const int64_t S = gradients.size(1), P = gradients.size(2), segments = (syn_steps - 1) / every + 1;
  expect_tensor("begins", begins, {segments, 3, S, P}, gradients.scalar_type(), gradients.device());
  expect_tensor("grad", grad, {S, P}, gradients.scalar_type(), gradients.device());
  expect_tensor("by_m", by_m, {S, P}, gradients.scalar_type(), gradients.device());
  expect_tensor("by_v", by_v, {S, P}, gradients.scalar_type(), gradients.device());
  Kept stored(kept, depth, syn_steps);
  const auto [want_start, want_m, want_v, want_images, want_labels, want_lr] = wanted;
  TORCH_CHECK_VALUE(!want_labels || labels.is_floating_point(), "wanted: expected false for int64 labels, got true");
  const Tensor empty = at::empty({0}, gradients.options()), minus_one = -at::ones({}, gradients.options());
  const Unroll adding{images, labels, minus_one, batches, rows, 0, 0};
  Tensor grad_images = want_images ? at::zeros_like(images, at::MemoryFormat::Contiguous) : empty;
  Tensor grad_labels = want_labels ? at::zeros_like(labels) : empty;
  Tensor grad_lr = want_lr ? at::zeros_like(lr) : empty;
  Tensor cotangents = at::stack({grad, by_m, by_v});
  std::vector<Tensor> states;
  for (int64_t place = segments - 1; place >= 0; --place) {
    const int64_t begin = place * every, end = std::min(begin + every, syn_steps);
    states.assign(1, begins[place]);  // θ, m and v before each step of the segment, and after the last
    for (int64_t n = begin; n < end; ++n) {
      Tensor state = states.back().clone();
      adam.step(state, gradients[n], sweep.rate(n), first + n + 1);
      states.push_back(state);
    }
    for (int64_t n = end - 1; n >= begin; --n) {
      const Tensor after = states.back();
      states.pop_back();
      const Tensor theta = states.back()[0];
      const auto [direction, by_lr] =
          adam.reverse(theta, after[1], after[2], gradients[n], sweep.rate(n), first + n + 1, cotangents);
      const bool earlier = n > 0 || want_start;
      const std::vector<Tensor> step = stored.pop();
      auto [slope, h_sigma, by_images, by_labels] =
          convnet_grad_jvp(theta, sweep.minibatch(n), sweep.take(labels, n), direction, step,
                           {earlier, want_images, want_labels}, width, depth, num_classes, border, norm_eps, precision);
      if (want_images) {
        if (rows.has_value())
          by_images = call_op<Tensor>("ddfast::dsa_augment_backward", by_images, rows->select(0, n));
        adding.descend(grad_images, n, by_images);
      }
      if (want_labels) adding.descend(grad_labels, n, by_labels);
      if (want_lr) (lr.dim() == 0 ? grad_lr : grad_lr.select(0, n)).add_(by_lr);
      if (earlier) cotangents[0].add_(h_sigma);
    }
  }
  return {want_start ? cotangents[0].clone() : empty,
          want_m ? cotangents[1].clone() : empty,
          want_v ? cotangents[2].clone() : empty,
          grad_images,
          grad_labels,
          grad_lr};
}

void register_unroll(torch::Library& m) {
  m.impl("unroll", &unroll);
  m.impl("unroll_backward", &unroll_backward);
  m.impl("unroll_adam", &unroll_adam);
  m.impl("unroll_adam_backward", &unroll_adam_backward);
}

TORCH_LIBRARY_IMPL(ddfast, CPU, m) { register_unroll(m); }
#ifdef DDFAST_CUDA_VERSION
TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { register_unroll(m); }
#endif

}  // namespace
}  // namespace ddfast
