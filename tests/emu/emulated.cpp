// The switches of an emulated build (see emulated.py), which Python sets through ctypes.
#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>

#define DA_EXPORT extern "C" __attribute__((visibility("default")))

namespace deepatlas {
namespace {

std::atomic<bool> emulating{false};
std::atomic<int64_t> most_blocks{INT64_MAX}, index_limit{INT64_MAX};
std::mutex mutex;
std::set<std::string> launched;
int stream;

}  // namespace

bool on_cuda(const at::Tensor&) { return emulating; }
void* emulated_stream() { return &stream; }
int64_t most_emulated_blocks() { return most_blocks; }
int64_t emulated_index_limit() { return index_limit; }

void note_launch(const char* launcher) {
  const std::lock_guard<std::mutex> lock(mutex);
  launched.insert(launcher);
}

}  // namespace deepatlas

// Run the CUDA launchers (on) or the CPU kernels, with at most `blocks` blocks a launch and 32-bit
// indices up to `limit` elements.
DA_EXPORT void emulate_cuda(int on, int64_t blocks, int64_t limit) {
  deepatlas::emulating = on != 0;
  deepatlas::most_blocks = blocks;
  deepatlas::index_limit = limit;
}

// The names of the launchers that were called, separated by spaces.
DA_EXPORT const char* emulated_launches() {
  static std::string text;
  const std::lock_guard<std::mutex> lock(deepatlas::mutex);
  text.clear();
  for (const auto& name : deepatlas::launched) text += name + " ";
  return text.c_str();
}
