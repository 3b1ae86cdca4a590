// Every kernel of upsample_cross_entropy on small maps, for the sanitizers.
#include <vector>

#include "upsample_cross_entropy.cpp"

namespace {

constexpr int64_t kBatch = 2;

// Every allocation ends where the tensor does.
int run(int64_t classes, int64_t rows, int64_t cols, int64_t height, int64_t width, int64_t align_corners,
        int64_t channels_last, int64_t dtype, double label_smoothing) {
  const Problem problem{kBatch,        classes,       rows,  cols,    height,         width,
                        align_corners, channels_last, dtype, classes, label_smoothing};
  const int64_t pixels = kBatch * height * width, size = kBatch * classes * rows * cols;
  const int64_t element = dtype == 0 ? 4 : 2;
  const std::vector<char> logits(size * element);
  std::vector<char> grad_logits(size * element), workspace(upsample_cross_entropy_workspace(&problem));
  std::vector<int64_t> target(pixels), labels(pixels);
  for (int64_t i = 0; i < pixels; ++i) target[i] = i % (classes + 1);
  const std::vector<float> weight(classes, 1.f);
  std::vector<float> lse(pixels);
  std::vector<double> sums(3 * upsample_cross_entropy_partials(&problem));
  const float scale = 1;
  float loss, weight_sum;
  bool valid;
  return upsample_cross_entropy_mean(&problem, sums.size() / 3, sums.data(), &loss, &weight_sum, &valid) |
         upsample_cross_entropy(&problem, logits.data(), target.data(), weight.data(), lse.data(), 2, labels.data(),
                                sums.data()) |
         upsample_cross_entropy(&problem, logits.data(), target.data(), nullptr, lse.data(), 0, nullptr, sums.data()) |
         upsample_cross_entropy_backward(&problem, logits.data(), target.data(), weight.data(), lse.data(), &scale,
                                         grad_logits.data(), workspace.data());
}

}  // namespace

int main() {
  for (const int64_t dtype : {0, 1, 2}) {
    for (const int64_t channels_last : {0, 1}) {
      // Up and down, with and without label smoothing.
      if (run(3, 2, 3, 9, 17, 1, channels_last, dtype, 0)) return 1;
      if (run(3, 3, 4, 2, 3, 0, channels_last, dtype, 0.1)) return 1;
    }
  }
  // Several chunks of classes, runs of columns of logits, and strips of pixels.
  if (run(300, 1, 5, 1, 130, 0, 1, 0, 0.1)) return 1;
  if (run(2, 2, 17, 12, 19, 1, 0, 0, 0)) return 1;
}
