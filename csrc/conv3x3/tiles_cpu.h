// CPU kernels of conv3x3: filters packed, the forward (and, with flipped filters, the input gradient), the weight
// gradient. Tiles of all images are one list; a task transforms a block of them into a buffer of its thread that stays
// in cache, multiplies point by point, and transforms back while storing: nothing transformed is written to memory but
// packed filters and the weight gradient's sums.
#pragma once

#include <cstdint>

#include "args.h"
#include "products.h"
#include "transform.h"
#include "workspace.h"

namespace ddfast {

// The pixels of a tile and, with a border, those around it; rows of zeros stand for those outside of the image.
template <int kSide>
struct TilePixels {
  const float* at[kSide * kSide];

  DDFAST_INLINE TilePixels(const Conv3x3Shape& shape, int64_t tile, int64_t index, int64_t border, const float* maps,
                           int64_t pitch, const float* zeros) {
    const int64_t across = (shape.W + tile - 1) / tile, down = (shape.H + tile - 1) / tile;
    const int64_t left = index % across * tile - border, top = index / across % down * tile - border;
    const float* image = maps + index / (across * down) * shape.H * shape.W * pitch;
    for (int64_t i = 0; i < kSide; ++i) {
      for (int64_t j = 0; j < kSide; ++j) {
        const bool inside = 0 <= top + i && top + i < shape.H && 0 <= left + j && left + j < shape.W;
        at[i * kSide + j] = inside ? image + ((top + i) * shape.W + left + j) * pitch : zeros;
      }
    }
  }
};

// Of inputs, the n numbers of a tile with its border; of cotangents, the m without.
template <typename Tile, typename V, size_t kSide>
DDFAST_INLINE void transform_line(const V (&line)[kSide], V (&out)[Tile::kPoints]) {
  if constexpr (kSide == Tile::kPoints) {
    Tile::input(line, out);
  } else {
    Tile::output_adjoint(line, out);
  }
}

// kRows of the n x n numbers of a tile, from row `first` on, from its kSide x kSide pixels; the numbers lie `stride`
// apart. First along columns, into `half`, then along rows: memory is walked pixel by pixel.
template <typename Tile, int kBytes, int kRows, int kSide>
DDFAST_INLINE void transform_tile(const TilePixels<kSide>& pixels, int first, int64_t channels, float* half, float* to,
                                  int64_t stride) {
  using L = Lanes<kBytes>;
  using V = typename L::Vector;
  constexpr int n = Tile::kPoints;
  const int64_t row = round_up(channels, kLine);
  for (int j = 0; j < kSide; ++j) {
    for (int64_t c = 0; c < channels; c += L::kCount) {
      V column[kSide], out[n];
      for (int i = 0; i < kSide; ++i) column[i] = L::load(pixels.at[i * kSide + j] + c, channels - c);
      transform_line<Tile>(column, out);
      for (int i = 0; i < kRows; ++i) L::store(out[first + i], half + (i * kSide + j) * row + c);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int64_t c = 0; c < channels; c += L::kCount) {
      V line[kSide], out[n];
      for (int j = 0; j < kSide; ++j) line[j] = L::load(half + (i * kSide + j) * row + c);
      transform_line<Tile>(line, out);
      for (int j = 0; j < n; ++j) L::store(out[j], to + (i * n + j) * stride + c);
    }
  }
}

template <typename Tile, int kBytes>
struct RunPack {
  static DDFAST_INLINE void run(const Conv3x3Pack& args, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) walk(args, task);
  }

  using L = Lanes<kBytes>;
  using V = typename L::Vector;
  static constexpr int n = Tile::kPoints;

