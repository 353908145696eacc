// Glue of the kernels that work on tiles.
#include "tiles.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <array>
#include <vector>

#include "../common/arena.h"
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

// body(first, count) for all groups, some at a time: what is transformed of one stays in cache.
template <typename Body>
void for_groups(int64_t groups, const Body& body) {
  const int64_t each = std::max<int64_t>(1, at::get_num_threads() / 4);
  for (int64_t from = 0; from < groups; from += each) body(from, std::min(each, groups - from));
}

// w [groups·O, C, 3, 3] as the kernel reads it: for the forward, or the input gradient (transposed).
Tensor pack(const Tensor& w, int64_t groups, int64_t tile, bool transposed) {
  const Tensor filters = w.contiguous();
  Conv3x3Pack args{groups,         w.size(1),    w.size(0) / groups, transposed,
                   panel_floats(), points(tile), data(filters),      nullptr};
  Tensor packed = empty_maps({args.floats()}, w.options().memory_format(std::nullopt));
  args.packed = packed.mutable_data_ptr<float>();
  spread_tiles<RunPack>(tile, args, args.tasks());
  return packed;
}

}  // namespace

std::vector<Tensor> by_tiles(at::TensorList maps, at::TensorList filters, const std::vector<TileProduct>& products,
                             const Tensor& bias, int64_t groups, int64_t tile, bool transposed) {
  const Tensor &first = maps[0], &w = filters[0];
  const int64_t B = first.size(0), H = first.size(2), W = first.size(3), C = first.size(1) / groups;
  const int64_t of_group = w.size(0) / groups, O = transposed ? w.size(1) : of_group;
  std::vector<Tensor> held, results;
  for (const Tensor& map : maps) held.push_back(channels_last(map));
  const Tensor added = bias.defined() ? bias.contiguous() : bias;
  Conv3x3Forward args{};
  args.panel = panel_floats(), args.tile = tile, args.x_pitch = groups * C, args.z_pitch = groups * O;
  for (const auto [x, filter, z] : products) {
    args.products[args.count++] = {x, filter, z};
    args.results = std::max(args.results, z + 1);
  }
  for (int z = 0; z < args.results; ++z) {
    results.push_back(empty_maps({B, groups * O, H, W}, first.options().memory_format(at::MemoryFormat::ChannelsLast)));
  }
  for_groups(groups, [&](int64_t from, int64_t count) {
    args.shape = {B, H, W, count, C, O};
    std::vector<Tensor> packed;
    for (size_t i = 0; i < maps.size(); ++i) args.x[i] = data(held[i]) + from * C;
    for (size_t i = 0; i < filters.size(); ++i) {
      packed.push_back(pack(filters[i].narrow(0, from * of_group, count * of_group), count, tile, transposed));
      args.filters[i] = data(packed[i]);
    }
    if (bias.defined()) args.bias = data(added) + from * O;
    for (int z = 0; z < args.results; ++z) args.z[z] = results[z].mutable_data_ptr<float>() + from * O;
    args.split(at::get_num_threads());
    spread_tiles<RunForward>(tile, args, args.tasks());
  });
  return results;
}

void weight_by_tiles(const Tensor& g, const Tensor& x, int64_t tile, const Tensor& g2, const Tensor& x2,
                     const Tensor& into) {
  const int64_t groups = into.size(0), O = into.size(1), C = into.size(2);
  const std::array<Tensor, 2> gs{channels_last(g), channels_last(g2)}, xs{channels_last(x), channels_last(x2)};
  const auto plain = x.options().memory_format(std::nullopt);
  Conv3x3Weight args{};
  args.panel = panel_floats(), args.tile = tile, args.points = points(tile);
  args.terms = g2.defined() ? 2 : 1, args.g_pitch = groups * O, args.x_pitch = groups * C;
  args.dw_stride = into.stride(0);
  for_groups(groups, [&](int64_t from, int64_t count) {
    args.shape = {x.size(0), x.size(2), x.size(3), count, C, O};
    for (int i = 0; i < args.terms; ++i) args.g[i] = data(gs[i]) + from * O, args.x[i] = data(xs[i]) + from * C;
    args.split(at::get_num_threads());
    const Tensor sums = empty_maps({args.floats()}, plain);
    args.sums = sums.mutable_data_ptr<float>();
    args.dw = into.mutable_data_ptr<float>() + from * args.dw_stride;
    spread_tiles<RunWeight>(tile, args, args.tasks());
    spread_tiles<RunWeightInverse>(tile, args, args.inverse_tasks());
  });
}

}  // namespace ddfast
