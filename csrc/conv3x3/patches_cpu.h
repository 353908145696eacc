// CPU kernels of conv3x3 for few input channels, as those of images: matrix products over patches. With the channels of
// a pixel side by side the three columns of a patch are 3 C adjacent numbers, so that no patch is ever copied: only
// images are, with a border of zeros.
#pragma once

#include "args.h"
#include "products.h"
#include "workspace.h"

namespace ddfast {

// Rows [first − 1, last + 1) of one group of an image, each with a pixel of zeros at both ends.
template <typename Float>  // float, or const float to read from
struct Band {
  int64_t image, group, first, last;

  Band(const PatchArgs& args, int64_t task) {
    const Conv3x3Shape& shape = args.shape;
    const int64_t band = task % args.bands;
    image = task / args.bands % shape.B, group = task / args.bands / shape.B;
    first = band * shape.H / args.bands, last = (band + 1) * shape.H / args.bands;
  }
  int64_t rows() const { return last - first + 2; }
  static int64_t row(const Conv3x3Shape& shape) { return (shape.W + 2) * shape.C; }
  Float* row_of(const PatchArgs& args, Float* maps, int64_t h) const {  // [W, groups·C], `pitch` apart
    return maps + (image * args.shape.H + h) * args.shape.W * args.pitch + group * args.shape.C;
  }
  // From a map [B, H, W, groups·C] into a buffer.
  void pad(const PatchArgs& args, const float* maps, float* to) const {
    const Conv3x3Shape& shape = args.shape;
    std::memset(to, 0, rows() * row(shape) * sizeof(float));
    for (int64_t h = std::max<int64_t>(first - 1, 0); h < std::min(last + 1, shape.H); ++h) {
      const float* from = row_of(args, maps, h);
      float* line = to + (h - first + 1) * row(shape) + shape.C;
      if (args.pitch == shape.C) {
        std::memcpy(line, from, shape.W * shape.C * sizeof(float));
        continue;
      }
      for (int64_t w = 0; w < shape.W; ++w) {
        std::memcpy(line + w * shape.C, from + w * args.pitch, shape.C * sizeof(float));
      }
    }
  }
};

// Tag is not used: kernels of patches have no tiles.
template <typename Tag, int kBytes>
struct RunPatchPack {
  static DDFAST_INLINE void run(const PatchPack& args, int64_t begin, int64_t end) {
    const int64_t inputs = args.inputs(), outputs = args.outputs(), taps = 9 * args.C;
    for (int64_t group = begin; group < end; ++group) {
      float* to = args.packed + group * args.group_stride();
      for (int64_t o = 0; o < round_up(outputs, args.panel); ++o) {
        for (int64_t i = 0; i < inputs; ++i) {
          const int64_t filter = args.transposed ? i : o, tap = args.transposed ? o : i;
          const int64_t at = ((group * args.O + filter) * args.C + tap % args.C) * 9 + tap / args.C;
          to[(o / args.panel * inputs + i) * args.panel + o % args.panel] = o < outputs && tap < taps ? args.w[at] : 0;
        }
      }
    }
  }
};

template <typename Tag, int kBytes>
struct RunPatchForward {
  static DDFAST_INLINE void run(const PatchArgs& args, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) walk(args, task);
  }

  static constexpr int64_t kPanel = 2 * Lanes<kBytes>::kCount, kMost = Lanes<kBytes>::kMaxRows;

  static DDFAST_INLINE void walk(const PatchArgs& args, int64_t task) {
    const Conv3x3Shape& shape = args.shape;
    const Band<const float> band(args, task);
    const int64_t row = Band<float>::row(shape), pitch = shape.groups * shape.O, size = band.rows() * row;
    float* padded = conv3x3_workspace(args.terms * size + kMost * kPanel);
    float* partial = padded + args.terms * size;  // a panel of which O fills a part
    for (int term = 0; term < args.terms; ++term) band.pad(args, args.maps[term], padded + term * size);
    const int64_t filters = round_up(shape.O, kPanel) * 9 * shape.C;
    for (int64_t h = band.first; h < band.last; ++h) {
      float* line = args.out + ((band.image * shape.H + h) * shape.W) * pitch + band.group * shape.O;
      for (int64_t w = 0; w < shape.W; w += kMost) {
        const int64_t pixels = std::min(kMost, shape.W - w);
        for (int64_t o = 0; o < shape.O; o += kPanel) {
          const int64_t width = std::min(kPanel, shape.O - o);
          float* to = width == kPanel ? line + w * pitch + o : partial;
          const int64_t stride = width == kPanel ? pitch : kPanel;
          for (int64_t p = 0; args.bias != nullptr && p < pixels; ++p) {
            std::memcpy(to + p * stride, args.bias + band.group * shape.O + o, width * sizeof(float));
          }
          for (int term = 0; term < args.terms; ++term) {
            multiply_exactly<kBytes, false>({padded + term * size + (h - band.first) * row + w * shape.C, shape.C,
                                             args.filters[term] + band.group * filters + o * 9 * shape.C, kPanel,
                                             3 * shape.C, to, stride, term > 0 || args.bias != nullptr, 3, row},
                                            pixels);
          }
          for (int64_t p = 0; to == partial && p < pixels; ++p) {
            std::memcpy(line + (w + p) * pitch + o, partial + p * kPanel, width * sizeof(float));
          }
        }
      }
    }
  }
};

