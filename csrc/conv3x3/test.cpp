// conv3x3: packing, tiles and patches at every instruction set and in any number of tasks, against double-precision
// loops.
#include <thread>

#include "../common/test_check.h"
#include "patches_cpu.h"
#include "tiles_cpu.h"

namespace ddfast::test {

struct Problem {
  Conv3x3Shape shape;
  std::vector<double> x[2], w[2], g[2], bias;

  explicit Problem(const Conv3x3Shape& shape_) : shape(shape_) {
    const int64_t pixels = shape.B * shape.H * shape.W;
    for (unsigned i = 0; i < 2; ++i) {
      x[i] = draw<float>(pixels * shape.groups * shape.C, 1 + i);
      g[i] = draw<float>(pixels * shape.groups * shape.O, 3 + i);
      w[i] = draw<float>(shape.groups * shape.O * shape.C * 9, 5 + i);
    }
    bias = draw<float>(shape.groups * shape.O, 7);
  }

  // body(place in x, in z, in w) for every product of the convolution
  template <typename Body>
  void for_each(const Body& body) const {
    const auto [B, H, W, G, C, O] = shape;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t v = 0; v < W; ++v)
          for (int64_t k = 0; k < 9; ++k) {
            const int64_t y = h + k / 3 - 1, u = v + k % 3 - 1;
            if (y < 0 || y >= H || u < 0 || u >= W) continue;
            for (int64_t group = 0; group < G; ++group)
              for (int64_t o = group * O; o < (group + 1) * O; ++o)
                for (int64_t c = 0; c < C; ++c)
                  body(((b * H + y) * W + u) * G * C + group * C + c, ((b * H + h) * W + v) * G * O + o,
                       (o * C + c) * 9 + k);
          }
  }
};

// Tasks in two threads, as they are spread, or in one.
template <template <typename, int> class Kernel, typename Tile, typename Args>
void run_tasks(InstructionSet set, const Args& args, int64_t tasks) {
  std::thread other([&] { run_on<Kernel, Tile>(set, args, 0, tasks / 2); });
  run_on<Kernel, Tile>(set, args, tasks / 2, tasks);
  other.join();
}

int64_t panel_of(InstructionSet set) {
  return set == InstructionSet::avx512 ? 32 : set == InstructionSet::avx2 ? 16 : 8;
}

template <int kTile>
void check_tiles(const Problem& problem, InstructionSet set, int64_t threads) {
  using Tile = Transform<kTile>;
  const Conv3x3Shape& shape = problem.shape;
  const auto [B, H, W, G, C, O] = shape;
  const std::string what = std::string("tiles of ") + std::to_string(kTile) + ", " + name_of(set) + ", " +
                           std::to_string(threads) + " threads, W=" + std::to_string(W) + ", C=" + std::to_string(C);
  const int64_t panel = panel_of(set), points = Tile::kPoints * Tile::kPoints;
  std::vector<float> x[2], w[2], g[2], packed[2], bias = as<float>(problem.bias);
  for (int i = 0; i < 2; ++i)
    x[i] = as<float>(problem.x[i]), w[i] = as<float>(problem.w[i]), g[i] = as<float>(problem.g[i]);
  for (const bool transposed : {false, true}) {
    for (int i = 0; i < 2; ++i) {
      Conv3x3Pack pack{G, C, O, transposed, panel, points, w[i].data(), nullptr};
      packed[i] = poisoned<float>(pack.floats());
      pack.packed = packed[i].data();
      run_tasks<RunPack, Tile>(set, pack, pack.tasks());
    }
    // z[0] = x w + bias, z[1] = x w2 + x2 w + bias
    Conv3x3Forward args{};
    args.shape = transposed ? Conv3x3Shape{B, H, W, G, O, C} : shape;
    args.panel = panel, args.tile = kTile, args.results = 2, args.count = 3;
    args.products[0] = {0, 0, 0}, args.products[1] = {0, 1, 1}, args.products[2] = {1, 0, 1};
    args.x_pitch = G * args.shape.C, args.z_pitch = G * args.shape.O;
    args.bias = transposed ? nullptr : bias.data();
    std::vector<float> z[2];
    std::vector<double> expected[2];
    for (int i = 0; i < 2; ++i) {
      args.x[i] = transposed ? g[i].data() : x[i].data(), args.filters[i] = packed[i].data();
      z[i] = poisoned<float>(B * H * W * args.z_pitch);
      args.z[i] = z[i].data();
      expected[i].resize(z[i].size());
      for (size_t at = 0; at < z[i].size(); ++at) expected[i][at] = transposed ? 0 : problem.bias[at % (G * O)];
    }
    args.split(threads);
    run_tasks<RunForward, Tile>(set, args, args.tasks());
    problem.for_each([&](int64_t in, int64_t out, int64_t filter) {
      const int64_t from = transposed ? out : in, to = transposed ? in : out;
      const std::vector<double>* maps = transposed ? problem.g : problem.x;
      expected[0][to] += maps[0][from] * problem.w[0][filter];
      expected[1][to] += maps[0][from] * problem.w[1][filter] + maps[1][from] * problem.w[0][filter];
    });
    for (int i = 0; i < 2; ++i) {
      expect_close(what + (transposed ? " input gradient" : " forward") + (i ? ", tangent" : ""), z[i], expected[i]);
    }
  }
  Conv3x3Weight args{};
  args.shape = shape, args.panel = panel, args.tile = kTile, args.points = points, args.terms = 2;
  args.g_pitch = G * O, args.x_pitch = G * C;
  for (int i = 0; i < 2; ++i) args.g[i] = g[i].data(), args.x[i] = x[i].data();
  args.split(threads);
  std::vector<float> sums = poisoned<float>(args.floats()), dw = poisoned<float>(G * O * C * 9);
  args.sums = sums.data(), args.dw = dw.data(), args.dw_stride = O * C * 9;
  run_tasks<RunWeight, Tile>(set, args, args.tasks());
  run_tasks<RunWeightInverse, Tile>(set, args, args.inverse_tasks());
  std::vector<double> expected(dw.size());
  problem.for_each([&](int64_t in, int64_t out, int64_t filter) {
    expected[filter] += problem.x[0][in] * problem.g[0][out] + problem.x[1][in] * problem.g[1][out];
  });
  expect_close(what + " weight gradient", dw, expected);
}

