// Every kernel of pyramid_pool on small maps, for the sanitizers.
#include <cstdlib>

#include "pyramid_pool.cpp"

namespace {

// More blocks than a grid of the emulation holds.
constexpr int64_t kBatch = 4;
constexpr int64_t kBins[] = {1, 2, 3, 6};
constexpr int64_t kBinCount = 1 + 4 + 9 + 36;

int run(int64_t channels, int64_t height, int64_t width, bool channels_last, int dtype, size_t shift) {
  const size_t element = dtype == 0 ? 4 : 2;
  // Either allocation ends where the tensor does.
  auto* x = static_cast<char*>(std::calloc(kBatch * channels * height * width + shift, element));
  auto* pooled = static_cast<char*>(std::calloc(kBatch * channels * kBinCount + shift, element));
  int error = 0;
  for (const bool backward : {false, true}) {
    char* from = (backward ? pooled : x) + shift * element;
    char* to = (backward ? x : pooled) + shift * element;
    error |= pyramid_pool(kBatch, channels, height, width, channels_last, dtype, kBins, 4, backward, from, to);
  }
  std::free(x);
  std::free(pooled);
  return error;
}

}  // namespace

int main() {
  for (const int dtype : {0, 1, 2}) {
    // With and without 16-byte accesses; one element in, their boundary is missed.
    for (const int64_t channels : {3, 8}) {
      for (const size_t shift : {0, 1}) {
        for (const bool channels_last : {false, true}) {
          if (run(channels, 7, 5, channels_last, dtype, shift)) return 1;
        }
        if (run(channels, 1, 1, false, dtype, shift)) return 1;
      }
    }
  }
}
