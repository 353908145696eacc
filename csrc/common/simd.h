// Blocks of 64 bytes of numbers, and the choice of instruction set at run time.
//
// A kernel is written once against Block<T, kBytes>; run_best() runs the widest version that the processor has and
// PyTorch may use. The sum of a channel or a chunk is formed in the same order in every version (a fused multiply-add
// may change the last bit).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "bfloat16.h"

#define DDFAST_INLINE inline __attribute__((always_inline))
#define DDFAST_INLINE_LAMBDA __attribute__((always_inline))

namespace ddfast {

constexpr int kBlockBytes = 64;  // one cache line: what a task touches of a pixel in channels-last

template <typename T>
constexpr int kBlockLanes = kBlockBytes / static_cast<int>(sizeof(T));  // 16 floats, 8 doubles

// 16-bit numbers in memory, 32-bit ones in a vector of kBytes. Spelt out per width: gcc 12 does not convert vectors
// whose type depends on a template parameter.
template <int kBytes>
struct Halves;
#define DDFAST_HALVES(bytes)                                                                      \
  template <>                                                                                     \
  struct Halves<bytes> {                                                                          \
    typedef uint32_t Bits __attribute__((vector_size(bytes)));                                    \
    typedef uint16_t Half __attribute__((vector_size(bytes / 2)));                                \
    typedef uint16_t HalfInMemory __attribute__((vector_size(bytes / 2), aligned(2), may_alias)); \
    static DDFAST_INLINE Bits load(const Bfloat16* from) {                                        \
      return __builtin_convertvector(*reinterpret_cast<const HalfInMemory*>(from), Bits);         \
    }                                                                                             \
    static DDFAST_INLINE void store(const Bits& bits, Bfloat16* to) {                             \
      *reinterpret_cast<HalfInMemory*>(to) = __builtin_convertvector(bits, Half);                 \
    }                                                                                             \
  };
DDFAST_HALVES(16)
DDFAST_HALVES(32)
DDFAST_HALVES(64)
#undef DDFAST_HALVES

// Memory is read and written, and blocks are copied, by whole vectors: gcc copies a struct in pieces of 16 bytes,
// through the stack, and reading a 32-byte vector that was written in halves waits for both stores.
template <typename T, int kBytes>
struct Block {  // [kBlockLanes<T>], as kBlockBytes / kBytes machine vectors
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef T VectorInMemory __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
  static constexpr int kCount = kBlockBytes / kBytes;
  static constexpr int kVectorLanes = kBytes / static_cast<int>(sizeof(T));
  Vector part[kCount];

