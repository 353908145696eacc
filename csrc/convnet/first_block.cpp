#include "first_block.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "../common/arena.h"
#include "../conv3x3/patches.h"
#include "../conv3x3/patches_cpu.h"
#include "../conv3x3/spread.h"
#include "../norm_relu_pool/cpu.h"

namespace ddfast {
namespace {

using at::Tensor;

float* out(const Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }

// The images spread over threads, and what the kernels of one image and one student read and write. Where panels of
// the kernels would hold the channels of several students, all students are one.
class Images {
 public:
  // `pooled` more maps where pooled ones are copied
  Images(const FirstBlock& block, int64_t maps, int64_t pooled) : block_(block) {
    const int64_t C = block.w.size(1), width = block.w.size(0) / block.students, groups = block.x.size(1) / C;
    one_ = patch_args(block.x, 1, C, width);
    if (width % one_.panel == 0) {
      slices_ = block.students;
      own_ = groups > 1;
    } else {
      one_ = patch_args(block.x, groups, C, block.w.size(0) / groups);
    }
    one_.shape.B = 1;
    one_.pitch = groups * C;
    C_ = block.w.size(0), B_ = block.x.size(0);
    shape = {1, C_ / slices_, one_.shape.H, one_.shape.W};
    pixels_ = shape.pixels(), pooled_ = shape.pooled_height() * shape.pooled_width();
    each_ = round_up(pixels_ * shape.C, kLine);
    count_ = maps + (slices_ > 1 ? pooled : 0);
    const int64_t parts = first_block_parts(B_, C, C_ / groups);
    maps_ = empty_maps({parts, count_, each_}, options());
  }

  // body(part, image, slice) for all, those of a part in turn.
  template <typename Body>
  void for_each(const Body& body) const {
    at::parallel_for(0, parts(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t b = first(part); b < first(part + 1); ++b) {
          for (int64_t slice = 0; slice < slices_; ++slice) body(At{part, b, slice});
        }
      }
    });
  }

  struct At {
    int64_t part, image, slice;
  };

  int64_t parts() const { return maps_.size(0); }
  at::TensorOptions options() const { return block_.x.options().memory_format(std::nullopt); }
  Tensor empty_pooled() const {
    return empty_maps({B_, C_, shape.pooled_height(), shape.pooled_width()},
                      options().memory_format(at::MemoryFormat::ChannelsLast));
  }
  Tensor empty_statistic() const { return at::empty({B_, C_}, options()); }

  // Of one image and slice: a map that belongs to the part; what there is per channel.
  float* map(const At& at, int64_t index) const { return out(maps_) + (at.part * count_ + index) * each_; }
  const float* channels(const At& at, const Tensor& all) const { return data(all) + at.slice * shape.C; }
  float* statistic(const At& at, const Tensor& all) const { return out(all) + at.image * C_ + at.slice * shape.C; }
  // A pooled map, copied where the channels of other students lie between.
  const float* pooled(const At& at, const Tensor& all, int64_t index) const {
    const float* from = data(all) + at.image * pooled_ * C_ + at.slice * shape.C;
    if (slices_ == 1) return from;
    float* to = map(at, index);
    for (int64_t p = 0; p < pooled_; ++p) std::memcpy(to + p * shape.C, from + p * C_, shape.C * sizeof(float));
    return to;
  }
  // Where a pooled map is written, and the copy after that.
  float* pooled_to(const At& at, const Tensor& all, int64_t index) const {
    return slices_ == 1 ? out(all) + at.image * pooled_ * C_ : map(at, index);
  }
  void write_pooled(const At& at, const float* from, const Tensor& all) const {
    if (slices_ == 1) return;
    float* to = out(all) + at.image * pooled_ * C_ + at.slice * shape.C;
    for (int64_t p = 0; p < pooled_; ++p) std::memcpy(to + p * C_, from + p * shape.C, shape.C * sizeof(float));
  }

  Tensor packed(const Tensor& w, bool transposed) const {
    return pack_patches(w, slices_ * one_.shape.groups, transposed);
  }
  Tensor sums() const {
    PatchArgs args = one_;
    args.parts = parts(), args.shape.groups *= slices_;
    return patch_sums(args, block_.x);
  }
  Tensor weight(const Tensor& sums) const {
    PatchArgs args = one_;
    args.shape.groups *= slices_;
    return weight_of_sums(sums, args);
  }

