// Every kernel of pyramid_upsample on small maps, for the sanitizers.
#include <cstdlib>

#include "pyramid_upsample.cpp"

namespace {

constexpr int64_t kBatch = 2;
constexpr int64_t kLevels = 2;
constexpr int64_t kBins[kLevels] = {1, 3};
constexpr int64_t kBinCount = 1 + 9;

// Ends where the tensor does; one element in, 16-byte boundaries are missed.
class Buffer {
 public:
  Buffer(int64_t elements, size_t element, size_t shift)
      : memory_(static_cast<char*>(std::calloc(elements + shift, element))), shift_bytes_(shift * element) {}
  ~Buffer() { std::free(memory_); }
  void* data() const { return memory_ + shift_bytes_; }

 private:
  char* memory_;
  size_t shift_bytes_;
};

// Levels are summed if nothing is copied.
int run(int64_t channels, int64_t copied_channels, int64_t kernel_size, int64_t height, int64_t width,
        bool channels_last, int dtype, size_t shift) {
  const bool sum_levels = copied_channels == 0;
  const int64_t map_channels = copied_channels + channels * (sum_levels ? 1 : kLevels);
  const Problem problem{kBatch,        height,      width,   map_channels,        copied_channels,
                        channels,      kernel_size, dtype,   sum_levels,          /*align_corners=*/0,
                        channels_last, /*relu=*/1,  kLevels, {kBins[0], kBins[1]}};
  const size_t element = dtype == 0 ? 4 : 2;
  const int64_t pixels = kBatch * height * width;
  const Buffer map(pixels * map_channels, element, shift);
  const Buffer base(pixels * map_channels, element, shift);
  const Buffer copied(pixels * copied_channels, element, shift);
  const Buffer bias(channels, element, shift);
  const Buffer values(kBatch * kBinCount * kernel_size * kernel_size * channels, sizeof(float), shift);
  return pyramid_upsample(&problem, sum_levels ? base.data() : nullptr, sum_levels ? bias.data() : nullptr,
                          sum_levels ? nullptr : copied.data(), values.data(), map.data()) |
         pyramid_upsample_backward(&problem, map.data(), values.data());
}

}  // namespace

int main() {
  for (const int dtype : {0, 1, 2}) {
    for (const bool channels_last : {false, true}) {
      for (const size_t shift : {0, 1}) {
        // With and without 16-byte accesses, and more rows than a block of the backward takes at a time.
        for (const int64_t channels : {3, 8}) {
          if (run(channels, 0, 3, 23, 5, channels_last, dtype, shift)) return 1;
          if (run(channels, channels, 1, 2, 3, channels_last, dtype, shift)) return 1;
        }
      }
      // Two tiles a row.
      if (run(8, 0, 3, 2, 130, channels_last, dtype, 0)) return 1;
    }
  }
}
