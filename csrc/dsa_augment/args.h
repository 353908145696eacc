// What the kernels of dsa_augment read and write, and the arithmetic of one pixel, the same on either device.
//
// A row of parameters per image, identity values where a transform is not drawn. Applied in this order: colour, shift,
// box of zeros, flip, affine map with bilinear sampling; the letters are those of ddfast/ops/dsa_augment.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace ddfast {

constexpr int kDsaParameters = 16;

struct ImageShape {
  int64_t N, C, H, W;
};

// Pixels of any layout: strides in elements.
template <typename T>
struct Maps {
  T* data;
  int64_t n, c, h, w;
  DDFAST_HOST_DEVICE T& at(int64_t image, int64_t channel, int64_t y, int64_t x) const {
    return data[image * n + channel * c + y * h + x * w];
  }
  // Whether all numbers of an image lie side by side.
  bool is_dense(const ImageShape& shape) const {
    return (c == shape.H * shape.W && h == shape.W && w == 1) || (c == 1 && h == shape.W * shape.C && w == shape.C);
  }
};

template <typename T>
struct DsaAugmentArgs {
  ImageShape shape;
  bool linear;  // without the brightness: the jvp, on tangents
  Maps<const T> images;
  const T* rows;  // [N, kDsaParameters]
  Maps<T> out;
  double* partial;  // scratch memory of the CUDA kernels
};

template <typename T>
struct DsaAugmentBackwardArgs {
  ImageShape shape;
  Maps<const T> grad;  // of the result
  const T* rows;       // [N, kDsaParameters]
  Maps<T> grad_images;
  double* partial;  // as above
};

// One image's parameters.
template <typename T>
struct DsaRow {
  T flip, down, right, top, bottom, left, end, xx, xy, x0, yx, yy, y0, brightness, saturation, contrast;

  // Shifts are pixels; one that no image is as large as, or NaN, moves every pixel out of the image.
  DDFAST_HOST_DEVICE static int64_t pixels(T shift) {
    constexpr int64_t kFar = int64_t{1} << 40;
    return shift > static_cast<T>(-kFar) && shift < static_cast<T>(kFar) ? static_cast<int64_t>(shift) : kFar;
  }
  DDFAST_HOST_DEVICE bool is_contrast() const { return contrast != T(1); }
  DDFAST_HOST_DEVICE bool is_saturation() const { return saturation != T(1); }
  DDFAST_HOST_DEVICE T source_x(int64_t y, int64_t x) const {
    return xx * static_cast<T>(x) + xy * static_cast<T>(y) + x0;
  }
  DDFAST_HOST_DEVICE T source_y(int64_t y, int64_t x) const {
    return yx * static_cast<T>(x) + yy * static_cast<T>(y) + y0;
  }

  // Where pixel (y, x) before the affine map comes from in the image; false where it is zero.
  DDFAST_HOST_DEVICE bool before_affine(const ImageShape& shape, int64_t& y, int64_t& x) const {
    if (y < 0 || y >= shape.H || x < 0 || x >= shape.W) return false;
    if (flip != T(0)) x = shape.W - 1 - x;
    if (in_box(y, x)) return false;
    y += pixels(down);
    x += pixels(right);
    return y >= 0 && y < shape.H && x >= 0 && x < shape.W;
  }
  // Where pixel (y, x) of the image goes before the affine map; false where it is lost.
  DDFAST_HOST_DEVICE bool towards_affine(const ImageShape& shape, int64_t& y, int64_t& x) const {
    y -= pixels(down);
    x -= pixels(right);
    if (y < 0 || y >= shape.H || x < 0 || x >= shape.W || in_box(y, x)) return false;
    if (flip != T(0)) x = shape.W - 1 - x;
    return true;
  }

 private:
  DDFAST_HOST_DEVICE bool in_box(int64_t y, int64_t x) const {
    return static_cast<T>(y) >= top && static_cast<T>(y) < bottom && static_cast<T>(x) >= left &&
           static_cast<T>(x) < end;
  }
};

template <typename T>
DDFAST_HOST_DEVICE DsaRow<T> dsa_row(const T* rows, int64_t n) {
  const T* r = rows + n * kDsaParameters;
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13], r[14], r[15]};
}

template <typename T>
DDFAST_HOST_DEVICE T channel_mean(const ImageShape& shape, const Maps<const T>& maps, int64_t n, int64_t y, int64_t x) {
  T sum = 0;
  for (int64_t c = 0; c < shape.C; ++c) sum += maps.at(n, c, y, x);
  return sum / static_cast<T>(shape.C);
}

