// The first block of a ConvNet on a CPU in float32: convolution over patches, instance norm, ReLU and pool, image by
// image. Its maps are the network's largest by far and cheap to compute from the images: they are never whole in
// memory. A thread has those of one image, and computes them again where a derivative needs them.
#pragma once

#include <tuple>

#include "../conv3x3/glue.h"

namespace ddfast {

// Of how many images at a time the maps are in memory, for filters [outputs, inputs, 3, 3] of a group; 0 where maps are
// those of all images: few channels of images are needed, and images enough to keep all threads busy.
int64_t first_block_parts(int64_t images, int64_t inputs, int64_t outputs);

// Whether it is used.
bool first_block_applies(const at::Tensor& x, const at::Tensor& w);

struct FirstBlock {
  at::Tensor x;            // [B, G·C, H, W], channels-last
  at::Tensor w;            // [S·width, C, 3, 3]
  at::Tensor gamma, beta;  // [S·width]
  int64_t students;        // S
};

struct FirstTangents {  // of the parameters; the images' own is 0
  at::Tensor dw, dgamma, dbeta;
};

struct FirstForward {
  at::Tensor y, mean, rstd;    // [B, S·width, H / 2, W / 2], [B, S·width]
  at::Tensor dy, dmean, dcov;  // their tangents, and that of norm_relu_pool_jvp
};

// `tangents` may be nullptr.
FirstForward first_forward(const FirstBlock& block, double eps, const FirstTangents* tangents);

// Gradients of w [S·width, C, 3, 3], γ and β [S·width].
std::tuple<at::Tensor, at::Tensor, at::Tensor> first_backward(const FirstBlock& block, const FirstForward& forward,
                                                              const at::Tensor& g_y);

// The gradient of x, like x.
at::Tensor first_backward_input(const FirstBlock& block, const FirstForward& forward, const at::Tensor& g_y);

// Their tangents, and that of the gradient of x; of those not wanted an undefined one.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> first_backward_jvp(
    const FirstBlock& block, const FirstTangents& tangents, const FirstForward& forward, const at::Tensor& g_y,
    const at::Tensor& dg_y, bool want_parameters, bool want_x);

}  // namespace ddfast