  void convolve(const At& at, const Tensor& packed, float* z) const {
    PatchArgs args = one_;
    args.maps[0] = data(block_.x) + pixel(at), args.filters[0] = filters(at, packed), args.out = z;
    run_best<RunPatchForward, float>(args, 0, args.tasks());
  }
  void add_weight(const At& at, const float* g, const Tensor& sums) const {
    PatchArgs args = one_;
    args.maps[0] = data(block_.x) + pixel(at), args.g[0] = g;
    args.out = out(sums.select(0, at.part)) + at.slice * args.sum_stride();
    args.add = at.image > first(at.part);
    run_best<RunPatchWeight, float>(args, 0, args.sum_tasks());
  }
  // dx (+)= g ∗ᵀ w, or g ∗ᵀ w + g2 ∗ᵀ w2
  void transpose(const At& at, const float* g, const Tensor& packed, const Tensor& dx, const float* g2 = nullptr,
                 const Tensor& packed2 = {}) const {
    PatchArgs args = one_;
    args.maps[0] = g, args.filters[0] = filters(at, packed);
    if (g2 != nullptr) args.terms = 2, args.maps[1] = g2, args.filters[1] = filters(at, packed2);
    args.out = out(dx) + pixel(at);
    args.add = at.slice > 0 && !own_;
    run_best<RunPatchInput, float>(args, 0, args.tasks());
  }
  template <template <typename, int> class Face, typename Args>
  void normalise(const Args& args) const {
    run_best<Face, float>(args, 0, norm_relu_pool_tasks<float>(shape));
  }

  InstanceShape shape;  // of a slice's map

 private:
  int64_t first(int64_t part) const { return part * B_ / parts(); }
  int64_t pixel(const At& at) const { return at.image * pixels_ * one_.pitch + (own_ ? at.slice * one_.shape.C : 0); }
  const float* filters(const At& at, const Tensor& packed) const {
    return data(packed) + at.slice * (packed.numel() / slices_);
  }

  const FirstBlock& block_;
  int64_t count_, slices_ = 1, C_, B_, pixels_, pooled_, each_;
  bool own_ = false;  // images of each slice
  PatchArgs one_;     // of one image and slice
  Tensor maps_;       // [parts, maps, pixels · channels]
};

using At = Images::At;

}  // namespace

int64_t first_block_parts(int64_t images, int64_t inputs, int64_t outputs) {
  if (!patches_apply(inputs, outputs)) return 0;
  const int64_t threads = at::get_num_threads(), rounds = (images + threads - 1) / threads;
  if (5 * rounds * threads > 8 * images) return 0;  // norm_relu_pool and conv3x3 share one image's work
  return std::min(threads, images);
}

bool first_block_applies(const Tensor& x, const Tensor& w) {
  const int64_t groups = x.size(1) / w.size(1);
  return is_fast(x) && first_block_parts(x.size(0), w.size(1), w.size(0) / groups) > 0;
}

