// Memory of the maps of an unroll on a CPU, used again from step to step.
//
// A map of many megabytes that malloc() gives back to the system costs a page fault per 4 KiB when the next step asks
// for it. Inside a scope empty_maps() takes memory that an earlier map left. What is kept in reserve and what is in use
// together are never more than the most that was in use in this scope or the one before.
#pragma once

#include <ATen/core/Tensor.h>

namespace ddfast {

class ArenaScope {
 public:
  ArenaScope();
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;
};

// Gives what is kept in reserve back to the system.
void release_memory();

// at::empty, from the arena where it is large, on a CPU and inside a scope.
at::Tensor empty_maps(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace ddfast