  static DDFAST_INLINE void walk(const Conv3x3Pack& args, int64_t task) {
    const int64_t inputs = args.inputs(), outputs = args.outputs(), panels = args.panels();
    const int64_t first = task % args.input_blocks() * kPackChannels;
    const int64_t panel = task / args.input_blocks() % panels, group = task / args.input_blocks() / panels;
    const float* w = args.w + group * args.O * args.C * 9;
    float* packed = args.packed + group * args.points * args.point_stride() + panel * inputs * args.panel;
    for (int64_t i = first; i < inputs && i < first + kPackChannels; ++i) {
      for (int64_t from = 0; from < args.panel; from += L::kCount) {
        float values[9][L::kCount];
        for (int64_t lane = 0; lane < L::kCount; ++lane) {
          const int64_t o = panel * args.panel + from + lane;
          if (o >= outputs) {
            for (int k = 0; k < 9; ++k) values[k][lane] = 0;
          } else if (args.transposed) {
            for (int k = 0; k < 9; ++k) values[k][lane] = w[(i * args.C + o) * 9 + 8 - k];
          } else {
            for (int k = 0; k < 9; ++k) values[k][lane] = w[(o * args.C + i) * 9 + k];
          }
        }
        V half[n][3];
        for (int j = 0; j < 3; ++j) {
          const V column[3] = {L::load(values[j]), L::load(values[3 + j]), L::load(values[6 + j])};
          V out[n];
          Tile::filter(column, out);
          for (int p = 0; p < n; ++p) half[p][j] = out[p];
        }
        for (int p = 0; p < n; ++p) {
          V out[n];
          Tile::filter(half[p], out);
          for (int q = 0; q < n; ++q) {
            L::store(out[q], packed + (p * n + q) * args.point_stride() + i * args.panel + from);
          }
        }
      }
    }
  }
};

template <typename Tile, int kBytes>
struct RunForward {
  static DDFAST_INLINE void run(const Conv3x3Forward& args, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) walk(args, task);
  }

  using L = Lanes<kBytes>;
  using V = typename L::Vector;
  static constexpr int n = Tile::kPoints, m = Tile::kTile;
  static constexpr int64_t kPanel = 2 * L::kCount;

  static DDFAST_INLINE void walk(const Conv3x3Forward& args, int64_t task) {
    const Conv3x3Shape& shape = args.shape;
    const int64_t tiles = shape.tiles(m), panels = (shape.O + kPanel - 1) / kPanel;
    const int64_t block = task % args.blocks, part = task / args.blocks % args.parts;
    const int64_t group = task / args.blocks / args.parts;
    const int64_t first = block * tiles / args.blocks, count = (block + 1) * tiles / args.blocks - first;
    const int64_t panel = part * panels / args.parts, last_panel = (part + 1) * panels / args.parts;
    const int64_t rows = count + count % 2, width = (last_panel - panel) * kPanel;
    const int64_t row = round_up(shape.C, kLine), stride = rows * row + kLine, out_stride = rows * width + kLine;
    float* inputs = conv3x3_workspace(n * n * (stride + args.results * out_stride + std::max(row, width)) + row);
    float* results = inputs + n * n * stride;
    float* half = results + n * n * args.results * out_stride;
    float* zeros = half + n * n * std::max(row, width);
    std::memset(zeros, 0, row * sizeof(float));
    const int64_t point_stride = panels * shape.C * kPanel + kLine;
    bool add[kTerms] = {};
    for (int i = 0; i < args.count; ++i) {
      const Conv3x3Forward::Product product = args.products[i];
      if (i == 0 || product.x != args.products[i - 1].x) {
        const float* maps = args.x[product.x] + group * shape.C;
        for (int64_t t = 0; t < count; ++t) {
          const TilePixels<n> pixels(shape, m, first + t, 1, maps, args.x_pitch, zeros);
          transform_tile<Tile, kBytes, n>(pixels, 0, shape.C, half, inputs + t * row, stride);
        }
      }
      const float* filters = args.filters[product.filters] + group * n * n * point_stride + panel * shape.C * kPanel;
      float* sums = results + product.z * n * n * out_stride;
      for (int k = 0; k < n * n; ++k) {
        for (int64_t p = 0; p < last_panel - panel; ++p) {
          multiply<kBytes, false>({inputs + k * stride, row, filters + k * point_stride + p * shape.C * kPanel, kPanel,
                                   shape.C, sums + k * out_stride + p * kPanel, width, add[product.z]},
                                  count);
        }
      }
      add[product.z] = true;
    }
    for (int z = 0; z < args.results; ++z) {
      for (int64_t t = 0; t < count; ++t) {
        store(args, z, group, first + t, panel * kPanel, width, results + z * n * n * out_stride + t * width,
              out_stride, half);
      }
    }
  }

  // The inverse transform of one tile, of `outputs` outputs from `o` on.
  static DDFAST_INLINE void store(const Conv3x3Forward& args, int z, int64_t group, int64_t index, int64_t o,
                                  int64_t outputs, const float* from, int64_t stride, float* half) {
    const Conv3x3Shape& shape = args.shape;
    const int64_t across = (shape.W + m - 1) / m, down = (shape.H + m - 1) / m, pitch = args.z_pitch;
    const int64_t left = index % across * m, top = index / across % down * m;
    float* corner = args.z[z] + ((index / (across * down) * shape.H + top) * shape.W + left) * pitch + group * shape.O;
    const int64_t height = std::min<int64_t>(m, shape.H - top), width = std::min<int64_t>(m, shape.W - left);
    const int64_t last = std::min(shape.O, o + outputs);
    for (int j = 0; j < n; ++j) {
      for (int64_t c = 0; c < last - o; c += L::kCount) {
        V column[n], out[m];
        for (int i = 0; i < n; ++i) column[i] = L::load(from + (i * n + j) * stride + c);
        Tile::output(column, out);
        for (int i = 0; i < m; ++i) L::store(out[i], half + (i * n + j) * outputs + c);
      }
    }
    for (int i = 0; i < height; ++i) {
      for (int64_t c = 0; c < last - o; c += L::kCount) {
        V bias = {}, line[n], out[m];
        if (args.bias != nullptr) bias = L::load(args.bias + group * shape.O + o + c, shape.O - o - c);
        for (int j = 0; j < n; ++j) line[j] = L::load(half + (i * n + j) * outputs + c);
        Tile::output(line, out);
        for (int j = 0; j < m; ++j) {
          if (j < width) L::store(out[j] + bias, corner + (i * shape.W + j) * pitch + o + c, shape.O - o - c);
        }
      }
    }
  }
};