FirstForward first_forward(const FirstBlock& block, double eps, const FirstTangents* tangents) {
  const Images images(block, 2, 1);  // z and its tangent
  FirstForward result{images.empty_pooled(), images.empty_statistic(), images.empty_statistic(), {}, {}, {}};
  if (tangents) {
    result.dy = images.empty_pooled();
    result.dmean = images.empty_statistic(), result.dcov = images.empty_statistic();
  }
  const Tensor packed = images.packed(block.w, false), dpacked = tangents ? images.packed(tangents->dw, false) : packed;
  images.for_each([&](const At& at) {
    float *z = images.map(at, 0), *y = images.pooled_to(at, result.y, 2);
    const float *gamma = images.channels(at, block.gamma), *beta = images.channels(at, block.beta);
    float *mean = images.statistic(at, result.mean), *rstd = images.statistic(at, result.rstd);
    images.convolve(at, packed, z);
    images.normalise<NormReluPool>(NormReluPoolArgs<float>{images.shape, z, gamma, beta, eps, y, mean, rstd});
    images.write_pooled(at, y, result.y);
    if (!tangents) return;
    float *dz = images.map(at, 1), *dy = images.pooled_to(at, result.dy, 2);
    images.convolve(at, dpacked, dz);
    images.normalise<NormReluPoolJvp>(NormReluPoolJvpArgs<float>{
        images.shape, dz, images.channels(at, tangents->dgamma), images.channels(at, tangents->dbeta), z, mean, rstd,
        gamma, beta, dy, images.statistic(at, result.dmean), images.statistic(at, result.dcov)});
    images.write_pooled(at, dy, result.dy);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> first_backward(const FirstBlock& block, const FirstForward& forward,
                                                  const Tensor& g_y) {
  const Images images(block, 2, 1);
  const Tensor g_gamma = images.empty_statistic(), g_beta = images.empty_statistic(), sums = images.sums();
  const Tensor packed = images.packed(block.w, false);
  images.for_each([&](const At& at) {
    float *z = images.map(at, 0), *g_z = images.map(at, 1);
    images.convolve(at, packed, z);
    images.normalise<NormReluPoolBackward>(NormReluPoolBackwardArgs<float>{
        images.shape, images.pooled(at, g_y, 2), z, images.statistic(at, forward.mean),
        images.statistic(at, forward.rstd), images.channels(at, block.gamma), images.channels(at, block.beta), g_z,
        images.statistic(at, g_gamma), images.statistic(at, g_beta)});
    images.add_weight(at, g_z, sums);
  });
  return {images.weight(sums), g_gamma.sum(0), g_beta.sum(0)};
}

Tensor first_backward_input(const FirstBlock& block, const FirstForward& forward, const Tensor& g_y) {
  const Images images(block, 2, 1);
  const Tensor packed = images.packed(block.w, false), transposed = images.packed(block.w, true);
  const Tensor dx = at::empty_like(block.x);
  const Tensor unused = at::empty({images.parts(), 2, images.shape.C}, images.options());
  images.for_each([&](const At& at) {
    float *z = images.map(at, 0), *g_z = images.map(at, 1), *sum = out(unused) + at.part * 2 * images.shape.C;
    images.convolve(at, packed, z);
    images.normalise<NormReluPoolBackward>(
        NormReluPoolBackwardArgs<float>{images.shape, images.pooled(at, g_y, 2), z, images.statistic(at, forward.mean),
                                        images.statistic(at, forward.rstd), images.channels(at, block.gamma),
                                        images.channels(at, block.beta), g_z, sum, sum + images.shape.C});
    images.transpose(at, g_z, transposed, dx);
  });
  return dx;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> first_backward_jvp(const FirstBlock& block, const FirstTangents& tangents,
                                                              const FirstForward& forward, const Tensor& g_y,
                                                              const Tensor& dg_y, bool want_parameters, bool want_x) {
  const Images images(block, 4, 2);
  const Tensor by_gamma = images.empty_statistic(), by_beta = images.empty_statistic(), sums = images.sums();
  const Tensor packed = images.packed(block.w, false), dpacked = images.packed(tangents.dw, false);
  const Tensor transposed = want_x ? images.packed(block.w, true) : packed;
  const Tensor dtransposed = want_x ? images.packed(tangents.dw, true) : packed;
  const Tensor dx = want_x ? at::empty_like(block.x) : Tensor();
  const Tensor unused = at::empty({images.parts(), 2, images.shape.C}, images.options());
  images.for_each([&](const At& at) {
    float *z = images.map(at, 0), *dz = images.map(at, 1), *g_z = images.map(at, 2), *dg_z = images.map(at, 3);
    const float *g = images.pooled(at, g_y, 4), *dg = images.pooled(at, dg_y, 5);
    const float *gamma = images.channels(at, block.gamma), *beta = images.channels(at, block.beta);
    const float *mean = images.statistic(at, forward.mean), *rstd = images.statistic(at, forward.rstd);
    images.convolve(at, packed, z);
    images.convolve(at, dpacked, dz);
    if (want_x) {
      float* sum = out(unused) + at.part * 2 * images.shape.C;
      images.normalise<NormReluPoolBackward>(
          NormReluPoolBackwardArgs<float>{images.shape, g, z, mean, rstd, gamma, beta, g_z, sum, sum + images.shape.C});
    }
    images.normalise<NormReluPoolBackwardJvp>(NormReluPoolBackwardJvpArgs<float>{
        images.shape, g, dg, z, dz, mean, rstd, images.statistic(at, forward.dmean), images.statistic(at, forward.dcov),
        gamma, images.channels(at, tangents.dgamma), beta, dg_z, images.statistic(at, by_gamma),
        images.statistic(at, by_beta)});
    if (want_parameters) images.add_weight(at, dg_z, sums);
    if (want_x) images.transpose(at, dg_z, transposed, dx, g_z, dtransposed);
  });
  if (!want_parameters) return {Tensor(), Tensor(), Tensor(), dx};
  return {images.weight(sums), by_gamma.sum(0), by_beta.sum(0), dx};
}

}  // namespace ddfast
