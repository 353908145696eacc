// Glue of the kernels that work on patches.
#include "patches.h"

#include <ATen/Functions.h>

#include <array>

#include "../common/arena.h"
#include "patches_cpu.h"
#include "spread.h"

namespace ddfast {

using at::Tensor;

bool patches_apply(int64_t inputs, int64_t outputs) { return inputs < kFewChannels && outputs >= kFewChannels; }

Tensor pack_patches(const Tensor& w, int64_t groups, bool transposed) {
  const Tensor filters = w.contiguous();
  PatchPack args{groups, w.size(1), w.size(0) / groups, panel_floats(), transposed, data(filters), nullptr};
  Tensor packed = at::empty({args.floats()}, w.options().memory_format(std::nullopt));
  args.packed = packed.mutable_data_ptr<float>();
  spread<RunPatchPack, float>(args, groups);
  return packed;
}

PatchArgs patch_args(const Tensor& maps, int64_t groups, int64_t C, int64_t O) {
  PatchArgs args{};
  args.shape = {maps.size(0), maps.size(2), maps.size(3), groups, C, O};
  args.panel = panel_floats(), args.terms = 1, args.bands = args.parts = 1, args.pitch = groups * C;
  return args;
}

Tensor patch_sums(const PatchArgs& args, const Tensor& like) {
  return at::empty({args.parts, args.shape.groups, 3, args.sum_rows(), round_up(args.shape.O, args.panel)},
                   like.options().memory_format(std::nullopt));
}

Tensor weight_of_sums(const Tensor& sums, const PatchArgs& args) {  // [groups, 3, 3 C, O] -> [groups·O, C, 3, 3]
  const auto [B, H, W, groups, C, O] = args.shape;
  const Tensor taps = sums.sum(0).narrow(2, 0, 3 * C).narrow(3, 0, O).reshape({groups, 3, 3, C, O});
  return taps.permute({0, 4, 3, 1, 2}).reshape({groups * O, C, 3, 3});
}

Tensor by_patches(const Tensor& maps, const Tensor& w, const Tensor& maps2, const Tensor& w2, const Tensor& bias,
                  int64_t groups, bool transposed) {
  const int64_t C = w.size(1), O = w.size(0) / groups;
  const Tensor packed = pack_patches(w, groups, transposed);
  const Tensor packed2 = maps2.defined() ? pack_patches(w2, groups, transposed) : Tensor();
  const Tensor first = channels_last(maps), second = channels_last(maps2);
  Tensor out = channels_last(empty_maps({maps.size(0), groups * (transposed ? C : O), maps.size(2), maps.size(3)},
                                        maps.options().memory_format(at::MemoryFormat::ChannelsLast)));
  PatchArgs args = patch_args(maps, groups, C, O);
  args.maps[0] = data(first), args.filters[0] = data(packed);
  if (maps2.defined()) {
    args.terms = 2;
    args.maps[1] = data(second), args.filters[1] = data(packed2);
  }
  const Tensor added = bias.defined() ? bias.contiguous() : bias;
  args.bias = bias.defined() ? data(added) : nullptr;
  args.out = out.mutable_data_ptr<float>();
  args.split(at::get_num_threads());
  if (transposed) {
    spread<RunPatchInput, float>(args, args.tasks());
  } else {
    spread<RunPatchForward, float>(args, args.tasks());
  }
  return out;
}

Tensor weight_by_patches(const Tensor& g, const Tensor& x, int64_t groups, const Tensor& g2, const Tensor& x2) {
  const std::array<Tensor, 4> maps{channels_last(g), channels_last(x), channels_last(g2), channels_last(x2)};
  PatchArgs args = patch_args(x, groups, x.size(1) / groups, g.size(1) / groups);
  args.g[0] = data(maps[0]), args.maps[0] = data(maps[1]);
  if (g2.defined()) args.terms = 2, args.g[1] = data(maps[2]), args.maps[1] = data(maps[3]);
  args.split(at::get_num_threads());
  const Tensor sums = patch_sums(args, x);
  args.out = sums.mutable_data_ptr<float>();
  spread<RunPatchWeight, float>(args, args.sum_tasks());
  return weight_of_sums(sums, args);
}

}  // namespace ddfast
