// Glue of the kernels that work on tiles.
#include "tiles.h"

#include <ATen/Functions.h>

#include <array>

#include "spread.h"
#include "tiles_cpu.h"

namespace ddfast {
namespace {

using at::Tensor;

int64_t points(int64_t tile) { return (tile + 2) * (tile + 2); }

template <template <typename, int> class Kernel, typename Args>
void spread_tiles(int64_t tile, const Args& args, int64_t tasks) {
  if (tile == 4) {
    spread<Kernel, Transform<4>>(args, tasks);
  } else {
    spread<Kernel, Transform<2>>(args, tasks);
  }
}

Tensor last_or_none(const Tensor& maps) { return maps.defined() ? channels_last(maps) : maps; }

}  // namespace

Tensor pack_tiles(const Tensor& w, int64_t groups, int64_t tile, bool transposed) {
  const Tensor filters = w.contiguous();
  Conv3x3Pack args{groups,         w.size(1),    w.size(0) / groups, transposed,
                   panel_floats(), points(tile), data(filters),      nullptr};
  Tensor packed = at::empty({args.floats()}, w.options().memory_format(std::nullopt));
  args.packed = packed.mutable_data_ptr<float>();
  spread_tiles<RunPack>(tile, args, args.tasks());
  return packed;
}

Tensor by_tiles(const Tensor& x, const Filters& w, const Tensor& x2, const Filters& w2, const Tensor& bias,
                int64_t groups, bool transposed) {
  const int64_t outputs = transposed ? w.w.size(1) : w.w.size(0) / groups;
  const Tensor maps = channels_last(x), maps2 = x2.defined() ? channels_last(x2) : maps;
  const int64_t B = x.size(0), H = x.size(2), W = x.size(3);
  Tensor z = at::empty({B, groups * outputs, H, W}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
  Conv3x3Forward args{
      {B, H, W, groups, x.size(1) / groups, outputs}, panel_floats(), w.tile, 1, {}, {}, nullptr, nullptr, 0, 0};
  args.x[0] = data(maps), args.filters[0] = data(w.packed(groups, transposed));
  if (x2.defined()) {
    args.terms = 2;
    args.x[1] = data(maps2), args.filters[1] = data(w2.packed(groups, transposed));
  }
  const Tensor added = bias.defined() ? bias.contiguous() : bias;
  args.bias = bias.defined() ? data(added) : nullptr;
  args.z = z.mutable_data_ptr<float>();
  args.split(at::get_num_threads());
  spread_tiles<RunForward>(w.tile, args, args.tasks());
  return z;
}

Tensor weight_by_tiles(const Tensor& g, const Tensor& x, int64_t groups, int64_t tile, const Tensor& g2,
                       const Tensor& x2) {
  const int64_t O = g.size(1) / groups, C = x.size(1) / groups;
  const std::array<Tensor, 4> maps{channels_last(g), channels_last(x), last_or_none(g2), last_or_none(x2)};
  Conv3x3Weight args{{x.size(0), x.size(2), x.size(3), groups, C, O},
                     panel_floats(),
                     tile,
                     points(tile),
                     1,
                     {},
                     {},
                     nullptr,
                     nullptr,
                     0,
                     0};
  args.g[0] = data(maps[0]), args.x[0] = data(maps[1]);
  if (g2.defined()) args.terms = 2, args.g[1] = data(maps[2]), args.x[1] = data(maps[3]);
  args.split(at::get_num_threads());
  const auto plain = x.options().memory_format(std::nullopt);
  const Tensor sums = at::empty({args.floats()}, plain);
  Tensor dw = at::empty({groups * O, C, 3, 3}, plain);
  args.sums = sums.mutable_data_ptr<float>(), args.dw = dw.mutable_data_ptr<float>();
  spread_tiles<RunWeight>(tile, args, args.tasks());
  spread_tiles<RunWeightInverse>(tile, args, args.inverse_tasks());
  return dw;
}

}  // namespace ddfast