template <typename Tile, int kBytes>
struct RunWeight {
  static DDFAST_INLINE void run(const Conv3x3Weight& args, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) walk(args, task);
  }

  using L = Lanes<kBytes>;
  static constexpr int n = Tile::kPoints, m = Tile::kTile, kRows = n / kWeightParts, kPoints = kRows * n;
  static constexpr int64_t kPanel = 2 * L::kCount;

  static DDFAST_INLINE void walk(const Conv3x3Weight& args, int64_t task) {
    const Conv3x3Shape& shape = args.shape;
    const int64_t tiles = shape.tiles(m), panels = (shape.O + kPanel - 1) / kPanel;
    const int first_row = static_cast<int>(task % kWeightParts) * kRows;
    task /= kWeightParts;
    const int64_t column = task % args.columns, part = task / args.columns % args.parts;
    const int64_t group = task / args.columns / args.parts;
    const int64_t panel = column * panels / args.columns, last_panel = (column + 1) * panels / args.columns;
    const int64_t o = panel * kPanel, width = (last_panel - panel) * kPanel, outputs = std::min(width, shape.O - o);
    // one row more than tiles and channels: products take pairs of rows
    const int64_t row = round_up(shape.C, kLine) + kLine;
    const int64_t stride = kChunkTiles * row + kLine, g_stride = kChunkTiles * width + kLine;
    float* inputs = conv3x3_workspace(kPoints * (stride + g_stride + row + width) + row + width);
    float* cotangents = inputs + kPoints * stride;
    float* half = cotangents + kPoints * g_stride;
    float* zeros = half + kPoints * (row + width);
    std::memset(zeros, 0, (row + width) * sizeof(float));
    float* sums = args.sums + part * args.part_stride() + (group * n * n + first_row * n) * args.point_stride() + o;
    float* together = sums + (args.levels - 1) * args.level_stride();
    const int64_t all = args.terms * tiles, last = (part + 1) * all / args.parts;
    int64_t chunks = 0;
    for (int64_t first = part * all / args.parts; first < last; ++chunks) {
      const int term = first >= tiles;
      const int64_t count = std::min({kChunkTiles, last - first, (term + 1) * tiles - first});
      for (int64_t t = 0; t < count; ++t) {
        const int64_t index = first + t - term * tiles;
        const TilePixels<n> x(shape, m, index, 1, args.x[term] + group * shape.C, args.x_pitch, zeros);
        transform_tile<Tile, kBytes, kRows>(x, first_row, shape.C, half, inputs + t * row, stride);
        const TilePixels<m> g(shape, m, index, 0, args.g[term] + group * shape.O + o, args.g_pitch, zeros);
        transform_tile<Tile, kBytes, kRows>(g, first_row, outputs, half, cotangents + t * width, g_stride);
      }
      const bool add = args.levels == 1 ? chunks > 0 : chunks % kChunksTogether > 0;
      for (int k = 0; k < kPoints; ++k) {
        for (int64_t p = 0; p < last_panel - panel; ++p) {
          multiply<kBytes, true>({inputs + k * stride, row, cotangents + k * g_stride + p * kPanel, width, count,
                                  together + k * args.point_stride() + p * kPanel, args.row(), add},
                                 shape.C);
        }
      }
      first += count;
      const bool full = chunks % kChunksTogether == kChunksTogether - 1;
      if (args.levels > 1 && (full || first == last)) add_sums(args, together, width, chunks >= kChunksTogether, sums);
    }
  }

  static DDFAST_INLINE void add_sums(const Conv3x3Weight& args, const float* from, int64_t width, bool add, float* to) {
    for (int k = 0; k < kPoints; ++k) {
      for (int64_t c = 0; c < args.shape.C; ++c) {
        const int64_t row = k * args.point_stride() + c * args.row();
        for (int64_t o = row; o < row + width; o += L::kCount) {
          L::store(add ? L::load(to + o) + L::load(from + o) : L::load(from + o), to + o);
        }
      }
    }
  }
};

