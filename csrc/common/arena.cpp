#include "arena.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/MemoryFormat.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <cstdlib>
#include <list>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace ddfast {
namespace {

constexpr size_t kLarge = size_t{1} << 18;     // bytes; smaller ones malloc() keeps anyway
constexpr size_t kPage = 4096;                 // sizes are multiples of it
constexpr size_t kHugePage = size_t{1} << 21;  // where a block holds two or more, the system is asked for them

struct Block {
  void* memory;
  size_t bytes;
};

class Arena {
 public:
  void enter() {
    const std::lock_guard lock(mutex_);
    if (depth_++ == 0) peak_ = live_;
  }

  void leave() {
    const std::lock_guard lock(mutex_);
    if (--depth_ > 0) return;
    last_peak_ = peak_;
    shrink(limit());
  }

  void release() {
    const std::lock_guard lock(mutex_);
    peak_ = last_peak_ = live_;
    shrink(0);
#ifdef __GLIBC__
    malloc_trim(0);  // free() alone keeps what lies below other memory in use
#endif
  }

  bool is_used() {
    const std::lock_guard lock(mutex_);
    return depth_ > 0;
  }

  Block take(size_t bytes) {
    const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    const std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block) {
      if (block->bytes < rounded || block->bytes > rounded + rounded / 8) continue;
      if (best == free_.end() || block->bytes < best->bytes) best = block;
    }
    Block block{nullptr, rounded};
    if (best != free_.end()) {
      block = *best;
      reserve_ -= block.bytes;
      free_.erase(best);
    }
    live_ += block.bytes;
    peak_ = std::max(peak_, live_);
    shrink(limit());
    if (block.memory == nullptr) block.memory = allocate(block.bytes);
    return block;
  }

  void give(const Block& block) {
    const std::lock_guard lock(mutex_);
    live_ -= block.bytes;
    reserve_ += block.bytes;
    free_.push_front(block);
    shrink(limit());
  }

 private:
  void* allocate(size_t bytes) {
    const bool huge = bytes >= 2 * kHugePage;
    void* memory = nullptr;
    if (posix_memalign(&memory, huge ? kHugePage : kPage, bytes) != 0) {
      shrink(0);
      live_ -= bytes;
      memory = c10::alloc_cpu(bytes);  // raises as every other allocation does
      live_ += bytes;
    }
#ifdef MADV_HUGEPAGE
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // where it fails, pages are small
#endif
    return memory;
  }

  size_t limit() const { return std::max({live_, peak_, last_peak_}); }

  // Gives back what was not used for longest.
  void shrink(size_t most) {
    while (!free_.empty() && live_ + reserve_ > most) {
      reserve_ -= free_.back().bytes;
      std::free(free_.back().memory);
      free_.pop_back();
    }
  }

  std::mutex mutex_;
  std::list<Block> free_;  // the last one given back comes first
  size_t live_ = 0, reserve_ = 0, peak_ = 0, last_peak_ = 0;
  int depth_ = 0;
};

Arena& arena() {
  static Arena* const one = new Arena;  // never destroyed: tensors may outlive static objects
  return *one;
}

}  // namespace

ArenaScope::ArenaScope() { arena().enter(); }
ArenaScope::~ArenaScope() { arena().leave(); }

void release_memory() { arena().release(); }

at::Tensor empty_maps(at::IntArrayRef sizes, const at::TensorOptions& options) {
  size_t bytes = options.dtype().itemsize();
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  if (!options.device().is_cpu() || bytes < kLarge || !arena().is_used()) return at::empty(sizes, options);
  std::vector<int64_t> strides = options.memory_format_opt() == at::MemoryFormat::ChannelsLast
                                     ? c10::get_channels_last_strides_2d(sizes)
                                     : std::vector<int64_t>(sizes.size(), 1);
  if (options.memory_format_opt() != at::MemoryFormat::ChannelsLast) {
    for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  }
  const Block block = arena().take(bytes);
  return at::from_blob(
      block.memory, sizes, strides, [block](void*) { arena().give(block); }, options.memory_format(std::nullopt));
}

}  // namespace ddfast
