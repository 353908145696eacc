#include "first_block.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "../conv3x3/patches.h"
#include "../conv3x3/patches_cpu.h"
#include "../conv3x3/spread.h"
#include "../norm_relu_pool/cpu.h"

namespace ddfast {
namespace {

using at::Tensor;

float* out(const Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }

int64_t parts_of(int64_t B) { return std::min<int64_t>(at::get_num_threads(), B); }

// The images spread over threads, and what the kernels of one image read and write.
class Images {
 public:
  Images(const FirstBlock& block, int64_t maps) : block_(block), groups_(block.x.size(1) / block.w.size(1)) {
    const int64_t O = block.w.size(0);
    B_ = block.x.size(0);
    one_ = patch_args(block.x, groups_, block.w.size(1), O / groups_);
    one_.shape.B = 1;
    norm_ = {1, O, one_.shape.H, one_.shape.W};
    pixels_ = norm_.pixels(), pooled_ = norm_.pooled_height() * norm_.pooled_width();
    each_ = round_up(pixels_ * O, kLine);
    maps_ = at::empty({parts_of(B_), maps, each_}, block.x.options().memory_format(std::nullopt));
    count_ = maps;
  }

  // body(part, image) for all images, those of a part in turn.
  template <typename Body>
  void for_each(const Body& body) const {
    const int64_t parts = maps_.size(0);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t b = part * B_ / parts; b < (part + 1) * B_ / parts; ++b) body(part, b);
      }
    });
  }

  float* map(int64_t part, int64_t index) const { return out(maps_) + (part * count_ + index) * each_; }
  const InstanceShape& shape() const { return norm_; }
  int64_t pixels(int64_t b) const { return b * pixels_ * norm_.C; }  // where an image's map begins
  int64_t pooled(int64_t b) const { return b * pooled_ * norm_.C; }  // and its pooled one
  int64_t statistic(int64_t b) const { return b * norm_.C; }
  Tensor sums() const {
    PatchArgs args = one_;
    args.parts = maps_.size(0);
    return patch_sums(args, block_.x);
  }
  Tensor weight(const Tensor& sums) const { return weight_of_sums(sums, one_); }

  void convolve(int64_t b, const Tensor& packed, float* z) const {
    PatchArgs args = one_;
    args.maps[0] = images(b), args.filters[0] = data(packed), args.out = z;
    run_best<RunPatchForward, float>(args, 0, args.tasks());
  }
  void add_weight(int64_t part, int64_t b, const float* g, const Tensor& sums) const {
    PatchArgs args = one_;
    args.maps[0] = images(b), args.g[0] = g, args.out = out(sums.select(0, part));
    args.add = b > part * B_ / maps_.size(0);
    run_best<RunPatchWeight, float>(args, 0, args.sum_tasks());
  }
  // g ∗ᵀ w + g2 ∗ᵀ w2 of an image, [H, W, G·C]
  void transpose(int64_t b, const float* g, const Tensor& packed, const float* g2, const Tensor& packed2,
                 float* grad) const {
    PatchArgs args = one_;
    args.terms = 2;
    args.maps[0] = g, args.filters[0] = data(packed), args.maps[1] = g2, args.filters[1] = data(packed2);
    args.out = grad + b * pixels_ * groups_ * one_.shape.C;
    run_best<RunPatchInput, float>(args, 0, args.tasks());
  }
  template <template <typename, int> class Face, typename Args>
  void normalise(const Args& args) const {
    run_best<Face, float>(args, 0, norm_relu_pool_tasks<float>(norm_));
  }

 private:
  const float* images(int64_t b) const { return data(block_.x) + b * pixels_ * groups_ * one_.shape.C; }

  const FirstBlock& block_;
  int64_t groups_, B_, pixels_, pooled_, each_, count_;
  PatchArgs one_;  // of one image
  InstanceShape norm_;
  Tensor maps_;  // [parts, maps of an image, pixels · channels]
};

}  // namespace

bool first_block_applies(const Tensor& x, const Tensor& w) {
  if (!patches_apply(x, w.size(1), w.size(0) / (x.size(1) / w.size(1)))) return false;
  const int64_t threads = at::get_num_threads(), rounds = (x.size(0) + threads - 1) / threads;
  return 5 * rounds * threads <= 8 * x.size(0);  // else norm_relu_pool and conv3x3 share one image's work
}