// The inverse transform of the weight gradient's sums; a task is an input channel of a group.
template <typename Tile, int kBytes>
struct RunWeightInverse {
  static DDFAST_INLINE void run(const Conv3x3Weight& args, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) walk(args, task);
  }

  using L = Lanes<kBytes>;
  using V = typename L::Vector;
  static constexpr int n = Tile::kPoints;

  static DDFAST_INLINE void walk(const Conv3x3Weight& args, int64_t task) {
    const Conv3x3Shape& shape = args.shape;
    const int64_t group = task / shape.C, c = task % shape.C;
    const float* sums = args.sums + group * n * n * args.point_stride() + c * args.row();
    for (int64_t o = 0; o < shape.O; o += L::kCount) {
      V half[3][n];
      for (int j = 0; j < n; ++j) {
        V column[n], out[3];
        for (int i = 0; i < n; ++i) {
          const float* at = sums + (i * n + j) * args.point_stride() + o;
          column[i] = L::load(at);
          for (int64_t part = 1; part < args.parts; ++part) column[i] += L::load(at + part * args.part_stride());
        }
        Tile::filter_adjoint(column, out);
        for (int i = 0; i < 3; ++i) half[i][j] = out[i];
      }
      float values[9][L::kCount];
      for (int i = 0; i < 3; ++i) {
        V out[3];
        Tile::filter_adjoint(half[i], out);
        for (int j = 0; j < 3; ++j) L::store(out[j], values[3 * i + j]);
      }
      for (int64_t lane = 0; lane < std::min<int64_t>(L::kCount, shape.O - o); ++lane) {
        float* to = args.dw + group * args.dw_stride + ((o + lane) * shape.C + c) * 9;
        for (int k = 0; k < 9; ++k) to[k] = values[k][lane];
      }
    }
  }
};

}  // namespace ddfast