  Block() = default;
  DDFAST_INLINE Block(const Block& other) { *this = other; }
  DDFAST_INLINE Block& operator=(const Block& other) {
    for (int i = 0; i < kCount; ++i) part[i] = other.part[i];
    return *this;
  }
  static DDFAST_INLINE Block fill(T value) {
    Block out;
    for (int i = 0; i < kCount; ++i) out.part[i] = value - Vector{};
    return out;
  }
  static DDFAST_INLINE Block load(const T* from) {
    Block out;
    for (int i = 0; i < kCount; ++i) out.part[i] = *reinterpret_cast<const VectorInMemory*>(from + i * kVectorLanes);
    return out;
  }
  DDFAST_INLINE void store(T* to) const {
    for (int i = 0; i < kCount; ++i) *reinterpret_cast<VectorInMemory*>(to + i * kVectorLanes) = part[i];
  }
  // bfloat16 in memory, float in the block.
  static DDFAST_INLINE Block load(const Bfloat16* from) {
    static_assert(sizeof(T) == sizeof(float));
    Block out;
    for (int i = 0; i < kCount; ++i) {
      out.part[i] = reinterpret_cast<Vector>(Halves<kBytes>::load(from + i * kVectorLanes) << 16);
    }
    return out;
  }
  DDFAST_INLINE void store(Bfloat16* to) const {  // Bfloat16(float), lane by lane
    static_assert(sizeof(T) == sizeof(float));
    using Bits = typename Halves<kBytes>::Bits;
    for (int i = 0; i < kCount; ++i) {
      const Bits wide = reinterpret_cast<Bits>(part[i]);
      const Bits rounded = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
      const Bits bits = part[i] == part[i] ? rounded : Bfloat16::kNan + Bits{};
      Halves<kBytes>::store(bits, to + i * kVectorLanes);
    }
  }
  // The last block of a row may be partial (kFull = false): its other lanes are read as zero and not written.
  template <bool kFull, typename Element>
  static DDFAST_INLINE Block load(const Element* from, int lanes) {
    if (kFull) return load(from);
    Element values[kBlockLanes<T>];
    std::memset(values, 0, sizeof(values));
    std::memcpy(values, from, lanes * sizeof(Element));
    return load(values);
  }
  template <bool kFull, typename Element>
  DDFAST_INLINE void store(Element* to, int lanes) const {
    if (kFull) return store(to);
    Element values[kBlockLanes<T>];
    store(values);
    std::memcpy(to, values, lanes * sizeof(Element));
  }
  // value where gate > 0 or gate is NaN, else 0: ReLU that, like PyTorch's, lets a NaN through.
  static DDFAST_INLINE Block where_positive(const Block& gate, const Block& value) {
    Block out;
    for (int i = 0; i < kCount; ++i) out.part[i] = gate.part[i] <= Vector{} ? Vector{} : value.part[i];
    return out;
  }
  DDFAST_INLINE T lane(int i) const {
    T values[kBlockLanes<T>];
    store(values);
    return values[i];
  }
};

#define DDFAST_BLOCK_OPERATOR(op)                                                                    \
  template <typename T, int kBytes>                                                                  \
  DDFAST_INLINE Block<T, kBytes> operator op(const Block<T, kBytes>& a, const Block<T, kBytes>& b) { \
    Block<T, kBytes> out;                                                                            \
    for (int i = 0; i < Block<T, kBytes>::kCount; ++i) out.part[i] = a.part[i] op b.part[i];         \
    return out;                                                                                      \
  }
DDFAST_BLOCK_OPERATOR(+)
DDFAST_BLOCK_OPERATOR(-)
DDFAST_BLOCK_OPERATOR(*)
#undef DDFAST_BLOCK_OPERATOR

template <typename T, int kBytes>
DDFAST_INLINE void operator+=(Block<T, kBytes>& a, const Block<T, kBytes>& b) {
  a = a + b;
}

// A kernel is a class template Kernel<T, kBytes> with a static always-inline run(args, begin, end).
template <template <typename, int> class Kernel, typename T, typename Args>
void run_base(const Args& args, int64_t begin, int64_t end) {
  Kernel<T, 16>::run(args, begin, end);
}

#if defined(__x86_64__)
template <template <typename, int> class Kernel, typename T, typename Args>
__attribute__((target("avx2,fma"))) void run_avx2(const Args& args, int64_t begin, int64_t end) {
  Kernel<T, 32>::run(args, begin, end);
}

template <template <typename, int> class Kernel, typename T, typename Args>
__attribute__((target("avx512f"))) void run_avx512(const Args& args, int64_t begin, int64_t end) {
  Kernel<T, 64>::run(args, begin, end);
}
#endif

enum class InstructionSet { base, avx2, avx512 };

inline const char* name_of(InstructionSet set) {
  return set == InstructionSet::base ? "base" : set == InstructionSet::avx2 ? "avx2" : "avx512";
}

// The widest that this processor has.
inline InstructionSet best_instruction_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return InstructionSet::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
#endif
  return InstructionSet::base;
}

// The one that kernels run on: ATEN_CPU_CAPABILITY, with which PyTorch limits its own kernels, limits these too.
inline InstructionSet used_instruction_set() {
  static const InstructionSet used = [] {
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const InstructionSet best = best_instruction_set();
    if (limit == nullptr) return best;
    if (std::strcmp(limit, "default") == 0) return InstructionSet::base;
    if (std::strcmp(limit, "avx2") == 0 && best > InstructionSet::avx2) return InstructionSet::avx2;
    return best;
  }();
  return used;
}

template <template <typename, int> class Kernel, typename T, typename Args>
void run_on(InstructionSet set, const Args& args, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx512) return run_avx512<Kernel, T>(args, begin, end);
  if (set == InstructionSet::avx2) return run_avx2<Kernel, T>(args, begin, end);
#endif
  run_base<Kernel, T>(args, begin, end);
}

// Runs tasks begin … end−1 of the kernel; the caller spreads ranges over threads.
template <template <typename, int> class Kernel, typename T, typename Args>
void run_best(const Args& args, int64_t begin, int64_t end) {
  run_on<Kernel, T>(used_instruction_set(), args, begin, end);
}

}  // namespace ddfast
