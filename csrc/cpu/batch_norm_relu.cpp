// batch_norm_relu on the CPU: how the rows are cut for threads. The loops are in batch_norm_relu.inl.
#include "../batch_norm_relu.h"

#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "scratch.h"

namespace pspfast::cpu {

// Pointers to the first of some rows of each map, and the constants, padded to whole vectors.
template <class T, class A>
struct BatchNormRows {
  const T* x;
  const T* residual;
  const A* mean;
  const A* scale;
  const A* bias;
};

}  // namespace pspfast::cpu

#define PSPFAST_KERNELS "batch_norm_relu.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

template <class T>
using Acc = baseline::Acc<T>;

// Elements and rows of a chunk at most. Moments read it twice: 128 KB stay in the L2 cache. Sums of gradients are kept
// in float within a chunk: of eight rows they are as exact as their terms.
constexpr int64_t kChunk = 32768, kSummedRows = 8;
// Slices of rows, each with sums of its own in double. Their number does not depend on the number of threads, so
// neither does any result.
constexpr int64_t kMostSlices = 64;

struct Cut {
  int64_t pixels, chunk, slices, padded;

  explicit Cut(const BatchNormReluParams& p)
      : pixels(p.pixels),
        chunk(std::max<int64_t>(kChunk / p.channels, 1)),
        slices(std::min(kMostSlices, ceil_div(p.pixels, kSummedRows))),
        padded(round_up(p.channels, baseline::kLanes)) {}

  int64_t begin(int64_t slice) const { return slice * pixels / slices; }

  // Calls f(first row, rows) for each chunk of a slice.
  template <class F>
  void for_each_chunk(int64_t slice, int64_t most_rows, const F& f) const {
    const int64_t end = begin(slice + 1);
    for (int64_t row = begin(slice); row < end; row += most_rows) f(row, std::min(most_rows, end - row));
  }
};

// A copy of [C], with zeros up to whole vectors.
template <class A>
Scratch<A> padded_copy(const void* from, int64_t channels, int64_t padded) {
  auto copy = zeros<A>(padded);
  std::copy_n(static_cast<const A*>(from), channels, copy.get());
  return copy;
}

// 1 / sqrt(var + eps) of each channel.
template <class A>
A inverse_deviation(A var, double eps) {
  return 1 / std::sqrt(var + static_cast<A>(eps));
}

template <class T>
class Inputs {
 public:
  Inputs(const BatchNormReluParams& p, const BatchNormReluInputs& in, int64_t padded)
      : mean_(padded_copy<Acc<T>>(in.mean, p.channels, padded)),
        scale_(padded_copy<Acc<T>>(in.weight, p.channels, padded)),
        bias_(padded_copy<Acc<T>>(in.bias, p.channels, padded)),
        x_(static_cast<const T*>(in.x)),
        residual_(static_cast<const T*>(in.residual)) {
    const auto* var = static_cast<const Acc<T>*>(in.var);
    for (int64_t c = 0; c < p.channels; ++c) scale_[c] *= inverse_deviation(var[c], p.eps);
  }

  // Rows that begin `offset` elements behind the first.
  BatchNormRows<T, Acc<T>> at(int64_t offset) const {
    return {x_ + offset, residual_ ? residual_ + offset : nullptr, mean_.get(), scale_.get(), bias_.get()};
  }

 private:
  Scratch<Acc<T>> mean_, scale_, bias_;
  const T *x_, *residual_;
};

template <class T>
void statistics(const BatchNormReluParams& p, const T* x, Acc<T>* mean, Acc<T>* var) {
  const Cut cut(p);
  const auto means = zeros<double>(cut.slices * cut.padded), deviations = zeros<double>(cut.slices * cut.padded);
  parallel_tasks(cut.slices, [&] {
    return [&, chunk_mean = scratch<Acc<T>>(cut.padded), chunk_deviations = scratch<Acc<T>>(cut.padded)](int64_t s) {
      double count = 0;
      cut.for_each_chunk(s, cut.chunk, [&](int64_t row, int64_t rows) {
        PSPFAST_CALL(row_moments, x + row * p.channels, rows, p.channels, chunk_mean.get(), chunk_deviations.get());
        PSPFAST_CALL(join_moments, count, &means[s * cut.padded], &deviations[s * cut.padded], double(rows),
                     chunk_mean.get(), chunk_deviations.get(), p.channels);
        count += rows;
      });
    };
  });
  for (int64_t s = 1; s < cut.slices; ++s) {
    const int64_t count = cut.begin(s), more = cut.begin(s + 1) - count;
    PSPFAST_CALL(join_moments, double(count), means.get(), deviations.get(), double(more), &means[s * cut.padded],
                 &deviations[s * cut.padded], p.channels);
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    mean[c] = static_cast<Acc<T>>(means[c]);
    var[c] = static_cast<Acc<T>>(deviations[c] / p.pixels);
  }
}

