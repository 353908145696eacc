// Glue of the kernels that work on tiles.
#include "tiles.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <array>
#include <vector>

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

// w [groups·O, C, 3, 3] as the kernel reads it: for the forward, or the input gradient (transposed).
Tensor pack(const Tensor& w, int64_t groups, int64_t tile, bool transposed) {
  const Tensor filters = w.contiguous();
  Conv3x3Pack args{groups,         w.size(1),    w.size(0) / groups, transposed,
                   panel_floats(), points(tile), data(filters),      nullptr};
  Tensor packed = at::empty({args.floats()}, w.options().memory_format(std::nullopt));
  args.packed = packed.mutable_data_ptr<float>();
  spread_tiles<RunPack>(tile, args, args.tasks());
  return packed;
}

Tensor last_or_none(const Tensor& maps) { return maps.defined() ? channels_last(maps) : maps; }

}  // namespace

std::vector<Tensor> by_tiles(at::TensorList maps, at::TensorList filters, const std::vector<TileProduct>& products,
                             const Tensor& bias, int64_t groups, int64_t tile, bool transposed) {
  const Tensor &first = maps[0], &w = filters[0];
  const int64_t B = first.size(0), H = first.size(2), W = first.size(3), C = first.size(1) / groups;
  const int64_t O = transposed ? w.size(1) : w.size(0) / groups;
  Conv3x3Forward args{};
  args.shape = {B, H, W, groups, C, O};
  args.panel = panel_floats(), args.tile = tile;
  std::vector<Tensor> held, results;
  for (size_t i = 0; i < maps.size(); ++i) args.x[i] = data(held.emplace_back(channels_last(maps[i])));
  for (size_t i = 0; i < filters.size(); ++i) {
    args.filters[i] = data(held.emplace_back(pack(filters[i], groups, tile, transposed)));
  }
  for (const auto [x, filter, z] : products) {
    args.products[args.count++] = {x, filter, z};
    args.results = std::max(args.results, z + 1);
  }
  if (bias.defined()) args.bias = data(held.emplace_back(bias.contiguous()));
  for (int z = 0; z < args.results; ++z) {
    results.push_back(at::empty({B, groups * O, H, W}, first.options().memory_format(at::MemoryFormat::ChannelsLast)));
    args.z[z] = results[z].mutable_data_ptr<float>();
  }
  args.split(at::get_num_threads());
  spread_tiles<RunForward>(tile, args, args.tasks());
  return results;
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
