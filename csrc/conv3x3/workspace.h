// Memory that a thread keeps for the kernels of conv3x3.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace ddfast {

// At least so many floats for the calling thread, which keeps them; what they hold is anything.
inline float* conv3x3_workspace(int64_t floats) {
  struct Free {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
  };
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local int64_t size = 0;
  if (size < floats) {
    memory.reset();
    size = 0;
    memory.reset(new (std::align_val_t(64)) float[floats]());
    size = floats;
  }
  return memory.get();
}

}  // namespace ddfast