template <class T>
void normalize(const BatchNormReluParams& p, const BatchNormReluInputs& in, T* out) {
  const Cut cut(p);
  const Inputs<T> inputs(p, in, cut.padded);
  advise_huge_pages(out, sizeof(T) * p.pixels * p.channels);
  parallel_tasks(cut.slices, [&] {
    return [&](int64_t s) {
      const int64_t first = cut.begin(s) * p.channels, rows = cut.begin(s + 1) - cut.begin(s);
      PSPFAST_CALL(normalize_rows, inputs.at(first), rows, p.channels, p.relu, out + first);
    };
  });
}

template <class T>
void backward(const BatchNormReluParams& p, const BatchNormReluInputs& in, const T* grad, T* grad_x, T* grad_residual,
              Acc<T>* grad_weight, Acc<T>* grad_bias) {
  const Cut cut(p);
  const Inputs<T> inputs(p, in, cut.padded);
  advise_huge_pages(grad_x, sizeof(T) * p.pixels * p.channels);
  if (grad_residual) advise_huge_pages(grad_residual, sizeof(T) * p.pixels * p.channels);
  const auto sums = zeros<double>(cut.slices * cut.padded), products = zeros<double>(cut.slices * cut.padded);
  parallel_tasks(cut.slices, [&] {
    return [&, chunk_sums = scratch<Acc<T>>(cut.padded), chunk_products = scratch<Acc<T>>(cut.padded)](int64_t s) {
      cut.for_each_chunk(s, kSummedRows, [&](int64_t row, int64_t rows) {
        const int64_t first = row * p.channels;
        std::fill_n(chunk_sums.get(), cut.padded, Acc<T>(0));
        std::fill_n(chunk_products.get(), cut.padded, Acc<T>(0));
        PSPFAST_CALL(sum_gradients, inputs.at(first), grad + first, rows, p.channels, p.relu,
                     grad_residual ? grad_residual + first : nullptr, chunk_sums.get(), chunk_products.get());
        for (int64_t c = 0; c < p.channels; ++c) {
          sums[s * cut.padded + c] += chunk_sums[c];
          products[s * cut.padded + c] += chunk_products[c];
        }
      });
    };
  });
  const auto* var = static_cast<const Acc<T>*>(in.var);
  const auto mean_gradient = zeros<Acc<T>>(cut.padded), slope = zeros<Acc<T>>(cut.padded);
  for (int64_t c = 0; c < p.channels; ++c) {
    double sum = 0, product = 0;
    for (int64_t s = 0; s < cut.slices; ++s) {
      sum += sums[s * cut.padded + c];
      product += products[s * cut.padded + c];
    }
    grad_bias[c] = static_cast<Acc<T>>(sum);
    grad_weight[c] = static_cast<Acc<T>>(product) * inverse_deviation(var[c], p.eps);
    mean_gradient[c] = static_cast<Acc<T>>(sum / p.pixels);
    slope[c] = static_cast<Acc<T>>(product / p.pixels / (var[c] + p.eps));
  }
  // The residual's gradient, where there is one, is the gradient behind the ReLU already.
  const T* behind = grad_residual ? grad_residual : grad;
  const bool with_relu = p.relu && !grad_residual;
  parallel_tasks(cut.slices, [&] {
    return [&](int64_t s) {
      const int64_t first = cut.begin(s) * p.channels, rows = cut.begin(s + 1) - cut.begin(s);
      PSPFAST_CALL(input_gradients, inputs.at(first), behind + first, rows, p.channels, with_relu, mean_gradient.get(),
                   slope.get(), grad_x + first);
    };
  });
}

}  // namespace

void batch_norm_statistics(const BatchNormReluParams& params, const void* x, void* mean, void* var) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    statistics(params, static_cast<const T*>(x), static_cast<Acc<T>*>(mean), static_cast<Acc<T>*>(var));
  });
}

void batch_norm_relu(const BatchNormReluParams& params, const BatchNormReluInputs& in, void* out) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    normalize(params, in, static_cast<T*>(out));
  });
}

void batch_norm_relu_backward(const BatchNormReluParams& params, const BatchNormReluInputs& in, const void* grad,
                              const BatchNormReluGradients& grads) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    backward(params, in, static_cast<const T*>(grad), static_cast<T*>(grads.x), static_cast<T*>(grads.residual),
             static_cast<Acc<T>*>(grads.weight), static_cast<Acc<T>*>(grads.bias));
  });
}

}  // namespace pspfast::cpu
