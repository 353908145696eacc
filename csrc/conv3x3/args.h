// What the kernels of conv3x3 read and write: pointers into channels-last memory, and where tiles and tasks lie.
//
// x is [B, H, W, groups·C] in memory, z is [B, H, W, groups·O], w is [groups·O, C, 3, 3]; stride 1, padding 1. Faces
// compute sums of products, so that a tangent of two terms takes one inverse transform, and both a value and its
// tangent, so that what they share is transformed once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace ddfast {

struct Conv3x3Shape {
  int64_t B, H, W, groups, C, O;

  int64_t tiles(int64_t tile) const { return B * ((H + tile - 1) / tile) * ((W + tile - 1) / tile); }
};

constexpr int64_t kLine = 16;           // floats of a cache line
constexpr int64_t kBlockTiles = 12;     // what a task of the forward transforms at a time: smaller would reuse less
constexpr int64_t kChunkTiles = 32;     // tiles whose products are summed in registers for the weight gradient
constexpr int kWeightParts = 2;         // of the rows of the n² sums: a part of a chunk stays in cache
constexpr int64_t kChunksTogether = 8;  // chunks that are summed before their sum is added to those before
constexpr int64_t kPackChannels = 16;   // of a task that transforms filters
constexpr int kTerms = 2, kProducts = 3;

inline int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// Filters as the kernel reads them: [groups][n²][panels][inputs][panel], panel outputs side by side, from
// w [groups·O, C, 3, 3]; for the input gradient (transposed) inputs are the O, outputs the C, and filters are flipped.
struct Conv3x3Pack {
  int64_t groups, C, O;
  bool transposed;
  int64_t panel;   // floats: two vectors of the instruction set
  int64_t points;  // n²
  const float* w;
  float* packed;

  int64_t inputs() const { return transposed ? O : C; }
  int64_t outputs() const { return transposed ? C : O; }
  int64_t panels() const { return (outputs() + panel - 1) / panel; }
  int64_t point_stride() const { return panels() * inputs() * panel + kLine; }  // not a power of two: cache sets
  int64_t floats() const { return groups * points * point_stride(); }
  int64_t input_blocks() const { return (inputs() + kPackChannels - 1) / kPackChannels; }
  int64_t tasks() const { return groups * panels() * input_blocks(); }
};

// Sums of products x ∗ w; a task is a group, a block of tiles and some panels of outputs.
struct Conv3x3Forward {
  struct Product {
    int x, filters, z;
  };

  Conv3x3Shape shape;  // C inputs, O outputs
  int64_t panel, tile;
  int results, count;
  Product products[kProducts];   // those of one x after another
  int64_t x_pitch, z_pitch;      // of their pixels: groups·C and groups·O, or more where groups are some of all
  const float* x[kTerms];        // [B, H, W, groups·C]
  const float* filters[kTerms];  // packed
  const float* bias;             // of all results: [groups·O] or nullptr
  float* z[kTerms];              // [B, H, W, groups·O]
  int64_t blocks, parts;

  void split(int64_t threads) {
    const int64_t tiles = shape.tiles(tile), panels = (shape.O + panel - 1) / panel;
    blocks = round_up(tiles, kBlockTiles) / kBlockTiles;
    if (blocks < tiles) blocks = std::min(tiles, round_up(blocks, std::gcd(threads, int64_t{4})));  // equal shares
    const int64_t tasks = shape.groups * blocks;
    parts = tasks >= threads ? 1 : std::min(panels, (threads + tasks - 1) / tasks);
  }
  int64_t tasks() const { return shape.groups * blocks * parts; }
};

// dw = Σ_i corr(x_i, g_i): sums over tiles in the transformed domain, in `parts` of tiles and `columns` of panels, then
// their inverse transform; a task has kWeightParts of the n rows. The order of a sum depends on parts only. Sums of
// chunks, of kChunksTogether chunks, and of all: the error of a sum of n grows with √n.
struct Conv3x3Weight {
  Conv3x3Shape shape;
  int64_t panel, tile, points;
  int terms;
  int64_t g_pitch, x_pitch;  // of their pixels, as above
  const float* g[kTerms];    // [B, H, W, groups·O]
  const float* x[kTerms];    // [B, H, W, groups·C]
  float* sums;               // [levels, parts, groups, n², C, O rounded up]: all, and those of some chunks
  float* dw;                 // [groups, O, C, 3, 3]
  int64_t dw_stride;         // from group to group
  int64_t parts, columns, levels;

  void split(int64_t threads) {
    const int64_t panels = (shape.O + panel - 1) / panel;
    const int64_t chunks = terms * round_up(shape.tiles(tile), kChunkTiles) / kChunkTiles;
    columns = std::gcd((threads + kWeightParts - 1) / kWeightParts, panels);
    parts = std::clamp<int64_t>(threads / (kWeightParts * columns * shape.groups), 1, chunks);
    levels = chunks > parts * kChunksTogether ? 2 : 1;
  }
  int64_t row() const { return round_up(shape.O, panel); }
  int64_t point_stride() const { return round_up(shape.C, 2) * row() + kLine; }  // products take pairs of rows
  int64_t part_stride() const { return shape.groups * points * point_stride(); }
  int64_t level_stride() const { return parts * part_stride(); }
  int64_t floats() const { return levels * level_stride(); }
  int64_t tasks() const { return shape.groups * parts * columns * kWeightParts; }
  int64_t inverse_tasks() const { return shape.groups * shape.C; }
};

// The same three faces for few input channels, as those of images: matrix products over patches, in bands of rows. The
// 9 C taps of a patch are in the order (row, column, channel), that of memory.
struct PatchPack {
  int64_t groups, C, O, panel;
  bool transposed;  // [groups][taps' panels][O][panel], else [groups][O's panels][taps][panel]
  const float* w;   // [groups·O, C, 3, 3]
  float* packed;

  int64_t inputs() const { return transposed ? O : 9 * C; }
  int64_t outputs() const { return transposed ? 9 * C : O; }
  int64_t group_stride() const { return round_up(outputs(), panel) * inputs(); }
  int64_t floats() const { return groups * group_stride(); }
};

struct PatchArgs {
  Conv3x3Shape shape;
  int64_t panel;
  int terms;
  int64_t pitch;                 // of the pixels of x and its gradient: groups·C, or more where they are a slice
  const float* maps[kTerms];     // x [B, H, W, groups·C]; of the input gradient g [B, H, W, groups·O]
  const float* filters[kTerms];  // packed; of the weight gradient unused
  const float* g[kTerms];        // of the weight gradient [B, H, W, groups·O]
  const float* bias;             // of the forward: [groups·O] or nullptr
  float* out;                    // z, the gradient of x, or sums [parts, groups, 3, 3 C rounded up, O rounded up]
  bool add;                      // to the gradient of x, or the sums
  int64_t bands, parts;          // of an image; of all images, for sums

  void split(int64_t threads) {
    bands = std::clamp<int64_t>((threads + shape.B * shape.groups - 1) / (shape.B * shape.groups), 1, shape.H);
    parts = std::clamp<int64_t>(threads / shape.groups, 1, shape.B * bands);
  }
  int64_t tasks() const { return shape.groups * shape.B * bands; }
  int64_t sum_tasks() const { return shape.groups * parts; }
  int64_t sum_rows() const { return round_up(3 * shape.C, 2); }  // products take pairs of rows
  int64_t sum_stride() const { return 3 * sum_rows() * round_up(shape.O, panel); }
};

}  // namespace ddfast
