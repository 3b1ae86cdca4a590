// Every kernel of upsample_maps on small maps, for the sanitizers.
#include <cstdlib>

#include "upsample_maps.cpp"

namespace {

constexpr int64_t kBatch = 2;
constexpr int64_t kLevels = 2;
constexpr int64_t kBins[kLevels] = {1, 3};
constexpr int64_t kBinCount = 1 + 9;

// What may miss a 16-byte boundary, by an element.
enum Tensor { kNone, kMap, kBase, kBias, kCopied, kValues };

// Ends where the tensor does.
class Buffer {
 public:
  Buffer(int64_t elements, size_t element, bool shifted)
      : memory_(static_cast<char*>(std::calloc(elements + shifted, element))), data_(memory_ + shifted * element) {}
  ~Buffer() { std::free(memory_); }
  void* data() const { return data_; }

 private:
  char *memory_, *data_;
};

struct Size {
  int64_t channels, kernel_size, height, width;
};

// Levels are summed if nothing is copied.
int run(const Size& size, int64_t copied_channels, bool channels_last, int dtype, Tensor shifted) {
  const bool sum_levels = copied_channels == 0;
  const int64_t map_channels = copied_channels + size.channels * (sum_levels ? 1 : kLevels);
  const PyramidProblem problem{.batch = kBatch,
                               .height = size.height,
                               .width = size.width,
                               .map_channels = map_channels,
                               .first_channel = copied_channels,
                               .channels = size.channels,
                               .kernel_size = size.kernel_size,
                               .dtype = dtype,
                               .sum_levels = sum_levels,
                               .align_corners = false,
                               .channels_last = channels_last,
                               .relu = true,
                               .levels = kLevels,
                               .bins = {kBins[0], kBins[1]}};
  const size_t element = dtype == 0 ? 4 : 2;
  const int64_t pixels = kBatch * size.height * size.width;
  const Buffer map(pixels * map_channels, element, shifted == kMap);
  const Buffer base(pixels * map_channels, element, shifted == kBase);
  const Buffer bias(size.channels, element, shifted == kBias);
  const Buffer copied(pixels * copied_channels, element, shifted == kCopied);
  const Buffer values(kBatch * kBinCount * size.kernel_size * size.kernel_size * size.channels, sizeof(float),
                      shifted == kValues);
  return pyramid_upsample(&problem, sum_levels ? base.data() : nullptr, sum_levels ? bias.data() : nullptr,
                          sum_levels ? nullptr : copied.data(), values.data(), map.data()) |
         pyramid_upsample_backward(&problem, map.data(), values.data());
}

// Levels of half and a quarter of the size, in tiles of their sources.
int run_maps(int64_t channels, int64_t height, int64_t width, bool nearest, bool channels_last, int dtype,
             int value_dtype) {
  const MapProblem problem{.batch = kBatch,
                           .height = height,
                           .width = width,
                           .channels = channels,
                           .kernel_size = 3,
                           .dtype = dtype,
                           .value_dtype = value_dtype,
                           .align_corners = false,
                           .nearest = nearest,
                           .channels_last = channels_last,
                           .relu = true,
                           .levels = kLevels,
                           .rows = {height / 2, height / 4},
                           .cols = {width / 2, width / 4}};
  const Buffer map(kBatch * height * width * channels, dtype == 0 ? 4 : 2, false);
  const size_t element = value_dtype == 0 ? 4 : 2;
  const Buffer half(kBatch * (height / 2) * (width / 2) * 9 * channels, element, false);
  const Buffer quarter(kBatch * (height / 4) * (width / 4) * 9 * channels, element, false);
  void* values[] = {half.data(), quarter.data()};
  return upsample_maps(&problem, nullptr, nullptr, values, map.data()) |
         upsample_maps_backward(&problem, map.data(), values);
}

}  // namespace

int main() {
  for (const int dtype : {0, 1, 2}) {
    for (const bool channels_last : {false, true}) {
      for (const int64_t channels : {3, 8}) {
        for (const bool nearest : {false, true}) {
          if (run_maps(channels, 20, 24, nearest, channels_last, dtype, dtype)) return 1;
        }
        if (run_maps(channels, 9, 13, false, channels_last, dtype, 0)) return 1;
      }
      // With and without 16-byte accesses, and more rows than a block of the backward takes at a time.
      for (const int64_t channels : {3, 8}) {
        if (run({channels, 3, 23, 5}, 0, channels_last, dtype, kNone)) return 1;
        if (run({channels, 1, 2, 3}, channels, channels_last, dtype, kNone)) return 1;
      }
      // Two tiles a row.
      for (const int64_t width : {130, 136}) {
        if (run({8, 3, 2, width}, 0, channels_last, dtype, kNone)) return 1;
      }
      // Vectors of contiguous pixels, of one row and of two, in several bands.
      for (const int64_t width : {8, 12}) {
        if (run({11, 3, 22, width}, 0, channels_last, dtype, kNone)) return 1;
      }
      for (const Tensor shifted : {kMap, kBase, kBias, kCopied, kValues}) {
        for (const int64_t copied : {0, 8}) {
          for (const int64_t width : {3, 4}) {
            if (run({8, 1, 2, width}, copied, channels_last, dtype, shifted)) return 1;
          }
        }
      }
    }
  }
}
