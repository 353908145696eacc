// conv3x3 for few input channels: matrix products over patches, on a CPU in float32.
#pragma once

#include "args.h"
#include "glue.h"

namespace ddfast {

bool patches_apply(int64_t inputs, int64_t outputs);  // of a group, where is_fast(maps)

// w [groups·O, C, 3, 3] as the kernels read it: for the forward, or the input gradient (transposed).
at::Tensor pack_patches(const at::Tensor& w, int64_t groups, bool transposed);

// The forward, or the input gradient (transposed); x2 and bias may be undefined.
at::Tensor by_patches(const at::Tensor& x, const at::Tensor& w, const at::Tensor& x2, const at::Tensor& w2,
                      const at::Tensor& bias, int64_t groups, bool transposed);

// [groups·O, C, 3, 3]; g2 and x2 may be undefined.
at::Tensor weight_by_patches(const at::Tensor& g, const at::Tensor& x, int64_t groups, const at::Tensor& g2,
                             const at::Tensor& x2);

// Arguments of the kernels, all but pointers and how tasks are split; sums of the weight gradient for them, and the
// gradient [groups·O, C, 3, 3] from those.
PatchArgs patch_args(const at::Tensor& maps, int64_t groups, int64_t C, int64_t O);
at::Tensor patch_sums(const PatchArgs& args, const at::Tensor& like);
at::Tensor weight_of_sums(const at::Tensor& sums, const PatchArgs& args);

}  // namespace ddfast