// The input gradient: products of cotangents and filters, [pixels, taps], are added where their patches lie.
template <typename Tag, int kBytes>
struct RunPatchInput {
  static DDFAST_INLINE void run(const PatchArgs& args, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) walk(args, task);
  }

  static constexpr int64_t kPanel = 2 * Lanes<kBytes>::kCount, kMost = Lanes<kBytes>::kMaxRows;

  static DDFAST_INLINE void walk(const PatchArgs& args, int64_t task) {
    const Conv3x3Shape& shape = args.shape;
    const Band<float> band(args, task);
    const int64_t row = Band<float>::row(shape), pitch = shape.groups * shape.O;
    const int64_t taps = round_up(9 * shape.C, kPanel), segment = 3 * shape.C;
    float* padded = conv3x3_workspace((band.rows() + 2) * row + kMost * taps);
    float* products = padded + (band.rows() + 2) * row;
    std::memset(padded, 0, (band.rows() + 2) * row * sizeof(float));
    // pixels of a row of cotangents reach the rows before and after: those of the band are whole in the end
    for (int64_t h = std::max<int64_t>(band.first - 1, 0); h < std::min(band.last + 1, shape.H); ++h) {
      for (int64_t w = 0; w < shape.W; w += kMost) {
        const int64_t pixels = std::min(kMost, shape.W - w);
        for (int term = 0; term < args.terms; ++term) {
          const float* g = args.maps[term] + ((band.image * shape.H + h) * shape.W + w) * pitch + band.group * shape.O;
          const float* filters = args.filters[term] + band.group * taps * shape.O;
          for (int64_t t = 0; t < taps; t += kPanel) {
            multiply_exactly<kBytes, false>(
                {g, pitch, filters + t * shape.O, kPanel, shape.O, products + t, taps, term > 0}, pixels);
          }
        }
        for (int64_t p = 0; p < pixels; ++p) {
          for (int64_t dy = 0; dy < 3; ++dy) {
            float* to = padded + (h - band.first + 1 + dy) * row + (w + p) * shape.C;
            const float* from = products + p * taps + dy * segment;
            for (int64_t i = 0; i < segment; ++i) to[i] += from[i];
          }
        }
      }
    }
    for (int64_t h = band.first; h < band.last; ++h) {
      float* to = band.row_of(args, args.out, h);
      const float* from = padded + (h - band.first + 2) * row + shape.C;
      for (int64_t w = 0; w < shape.W; ++w) {
        for (int64_t c = 0; c < shape.C; ++c) {
          float& value = to[w * args.pitch + c];
          value = from[w * shape.C + c] + (args.add ? value : 0);
        }
      }
    }
  }
};

// The weight gradient's sums of a part of the bands, each summed by itself before it is added.
template <typename Tag, int kBytes>
struct RunPatchWeight {
  static DDFAST_INLINE void run(const PatchArgs& args, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) walk(args, task);
  }

  static constexpr int64_t kPanel = 2 * Lanes<kBytes>::kCount;

  static DDFAST_INLINE void walk(const PatchArgs& args, int64_t task) {
    const Conv3x3Shape& shape = args.shape;
    const int64_t part = task % args.parts, group = task / args.parts, each = shape.B * args.bands;
    const int64_t row = Band<float>::row(shape), pitch = shape.groups * shape.O, width = round_up(shape.O, kPanel);
    const int64_t size = (shape.H / args.bands + 3) * row + 2, sums = args.sum_stride();
    float* padded = conv3x3_workspace(size + sums + shape.W * kPanel);
    float *own = padded + size, *partial = own + sums;  // of one band; a panel of which O fills a part
    std::memset(padded, 0, (size + sums + shape.W * kPanel) * sizeof(float));
    float* total = args.out + (part * shape.groups + group) * sums;
    if (!args.add) std::memset(total, 0, sums * sizeof(float));
    for (int term = 0; term < args.terms; ++term) {
      for (int64_t i = part * each / args.parts; i < (part + 1) * each / args.parts; ++i) {
        const Band<const float> band(args, group * each + i);
        band.pad(args, args.maps[term], padded);
        for (int64_t h = band.first; h < band.last; ++h) {
          const float* line = args.g[term] + (band.image * shape.H + h) * shape.W * pitch + group * shape.O;
          for (int64_t o = 0; o < shape.O; o += kPanel) {
            const bool whole = o + kPanel <= shape.O;
            for (int64_t w = 0; !whole && w < shape.W; ++w) {
              std::memcpy(partial + w * kPanel, line + w * pitch + o, (shape.O - o) * sizeof(float));
            }
            for (int64_t dy = 0; dy < 3; ++dy) {
              multiply<kBytes, true>(
                  {padded + (h - band.first + dy) * row, shape.C, whole ? line + o : partial, whole ? pitch : kPanel,
                   shape.W, own + dy * args.sum_rows() * width + o, width, h > band.first},
                  3 * shape.C);
            }
          }
        }
        for (int64_t k = 0; k < sums; ++k) total[k] += own[k];
      }
    }
  }
};

}  // namespace ddfast
