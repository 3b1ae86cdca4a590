// upsample_cross_entropy on the CPU: how the work is cut for threads. The loops are in upsample_cross_entropy.inl.
#include "../upsample_cross_entropy.h"

#include <limits>
#include <numeric>

#include "dispatch_dtype.h"
#include "parallel.h"
#include "scratch.h"
#include "upsample.h"

namespace pspfast::cpu {
namespace {

// Neighbours in a row of the image that are taken together, as many as a vector of vector.inl has lanes.
constexpr int kBlock = 16;

// An image and what its pixels are compared with.
template <class T, class A>
struct LossImage {
  const T *logits, *end;  // the image's logits, and the end of all images'
  const int64_t* target;
  const A* weight;  // [K], or null
  A weight_sum;
};

// The gradient of these pixels with respect to class k, which has probability p, is
// all * p - (k is target) * one - u[k] * smooth. Without weights and smoothing only lse and target are used.
template <class A>
struct PixelBlock {
  A lse[kBlock], all[kBlock], one[kBlock], smooth[kBlock];
  std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t> target[kBlock];
};

// grad [classes, rows, cols] and three more, buffer [3, classes, 16], carry [classes, 16], column_weights [sources of
// any sixteen columns and three more, 16], blocks [rows of the image that read one row of logits].
template <class A>
struct BackwardScratch {
  Scratch<A> grad, buffer, carry, column_weights;
  Scratch<PixelBlock<A>> blocks;
};

}  // namespace
}  // namespace pspfast::cpu

#define PSPFAST_KERNELS "upsample_cross_entropy.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;
static_assert(kBlock == kLanes);

template <class T>
using Acc = baseline::Acc<T>;

template <class T>
LossImage<T, Acc<T>> image_of(const UpsampleLossParams& p, int64_t n, const T* logits, const int64_t* target,
                              const Acc<T>* weight) {
  using A = Acc<T>;
  const double weight_sum = weight ? std::accumulate(weight, weight + p.classes, 0.0) : static_cast<double>(p.classes);
  return {logits + n * image_size(p), logits + p.batch * image_size(p), target + n * p.height * p.width, weight,
          static_cast<A>(weight_sum)};
}

template <class T>
void loss(const UpsampleLossParams& p, const T* logits, const int64_t* target, const Acc<T>* weight, Acc<T>* lse,
          LabelType label_type, void* labels, double* sums) {
  using A = Acc<T>;
  const AxisSegments<A> rows(p.height, p.rows, p.align_corners), cols(p.width, p.cols, p.align_corners);
  parallel_tasks(p.batch * p.rows, [&] {
    return [&, buffer = scratch<A>(3 * p.classes * kLanes)](int64_t task) {
      const int64_t n = task / p.rows, first_pixel = n * p.height * p.width;
      PSPFAST_CALL(loss_of_rows, p, rows, cols, task % p.rows, image_of(p, n, logits, target, weight),
                   lse + first_pixel, LabelOutput{label_type, labels, first_pixel}, sums + task * 3, buffer.get());
    };
  });
}

template <class T, bool kPlain>
void loss_backward(const UpsampleLossParams& p, const T* logits, const int64_t* target, const Acc<T>* weight,
                   const Acc<T>* lse, Acc<T> scale, T* grad_logits) {
  using A = Acc<T>;
  const AxisSegments<A> rows(p.height, p.rows, p.align_corners), cols(p.width, p.cols, p.align_corners);
  const int64_t plane = p.rows * p.cols;
  // A task takes few classes, for its expanded rows to stay in an L1 cache. Where the images cannot be dealt out evenly
  // to the threads, a thread gets at least four tasks.
  constexpr int64_t kMostClasses = 32;
  const int64_t threads = thread_count();
  const int64_t tasks = p.batch % threads == 0 ? 1 : ceil_div(4 * threads, p.batch);
  const int64_t wanted = std::max(ceil_div(p.classes, kMostClasses), tasks);
  const int64_t chunks = std::min(p.classes, wanted), most = ceil_div(p.classes, chunks);
  parallel_tasks(p.batch * chunks, [&] {
    return [&, scratch = BackwardScratch<A>{scratch<A>(most * plane + 3), scratch<A>(3 * most * kLanes),
                                            scratch<A>(most * kLanes), scratch<A>((p.cols + 3) * kLanes),
                                            scratch<PixelBlock<A>>(rows.longest())}](int64_t task) {
      const int64_t n = task / chunks, chunk = task % chunks;
      const int64_t first = p.classes * chunk / chunks, classes = p.classes * (chunk + 1) / chunks - first;
      PSPFAST_CALL(loss_of_classes_backward, std::bool_constant<kPlain>{}, p, rows, cols, first, classes,
                   image_of(p, n, logits, target, weight), lse + n * p.height * p.width, scratch);
      T* to = grad_logits + n * image_size(p);
      for (int64_t k = 0; k < classes; ++k) {
        for (int64_t i = 0; i < plane; ++i) {
          to[p.channels_last ? i * p.classes + first + k : (first + k) * plane + i] =
              static_cast<T>(scale * scratch.grad[k * plane + i]);
        }
      }
    };
  });
}

}  // namespace

int64_t upsample_cross_entropy_partials(const UpsampleLossParams& params) { return params.batch * params.rows; }

void upsample_cross_entropy(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                            const void* weight, void* lse, LabelType label_type, void* labels, double* sums) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    loss(params, static_cast<const T*>(logits), target, static_cast<const Acc<T>*>(weight), static_cast<Acc<T>*>(lse),
         label_type, labels, sums);
  });
}

void upsample_cross_entropy_mean(const UpsampleLossParams& params, int64_t partials, const double* sums, void* loss,
                                 void* weight_sum, bool* valid) {
  std::array<double, 3> total = {};
  for (int64_t i = 0; i < partials * 3; ++i) total[i % 3] += sums[i];
  const double mean = total[1] != 0 ? total[0] / total[1] : 0;
  dispatch_dtype(params.dtype, [&](auto* type) {
    using A = Acc<std::remove_pointer_t<decltype(type)>>;
    *static_cast<A*>(loss) = static_cast<A>(mean);
    *static_cast<A*>(weight_sum) = static_cast<A>(total[1]);
  });
  *valid = total[2] == 0;
}

int64_t upsample_cross_entropy_workspace(const UpsampleLossParams&) { return 0; }

void upsample_cross_entropy_backward(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                                     const void* weight, const void* lse, const void* scale, void* grad_logits,
                                     void* /* workspace */) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    (params.label_smoothing == 0 && !weight
         ? loss_backward<T, true>
         : loss_backward<T, false>)(params, static_cast<const T*>(logits), target, static_cast<const Acc<T>*>(weight),
                                    static_cast<const Acc<T>*>(lse), *static_cast<const Acc<T>*>(scale),
                                    static_cast<T*>(grad_logits));
  });
}

}  // namespace pspfast::cpu
