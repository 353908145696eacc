// Numbers of neighbouring addresses that are moved at once, and whether addresses allow it.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "launch.cuh"

namespace ddfast {

constexpr int kVectorBytes = 16;  // the widest load

template <typename M, int kVector>
struct alignas(sizeof(M) * kVector) Packed {
  M of[kVector];
};

template <int kVector, typename M>
__device__ Packed<M, kVector> load_packed(const M* from) {
  return *reinterpret_cast<const Packed<M, kVector>*>(from);
}

template <typename M, int kVector>
__device__ void store_packed(const Packed<M, kVector>& packed, M* to) {
  *reinterpret_cast<Packed<M, kVector>*>(to) = packed;
}

inline bool are_aligned(std::initializer_list<const void*> addresses) {  // nullptr is
  for (const void* address : addresses) {
    if (reinterpret_cast<uintptr_t>(address) % kVectorBytes != 0) return false;
  }
  return true;
}

}  // namespace ddfast