void check_patches(const Problem& problem, InstructionSet set, int64_t threads) {
  const Conv3x3Shape& shape = problem.shape;
  const auto [B, H, W, G, C, O] = shape;
  const std::string what = std::string("patches, ") + name_of(set) + ", " + std::to_string(threads) +
                           " threads, W=" + std::to_string(W) + ", C=" + std::to_string(C);
  std::vector<float> x[2], w[2], g[2], packed[2], bias = as<float>(problem.bias);
  for (int i = 0; i < 2; ++i)
    x[i] = as<float>(problem.x[i]), w[i] = as<float>(problem.w[i]), g[i] = as<float>(problem.g[i]);
  PatchArgs args{};
  args.shape = shape, args.panel = panel_of(set), args.terms = 2, args.pitch = G * C;
  args.split(threads);
  for (const bool transposed : {false, true}) {
    for (int i = 0; i < 2; ++i) {
      PatchPack pack{G, C, O, args.panel, transposed, w[i].data(), nullptr};
      packed[i] = poisoned<float>(pack.floats());
      pack.packed = packed[i].data();
      run_on<RunPatchPack, float>(set, pack, 0, G);
      args.filters[i] = packed[i].data(), args.maps[i] = transposed ? g[i].data() : x[i].data();
    }
    std::vector<float> out = poisoned<float>(B * H * W * G * (transposed ? C : O));
    std::vector<double> expected(out.size());
    for (size_t at = 0; at < out.size() && !transposed; ++at) expected[at] = problem.bias[at % (G * O)];
    args.bias = bias.data(), args.out = out.data();
    if (transposed) {
      run_tasks<RunPatchInput, float>(set, args, args.tasks());
    } else {
      run_tasks<RunPatchForward, float>(set, args, args.tasks());
    }
    problem.for_each([&](int64_t in, int64_t result, int64_t filter) {
      for (int i = 0; i < 2; ++i) {
        expected[transposed ? in : result] +=
            (transposed ? problem.g[i][result] : problem.x[i][in]) * problem.w[i][filter];
      }
    });
    expect_close(what + (transposed ? " input gradient" : " forward"), out, expected);
    if (!transposed) continue;
    args.add = true;  // once more, to what is there
    run_tasks<RunPatchInput, float>(set, args, args.tasks());
    args.add = false;
    for (double& value : expected) value *= 2;
    expect_close(what + " input gradient, added", out, expected);
  }
  for (int i = 0; i < 2; ++i) args.maps[i] = x[i].data(), args.g[i] = g[i].data();
  const int64_t stride = args.sum_stride(), row = round_up(O, args.panel);
  std::vector<float> sums = poisoned<float>(args.parts * G * stride);
  args.out = sums.data();
  run_tasks<RunPatchWeight, float>(set, args, args.sum_tasks());
  std::vector<float> dw(G * O * C * 9);
  std::vector<double> expected(dw.size());
  for (int64_t part = 0; part < args.parts; ++part)
    for (int64_t o = 0; o < G * O; ++o)
      for (int64_t c = 0; c < C; ++c)
        for (int64_t k = 0; k < 9; ++k)
          dw[(o * C + c) * 9 + k] +=
              sums[(part * G + o / O) * stride + (k / 3 * args.sum_rows() + k % 3 * C + c) * row + o % O];
  problem.for_each([&](int64_t in, int64_t out, int64_t filter) {
    for (int i = 0; i < 2; ++i) expected[filter] += problem.x[i][in] * problem.g[i][out];
  });
  expect_close(what + " weight gradient", dw, expected);
}

void check_all() {
  std::vector<InstructionSet> sets{InstructionSet::base};
  if (best_instruction_set() >= InstructionSet::avx2) sets.push_back(InstructionSet::avx2);
  if (best_instruction_set() >= InstructionSet::avx512) sets.push_back(InstructionSet::avx512);
  const std::vector<Conv3x3Shape> wide{
      {2, 8, 8, 1, 16, 32}, {1, 5, 7, 2, 19, 33}, {3, 9, 13, 1, 17, 20}, {30, 9, 13, 1, 16, 16}};  // sums at two levels
  const std::vector<Conv3x3Shape> few{{2, 6, 8, 1, 3, 32}, {1, 5, 7, 2, 1, 19}, {3, 3, 2, 1, 5, 17}};
  for (const InstructionSet set : sets) {
    for (const int64_t threads : {1, 5}) {
      for (const Conv3x3Shape& shape : wide) check_tiles<2>(Problem(shape), set, threads);
      for (const Conv3x3Shape& shape : wide) check_tiles<4>(Problem(shape), set, threads);
      for (const Conv3x3Shape& shape : few) check_patches(Problem(shape), set, threads);
    }
  }
}

}  // namespace ddfast::test

int main() {
  ddfast::test::check_all();
  return ddfast::test::finish("conv3x3");
}
