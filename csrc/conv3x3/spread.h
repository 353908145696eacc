// What the CPU glue of conv3x3 shares: the instruction set's panels, and tasks spread over threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "../common/simd.h"

namespace ddfast {

inline int64_t panel_floats() {  // two vectors
  switch (used_instruction_set()) {
    case InstructionSet::avx512:
      return 32;
    case InstructionSet::avx2:
      return 16;
    default:
      return 8;
  }
}

template <template <typename, int> class Kernel, typename Tile, typename Args>
void spread(const Args& args, int64_t tasks) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { run_best<Kernel, Tile>(args, begin, end); });
}

inline const float* data(const at::Tensor& tensor) { return tensor.const_data_ptr<float>(); }

}  // namespace ddfast
