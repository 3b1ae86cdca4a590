// upsample_loss on the CPU: how the work is cut for threads. The loops are in upsample_loss.inl.
#include "../upsample_loss.h"

#include <limits>
#include <numeric>

#include "upsample.h"

namespace pspfast::cpu {
namespace {

// Neighbours in a row of the image, as many as a vector of vector.inl has lanes.
constexpr int kBlock = 16;

// What the gradient of these pixels is made of: with respect to class k, which has probability p,
// all * p - (k is target) * one - u[k] * smooth.
template <class A>
struct PixelBlock {
  A lse[kBlock], all[kBlock], one[kBlock], smooth[kBlock];
  std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t> target[kBlock];
};

template <class A>
void fill_block(const UpsampleLossParams& p, const int64_t* target, const A* weight, A weight_sum, const A* lse,
                int64_t count, PixelBlock<A>& block) {
  const A smooth = static_cast<A>(p.label_smoothing / static_cast<double>(p.classes));
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t t = i < count ? target[i] : p.ignore_index;
    const bool counts = t != p.ignore_index && t >= 0 && t < p.classes;
    block.target[i] = counts ? static_cast<int32_t>(t) : -1;
    // Probabilities behind the last column are zero.
    block.lse[i] = i < count ? lse[i] : std::numeric_limits<A>::max();
    block.one[i] = counts ? static_cast<A>(1 - p.label_smoothing) * (weight ? weight[t] : A(1)) : A(0);
    block.smooth[i] = counts ? smooth : A(0);
    block.all[i] = block.one[i] + block.smooth[i] * weight_sum;
  }
}

}  // namespace
}  // namespace pspfast::cpu

#define PSPFAST_KERNELS "upsample_loss.inl"
#include "for_each_level.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;
static_assert(kBlock == kLanes);

template <class T>
using Acc = baseline::Acc<T>;

template <class A>
double sum_of_weights(const UpsampleLossParams& p, const A* weight) {
  return weight ? std::accumulate(weight, weight + p.classes, 0.0) : static_cast<double>(p.classes);
}

template <class T>
void loss(const UpsampleLossParams& p, const T* logits, const int64_t* target, const Acc<T>* weight, Acc<T>* lse,
          LabelType label_type, void* labels, double* sums) {
  using A = Acc<T>;
  const AxisSegments<A> rows(p.height, p.rows, p.align_corners), cols(p.width, p.cols, p.align_corners);
  const int64_t pixels = p.height * p.width;
  const double weight_sum = sum_of_weights(p, weight);
  parallel_tasks(p.batch * p.rows, [&] {
    return [&, buffer = scratch<A>(3 * p.classes * kLanes)](int64_t task) {
      const int64_t n = task / p.rows, source = task % p.rows;
      PSPFAST_CALL(loss_of_rows, p, rows, cols, source, logits + n * image_size(p), logits + p.batch * image_size(p),
                   target + n * pixels, weight, weight_sum, lse + n * pixels, label_type, labels, n * pixels,
                   sums + task * 3, buffer.get());
    };
  });
}

template <class A>
Scratch<PixelBlock<A>> make_blocks(const UpsampleLossParams& p, const int64_t* target, const A* weight, const A* lse) {
  const int64_t blocks = ceil_div(p.width, kBlock), rows = p.batch * p.height;
  auto pixels = scratch<PixelBlock<A>>(rows * blocks);
  const A weight_sum = static_cast<A>(sum_of_weights(p, weight));
  parallel_tasks(rows, [&] {
    return [&](int64_t row) {
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = row * p.width + block * kBlock;
        fill_block(p, target + first, weight, weight_sum, lse + first, p.width - block * kBlock,
                   pixels[row * blocks + block]);
      }
    };
  });
  return pixels;
}

template <class T, bool kSmooth>
void loss_backward(const UpsampleLossParams& p, const T* logits, const int64_t* target, const Acc<T>* weight,
                   const Acc<T>* lse, Acc<T> scale, T* grad_logits) {
  using A = Acc<T>;
  const AxisSegments<A> rows(p.height, p.rows, p.align_corners), cols(p.width, p.cols, p.align_corners);
  const auto pixels = make_blocks(p, target, weight, lse);
  const int64_t plane = p.rows * p.cols;
  // Few classes a task, for what is expanded to stay in an L1 cache, and a few tasks a thread.
  constexpr int64_t kMostClasses = 32;
  const int64_t wanted = std::max(ceil_div(p.classes, kMostClasses), ceil_div(4 * at::get_num_threads(), p.batch));
  const int64_t parts = std::min(p.classes, wanted), most = ceil_div(p.classes, parts);
  parallel_tasks(p.batch * parts, [&] {
    return [&, grad = scratch<A>(most * plane), buffer = scratch<A>(3 * most * kLanes),
            carry = scratch<A>(most * kLanes), column_weights = scratch<A>(p.cols * kLanes)](int64_t task) {
      const int64_t n = task / parts, part = task % parts;
      const int64_t first = p.classes * part / parts, classes = p.classes * (part + 1) / parts - first;
      PSPFAST_CALL(gather_classes, std::bool_constant<kSmooth>{}, p, rows, cols, first, classes,
                   logits + n * image_size(p), logits + p.batch * image_size(p),
                   &pixels[n * p.height * ceil_div(p.width, kBlock)], weight, grad.get(), buffer.get(), carry.get(),
                   column_weights.get());
      T* to = grad_logits + n * image_size(p);
      for (int64_t k = 0; k < classes; ++k) {
        for (int64_t i = 0; i < plane; ++i) {
          to[p.channels_last ? i * p.classes + first + k : (first + k) * plane + i] =
              static_cast<T>(scale * grad[k * plane + i]);
        }
      }
    };
  });
}

}  // namespace

int64_t upsample_loss_parts(const UpsampleLossParams& params) { return params.batch * params.rows; }

void upsample_loss(const UpsampleLossParams& params, const void* logits, const int64_t* target, const void* weight,
                   void* lse, LabelType label_type, void* labels, double* sums) {
  dispatch(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    loss(params, static_cast<const T*>(logits), target, static_cast<const Acc<T>*>(weight), static_cast<Acc<T>*>(lse),
         label_type, labels, sums);
  });
}

void upsample_loss_backward(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                            const void* weight, const void* lse, const void* scale, void* grad_logits) {
  dispatch(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    (params.label_smoothing > 0
         ? loss_backward<T, true>
         : loss_backward<T, false>)(params, static_cast<const T*>(logits), target, static_cast<const Acc<T>*>(weight),
                                    static_cast<const Acc<T>*>(lse), *static_cast<const Acc<T>*>(scale),
                                    static_cast<T*>(grad_logits));
  });
}

}  // namespace pspfast::cpu
