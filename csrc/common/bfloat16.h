// bfloat16 as a storage type: the upper half of a float. What is computed with it is computed in float.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace ddfast {

struct Bfloat16 {
  uint16_t bits;

  Bfloat16() = default;
  DDFAST_HOST_DEVICE explicit Bfloat16(float value) {  // to nearest, ties to even
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof(wide));
    const uint32_t rounded = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
    bits = static_cast<uint16_t>(value == value ? rounded : kNan);
  }
  DDFAST_HOST_DEVICE operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
  }

  static constexpr uint32_t kNan = 0x7fc0;
};

// The type to compute in with numbers that are stored as `Element`.
template <typename Element>
struct RealOf {
  using Type = Element;
};
template <>
struct RealOf<Bfloat16> {
  using Type = float;
};
template <typename Element>
using Real = typename RealOf<Element>::Type;

}  // namespace ddfast
