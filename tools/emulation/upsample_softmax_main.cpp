// Every kernel of upsample_softmax on small maps, for the sanitizers.
#include <vector>

#include "upsample_softmax.cpp"

namespace {

constexpr int64_t kBatch = 2;

// Every allocation ends where the tensor does.
int run(int64_t classes, int64_t rows, int64_t cols, int64_t height, int64_t width, int64_t align_corners,
        int64_t channels_last, int64_t dtype) {
  const Problem problem{kBatch, classes, rows, cols, height, width, align_corners, channels_last, dtype};
  const int64_t pixels = kBatch * height * width;
  const std::vector<char> logits(kBatch * classes * rows * cols * (dtype == 0 ? 4 : 2));
  std::vector<float> probabilities(pixels * classes);
  int error = 0;
  for (const int64_t add : {0, 1}) {
    const Output output{classes * height * width, height * width, width, 1, /*flip=*/add, add, 0.5};
    error |= upsample_softmax(&problem, &output, logits.data(), probabilities.data());
  }
  return error;
}

}  // namespace

int main() {
  for (const int64_t dtype : {0, 1, 2}) {
    for (const int64_t channels_last : {0, 1}) {
      if (run(3, 2, 3, 9, 17, 1, channels_last, dtype)) return 1;
      if (run(3, 3, 4, 2, 3, 0, channels_last, dtype)) return 1;
    }
  }
  // Several chunks of classes, and tiles of pixels.
  if (run(300, 1, 5, 1, 130, 0, 1, 0)) return 1;
  if (run(2, 1, 2, 17, 19, 1, 0, 0)) return 1;
}
