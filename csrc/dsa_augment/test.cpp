// dsa_augment: CPU and emulated CUDA kernels against dense matrices built tap by tap in double precision.
#include "../common/emulation.h"
// emulation.h comes first: it stands in for the CUDA runtime
#include <array>
#include <utility>

#include "../common/test_check.h"
#include "cpu.h"
#include "cuda.cuh"

namespace ddfast::test {

using Row = std::vector<double>;

const Row kIdentity = {0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 1};

Row with(std::vector<std::pair<int, double>> values) {
  Row row = kIdentity;
  for (const auto& [index, value] : values) row[index] = static_cast<float>(value);
  return row;
}

// One of each transform, all at once, and maps that leave the image or cannot be inverted.
const std::vector<Row> kRows = {
    kIdentity,
    with({{0, 1}}),
    with({{1, 2}, {2, -1}}),
    with({{3, -2}, {4, 3}, {5, 1}, {6, 9}}),
    with({{7, 1.1}, {9, -0.4}, {11, 0.87}, {12, 0.3}}),
    with({{7, 0.97}, {8, -0.25}, {9, 1.2}, {10, 0.25}, {11, 0.97}, {12, -0.9}}),
    with({{13, 0.3}, {14, 1.7}, {15, 0.6}}),
    with({{0, 1},
          {1, -1},
          {2, 1},
          {3, 1},
          {4, 4},
          {5, 2},
          {6, 4},
          {7, 0.9},
          {8, 0.2},
          {9, 0.1},
          {10, -0.2},
          {11, 1.1},
          {12, 0.2},
          {13, -0.2},
          {14, 0.4},
          {15, 1.3}}),
    with({{9, 100}}),
    with({{7, 0}, {9, 2}}),
    with({{7, 0.2}, {11, 0.3}}),
};

// A and b with out = A x + b for one image, pixels in the order c, y, x.
struct Affine {
  std::vector<double> matrix, offset;
};

Affine dense(const Row& r, const ImageShape& s) {
  const int64_t pixels = s.H * s.W, size = s.C * pixels;
  std::vector<double> color(size * size);
  const double b = r[13], sat = r[14], k = r[15];
  for (int64_t c = 0; c < s.C; ++c) {
    for (int64_t p = 0; p < pixels; ++p) {
      double* out = &color[(c * pixels + p) * size];
      for (int64_t d = 0; d < s.C; ++d) {
        out[d * pixels + p] += k * ((d == c ? sat : 0) + (1 - sat) / s.C);
        for (int64_t q = 0; q < pixels; ++q) out[d * pixels + q] += (1 - k) / size;
      }
    }
  }
  Affine result{std::vector<double>(size * size), std::vector<double>(size)};
  for (int64_t c = 0; c < s.C; ++c) {
    for (int64_t i = 0; i < s.H; ++i) {
      for (int64_t j = 0; j < s.W; ++j) {
        const double sx = r[7] * j + r[8] * i + r[9], sy = r[10] * j + r[11] * i + r[12];
        for (int64_t y = 0; y < s.H; ++y) {
          for (int64_t x = 0; x < s.W; ++x) {
            const double weight = std::max(0.0, 1 - std::abs(sx - x)) * std::max(0.0, 1 - std::abs(sy - y));
            const int64_t fx = r[0] != 0 ? s.W - 1 - x : x;
            if (weight == 0 || (y >= r[3] && y < r[4] && fx >= r[5] && fx < r[6])) continue;
            const int64_t from_y = y + static_cast<int64_t>(r[1]), from_x = fx + static_cast<int64_t>(r[2]);
            if (from_y < 0 || from_y >= s.H || from_x < 0 || from_x >= s.W) continue;
            const int64_t out = c * pixels + i * s.W + j, in = c * pixels + from_y * s.W + from_x;
            for (int64_t q = 0; q < size; ++q) result.matrix[out * size + q] += weight * color[in * size + q];
            result.offset[out] += weight * b;
          }
        }
      }
    }
  }
  return result;
}

template <typename T>
Maps<T> contiguous(T* data, const ImageShape& s) {
  return {data, s.C * s.H * s.W, s.H * s.W, s.W, 1};
}

template <typename T>
Maps<T> channels_last(T* data, const ImageShape& s) {
  return {data, s.C * s.H * s.W, 1, s.W * s.C, s.C};
}

template <typename T, typename Forward, typename Backward>
void check(const std::string& where, const ImageShape& s, const Forward& forward, const Backward& backward) {
  const int64_t size = s.C * s.H * s.W, total = s.N * size;
  const std::vector<double> x = draw<T>(total, 1), g = draw<T>(total, 2);
  std::vector<double> rows, values(total), tangents(total), gradients(total);
  for (int64_t n = 0; n < s.N; ++n) {
    rows.insert(rows.end(), kRows[n].begin(), kRows[n].end());
    const Affine affine = dense(kRows[n], s);
    for (int64_t out = 0; out < size; ++out) {
      for (int64_t in = 0; in < size; ++in) {
        tangents[n * size + out] += affine.matrix[out * size + in] * x[n * size + in];
        gradients[n * size + in] += affine.matrix[out * size + in] * g[n * size + out];
      }
      values[n * size + out] = tangents[n * size + out] + affine.offset[out];
    }
  }
  std::vector<double> partial = poisoned<double>(dsa_partials(s));
  const std::vector<T> images = as<T>(x), grads = as<T>(g), parameters = as<T>(rows);
  for (const bool linear : {false, true}) {
    std::vector<T> got = poisoned<T>(total), ordered(total);
    forward(DsaAugmentArgs<T>{s, linear, contiguous(images.data(), s), parameters.data(), channels_last(got.data(), s),
                              partial.data()});
    const Maps<T> maps = channels_last(got.data(), s), flat = contiguous(ordered.data(), s);
    for (int64_t i = 0; i < total; ++i) {
      const int64_t n = i / size, c = i / (s.H * s.W) % s.C, y = i / s.W % s.H, column = i % s.W;
      flat.at(n, c, y, column) = maps.at(n, c, y, column);
    }
    expect_close(where + (linear ? " jvp" : " value"), ordered, linear ? tangents : values);
  }
  std::vector<T> got = poisoned<T>(total);
  backward(DsaAugmentBackwardArgs<T>{s, contiguous(grads.data(), s), parameters.data(), contiguous(got.data(), s),
                                     partial.data()});
  expect_close(where + " backward", got, gradients);
}

template <typename T>
void check_all(int64_t C, int64_t H, int64_t W) {
  const ImageShape s{static_cast<int64_t>(kRows.size()), C, H, W};
  const std::string what = std::string(sizeof(T) == 4 ? " float" : " double") + " C=" + std::to_string(C) +
                           " H=" + std::to_string(H) + " W=" + std::to_string(W);
  check<T>(
      "cpu" + what, s,
      [&](const DsaAugmentArgs<T>& args) {
        dsa_augment_images(args, 0, s.N / 2);  // in two ranges, as two threads would
        dsa_augment_images(args, s.N / 2, s.N);
      },
      [&](const DsaAugmentBackwardArgs<T>& args) { dsa_augment_backward_images(args, 0, s.N); });
  const auto launch = [](const auto& args) { expect("launch", launch_dsa_augment(args, nullptr) == cudaSuccess); };
  check<T>("cuda" + what, s, launch, launch);
  std::vector<T> wider;  // every second number of each row: not side by side
  const auto launch_strided = [&](DsaAugmentArgs<T> args) {
    wider = poisoned<T>(2 * s.N * C * H * W);
    const Maps<const T> from = args.images;
    const Maps<T> to{wider.data(), 2 * from.n, 2 * from.c, 2 * from.h, 2};
    for (int64_t i = 0; i < s.N * C * H * W; ++i) wider[2 * i] = from.data[i];
    args.images = {to.data, to.n, to.c, to.h, to.w};
    launch(args);
  };
  check<T>("cuda, strided" + what, s, launch_strided, launch);
}

}  // namespace ddfast::test

int main() {
  for (const auto& [C, H, W] : {std::array<int64_t, 3>{1, 2, 2}, {3, 5, 4}, {3, 8, 11}}) {
    ddfast::test::check_all<float>(C, H, W);
    ddfast::test::check_all<double>(C, H, W);
  }
  ddfast::test::check_all<float>(1, 36, 35);  // several blocks an image
  return ddfast::test::finish("dsa_augment");
}