// All channels of one pixel of the result; `level` is (1 − contrast) times the image's mean, plus the brightness.
template <typename T>
DDFAST_HOST_DEVICE void dsa_pixel(const DsaAugmentArgs<T>& args, const DsaRow<T>& row, T level, int64_t n, int64_t y,
                                  int64_t x) {
  const T sx = row.source_x(y, x), sy = row.source_y(y, x);
  int64_t ys[4], xs[4];
  T weights[4], means[4];
  int taps = 0;
  if (sx > T(-1) && sx < static_cast<T>(args.shape.W) && sy > T(-1) && sy < static_cast<T>(args.shape.H)) {
    const T left = std::floor(sx), up = std::floor(sy);
    for (int tap = 0; tap < 4; ++tap) {
      const T wx = tap % 2 == 0 ? T(1) - (sx - left) : sx - left, wy = tap / 2 == 0 ? T(1) - (sy - up) : sy - up;
      int64_t from_y = static_cast<int64_t>(up) + tap / 2, from_x = static_cast<int64_t>(left) + tap % 2;
      if (wx * wy == T(0) || !row.before_affine(args.shape, from_y, from_x)) continue;
      ys[taps] = from_y;
      xs[taps] = from_x;
      weights[taps] = wx * wy;
      means[taps++] = row.is_saturation() ? channel_mean(args.shape, args.images, n, from_y, from_x) : T(0);
    }
  }
  for (int64_t c = 0; c < args.shape.C; ++c) {
    T sum = 0;
    for (int tap = 0; tap < taps; ++tap) {
      const T grey = means[tap], value = args.images.at(n, c, ys[tap], xs[tap]);
      sum += weights[tap] * (row.contrast * (row.saturation * (value - grey) + grey) + level);
    }
    args.out.at(n, c, y, x) = sum;
  }
}

// All channels of the cotangent of one pixel before the colours are taken back; their sum.
template <typename T>
DDFAST_HOST_DEVICE T dsa_pixel_backward(const DsaAugmentBackwardArgs<T>& args, const DsaRow<T>& row, int64_t n,
                                        int64_t y, int64_t x) {
  const ImageShape& shape = args.shape;
  for (int64_t c = 0; c < shape.C; ++c) args.grad_images.at(n, c, y, x) = 0;
  int64_t v = y, u = x;
  if (!row.towards_affine(shape, v, u)) return 0;
  // The results that sample (v, u) lie in the inverse image of the square of side 2 about it.
  const T det = row.xx * row.yy - row.xy * row.yx;
  int64_t first_x = 0, last_x = shape.W - 1, first_y = 0, last_y = shape.H - 1;
  if (std::abs(det) > T(1e-6)) {
    const T du = static_cast<T>(u) - row.x0, dv = static_cast<T>(v) - row.y0;
    const T middle_x = (row.yy * du - row.xy * dv) / det, middle_y = (row.xx * dv - row.yx * du) / det;
    const T reach_x = (std::abs(row.yy) + std::abs(row.xy)) / std::abs(det) + T(0.01);
    const T reach_y = (std::abs(row.xx) + std::abs(row.yx)) / std::abs(det) + T(0.01);
    const auto clamp = [](T value, int64_t most) {
      return static_cast<int64_t>(!(value > T(0)) ? T(0) : value > static_cast<T>(most) ? static_cast<T>(most) : value);
    };
    first_x = clamp(std::ceil(middle_x - reach_x), shape.W);
    last_x = middle_x + reach_x < T(0) ? -1 : clamp(std::floor(middle_x + reach_x), shape.W - 1);
    first_y = clamp(std::ceil(middle_y - reach_y), shape.H);
    last_y = middle_y + reach_y < T(0) ? -1 : clamp(std::floor(middle_y + reach_y), shape.H - 1);
  }
  T total = 0;
  for (int64_t j = first_y; j <= last_y; ++j) {
    for (int64_t i = first_x; i <= last_x; ++i) {
      const T wx = T(1) - std::abs(row.source_x(j, i) - static_cast<T>(u));
      const T wy = T(1) - std::abs(row.source_y(j, i) - static_cast<T>(v));
      if (!(wx > T(0) && wy > T(0))) continue;
      for (int64_t c = 0; c < shape.C; ++c) args.grad_images.at(n, c, y, x) += wx * wy * args.grad.at(n, c, j, i);
    }
  }
  for (int64_t c = 0; c < shape.C; ++c) total += args.grad_images.at(n, c, y, x);
  return total;
}

// The colours' transpose, in place; `level` is (1 − contrast) times the mean of the cotangent.
template <typename T>
DDFAST_HOST_DEVICE void dsa_color_backward(const DsaAugmentBackwardArgs<T>& args, const DsaRow<T>& row, T level,
                                           int64_t n, int64_t y, int64_t x) {
  T grey = 0;
  for (int64_t c = 0; c < args.shape.C && row.is_saturation(); ++c) grey += args.grad_images.at(n, c, y, x);
  grey /= static_cast<T>(args.shape.C);
  for (int64_t c = 0; c < args.shape.C; ++c) {
    T& value = args.grad_images.at(n, c, y, x);
    value = row.contrast * (row.saturation * (value - grey) + grey) + level;
  }
}

}  // namespace ddfast