FirstForward first_forward(const FirstBlock& block, double eps, const FirstTangents* tangents) {
  const Images images(block, tangents ? 2 : 1);
  const InstanceShape& one = images.shape();
  const int64_t B = block.x.size(0), C = one.C;
  const auto plain = block.x.options().memory_format(std::nullopt);
  const auto pooled = [&] {
    return at::empty({B, C, one.pooled_height(), one.pooled_width()},
                     plain.memory_format(at::MemoryFormat::ChannelsLast));
  };
  const auto statistic = [&] { return at::empty({B, C}, plain); };
  FirstForward result{pooled(), statistic(), statistic(), {}, {}, {}};
  if (tangents) result.dy = pooled(), result.dmean = statistic(), result.dcov = statistic();
  const int64_t groups = block.x.size(1) / block.w.size(1);
  const Tensor packed = pack_patches(block.w, groups, false),
               dpacked = tangents ? pack_patches(tangents->dw, groups, false) : packed;
  images.for_each([&](int64_t part, int64_t b) {
    float* z = images.map(part, 0);
    images.convolve(b, packed, z);
    float *mean = out(result.mean) + images.statistic(b), *rstd = out(result.rstd) + images.statistic(b);
    images.normalise<NormReluPool>(NormReluPoolArgs<float>{one, z, data(block.gamma), data(block.beta), eps,
                                                           out(result.y) + images.pooled(b), mean, rstd});
    if (!tangents) return;
    float* dz = images.map(part, 1);
    images.convolve(b, dpacked, dz);
    images.normalise<NormReluPoolJvp>(
        NormReluPoolJvpArgs<float>{one, dz, data(tangents->dgamma), data(tangents->dbeta), z, mean, rstd,
                                   data(block.gamma), data(block.beta), out(result.dy) + images.pooled(b),
                                   out(result.dmean) + images.statistic(b), out(result.dcov) + images.statistic(b)});
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> first_backward(const FirstBlock& block, const FirstForward& forward,
                                                  const Tensor& g_y) {
  const Images images(block, 2);
  const InstanceShape& one = images.shape();
  const Tensor g_gamma = at::empty_like(forward.mean), g_beta = at::empty_like(forward.mean), sums = images.sums();
  const Tensor packed = pack_patches(block.w, block.x.size(1) / block.w.size(1), false);
  images.for_each([&](int64_t part, int64_t b) {
    float *z = images.map(part, 0), *g_z = images.map(part, 1);
    const int64_t at = images.statistic(b);
    images.convolve(b, packed, z);
    images.normalise<NormReluPoolBackward>(NormReluPoolBackwardArgs<float>{
        one, data(g_y) + images.pooled(b), z, data(forward.mean) + at, data(forward.rstd) + at, data(block.gamma),
        data(block.beta), g_z, out(g_gamma) + at, out(g_beta) + at});
    images.add_weight(part, b, g_z, sums);
  });
  return {images.weight(sums), g_gamma.sum(0), g_beta.sum(0)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> first_backward_jvp(const FirstBlock& block, const FirstTangents& tangents,
                                                              const FirstForward& forward, const Tensor& g_y,
                                                              const Tensor& dg_y, bool want_parameters, bool want_x) {
  const Images images(block, 4);
  const InstanceShape& one = images.shape();
  const Tensor by_gamma = at::empty_like(forward.mean), by_beta = at::empty_like(forward.mean), sums = images.sums();
  const Tensor dx = want_x ? at::empty_like(block.x) : Tensor();
  const int64_t groups = block.x.size(1) / block.w.size(1);
  const Tensor packed = pack_patches(block.w, groups, false), dpacked = pack_patches(tangents.dw, groups, false);
  const Tensor transposed = want_x ? pack_patches(block.w, groups, true) : packed;
  const Tensor dtransposed = want_x ? pack_patches(tangents.dw, groups, true) : packed;
  const Tensor scratch = at::empty({parts_of(block.x.size(0)), 2, one.C}, forward.mean.options());
  images.for_each([&](int64_t part, int64_t b) {
    float *z = images.map(part, 0), *dz = images.map(part, 1), *g_z = images.map(part, 2), *dg_z = images.map(part, 3);
    const int64_t at = images.statistic(b);
    const float *g = data(g_y) + images.pooled(b), *mean = data(forward.mean) + at, *rstd = data(forward.rstd) + at;
    images.convolve(b, packed, z);
    images.convolve(b, dpacked, dz);
    if (want_x) {
      float* sum = out(scratch) + part * 2 * one.C;  // not wanted
      images.normalise<NormReluPoolBackward>(NormReluPoolBackwardArgs<float>{one, g, z, mean, rstd, data(block.gamma),
                                                                             data(block.beta), g_z, sum, sum + one.C});
    }
    images.normalise<NormReluPoolBackwardJvp>(NormReluPoolBackwardJvpArgs<float>{
        one, g, data(dg_y) + images.pooled(b), z, dz, mean, rstd, data(forward.dmean) + at, data(forward.dcov) + at,
        data(block.gamma), data(tangents.dgamma), data(block.beta), dg_z, out(by_gamma) + at, out(by_beta) + at});
    if (want_parameters) images.add_weight(part, b, dg_z, sums);
    if (want_x) images.transpose(b, dg_z, transposed, g_z, dtransposed, out(dx));
  });
  if (!want_parameters) return {Tensor(), Tensor(), Tensor(), dx};
  return {images.weight(sums), by_gamma.sum(0), by_beta.sum(0), dx};
}

}  // namespace ddfast
