// CPU kernels of dsa_augment: a task is one image; sums run over its pixels row by row.
#pragma once

#include "args.h"

namespace ddfast {

template <typename T>
void dsa_augment_images(const DsaAugmentArgs<T>& args, int64_t begin, int64_t end) {
  const ImageShape& shape = args.shape;
  for (int64_t n = begin; n < end; ++n) {
    const DsaRow<T> row = dsa_row(args.rows, n);
    T level = args.linear ? T(0) : row.brightness;
    if (row.is_contrast()) {
      T sum = 0;
      for (int64_t y = 0; y < shape.H; ++y) {
        T part = 0;
        for (int64_t x = 0; x < shape.W; ++x) part += channel_mean(shape, args.images, n, y, x);
        sum += part;
      }
      level += (T(1) - row.contrast) * sum / static_cast<T>(shape.H * shape.W);
    }
    for (int64_t y = 0; y < shape.H; ++y) {
      for (int64_t x = 0; x < shape.W; ++x) dsa_pixel(args, row, level, n, y, x);
    }
  }
}

template <typename T>
void dsa_augment_backward_images(const DsaAugmentBackwardArgs<T>& args, int64_t begin, int64_t end) {
  const ImageShape& shape = args.shape;
  for (int64_t n = begin; n < end; ++n) {
    const DsaRow<T> row = dsa_row(args.rows, n);
    T sum = 0;
    for (int64_t y = 0; y < shape.H; ++y) {
      T part = 0;
      for (int64_t x = 0; x < shape.W; ++x) part += dsa_pixel_backward(args, row, n, y, x);
      sum += part;
    }
    const T level =
        row.is_contrast() ? (T(1) - row.contrast) * sum / static_cast<T>(shape.C * shape.H * shape.W) : T(0);
    for (int64_t y = 0; y < shape.H; ++y) {
      for (int64_t x = 0; x < shape.W; ++x) dsa_color_backward(args, row, level, n, y, x);
    }
  }
}

}  // namespace ddfast
