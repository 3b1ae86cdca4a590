// Every kernel of pyramid_pool on small maps, for the sanitizers.
#include <cstdlib>
#include <vector>

#include "pyramid_pool.cpp"

namespace {

// More blocks than a grid of the emulation holds.
constexpr int64_t kBatch = 4;

struct Pyramid {
  std::vector<int64_t> bins;
  int64_t bin_count;
};
const Pyramid kPyramid{{1, 2, 3, 6}, 1 + 4 + 9 + 36};
// More cells than fit into shared memory with 16 bytes of channels of 16 bits.
const Pyramid kManyBins{{21}, 21 * 21};

int run(int64_t channels, int64_t height, int64_t width, bool channels_last, int dtype, size_t shift,
        const Pyramid& pyramid = kPyramid) {
  const size_t element = dtype == 0 ? 4 : 2;
  // Either allocation ends where the tensor does.
  auto* x = static_cast<char*>(std::calloc(kBatch * channels * height * width + shift, element));
  auto* pooled = static_cast<char*>(std::calloc(kBatch * channels * pyramid.bin_count + shift, element));
  int error = 0;
  for (const bool backward : {false, true}) {
    char* from = (backward ? pooled : x) + shift * element;
    char* to = (backward ? x : pooled) + shift * element;
    error |= pyramid_pool(kBatch, channels, height, width, channels_last, dtype, pyramid.bins.data(),
                          static_cast<int>(pyramid.bins.size()), backward, from, to);
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
  // Bins that are summed each for itself, and a row that exceeds a tile of shared memory.
  if (run(8, 40, 40, true, 1, 0, kManyBins)) return 1;
  if (run(1, 2, 3850, false, 0, 1)) return 1;
}
