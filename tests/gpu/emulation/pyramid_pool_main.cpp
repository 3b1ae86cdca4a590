// Every kernel of pyramid_pool once, for the sanitizers.
#include <cstdlib>

#include "pyramid_pool.cpp"

int main() {
  // More blocks than a grid of the emulation holds.
  constexpr int64_t kBatch = 4, kHeight = 7, kWidth = 5, kBinCount = 1 + 4 + 9 + 36;
  constexpr int64_t bins[] = {1, 2, 3, 6};
  for (const int dtype : {0, 1, 2}) {
    const size_t bytes = dtype == 0 ? 4 : 2;
    for (const bool channels_last : {false, true}) {
      for (const int64_t channels : {3, 8}) {
        // One element in, the 16-byte boundary is missed; either allocation ends where the tensor does.
        for (const size_t shift : {size_t{0}, bytes}) {
          const size_t x_bytes = kBatch * channels * kHeight * kWidth * bytes;
          const size_t pooled_bytes = kBatch * channels * kBinCount * bytes;
          auto* x = static_cast<char*>(std::calloc(1, shift + x_bytes));
          auto* pooled = static_cast<char*>(std::calloc(1, shift + pooled_bytes));
          const int error = pyramid_pool(kBatch, channels, kHeight, kWidth, channels_last, dtype, bins, 4, false,
                                         x + shift, pooled + shift) |
                            pyramid_pool(kBatch, channels, kHeight, kWidth, channels_last, dtype, bins, 4, true,
                                         pooled + shift, x + shift);
          std::free(x);
          std::free(pooled);
          if (error) return error;
        }
      }
    }
  }
}
