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
const Acc<T>* variances(const BatchNormReluParams& p, const BatchNormReluInputs& in) {
  return static_cast<const Acc<T>*>(in.statistics) + p.channels;
}

template <class T>
class Inputs {
 public:
  Inputs(const BatchNormReluParams& p, const BatchNormReluInputs& in, int64_t padded)
      : mean_(padded_copy<Acc<T>>(in.statistics, p.channels, padded)),
        scale_(padded_copy<Acc<T>>(in.weight, p.channels, padded)),
        bias_(padded_copy<Acc<T>>(in.bias, p.channels, padded)),
        x_(static_cast<const T*>(in.x)),
        residual_(static_cast<const T*>(in.residual)) {
    const Acc<T>* var = variances<T>(p, in);
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

// Of the means and sums of squared deviations of `count` values; zeros of none.
template <class A>
void store_statistics(const BatchNormReluParams& p, double count, const double* means, const double* deviations,
                      A* result) {
  for (int64_t c = 0; c < p.channels; ++c) {
    result[c] = static_cast<A>(means[c]);
    result[p.channels + c] = static_cast<A>(deviations[c] / std::max(count, 1.0));
  }
  result[2 * p.channels] = static_cast<A>(count);
}

template <class T>
void statistics(const BatchNormReluParams& p, const T* x, Acc<T>* result) {
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
  store_statistics(p, p.pixels, means.get(), deviations.get(), result);
}

template <class A>
void merge(const BatchNormReluParams& p, int64_t count, const A* parts, A* result) {
  const int64_t padded = round_up(p.channels, baseline::kLanes);
  const auto means = zeros<double>(padded), deviations = zeros<double>(padded);
  const auto mean = zeros<A>(padded), more = zeros<A>(padded);
  double values = 0;
  for (int64_t part = 0; part < count; ++part) {
    const A* statistics = parts + part * (2 * p.channels + 1);
    const double added = statistics[2 * p.channels];
    if (added == 0) continue;
    std::copy_n(statistics, p.channels, mean.get());
    for (int64_t c = 0; c < p.channels; ++c) more[c] = static_cast<A>(statistics[p.channels + c] * added);
    PSPFAST_CALL(join_moments, values, means.get(), deviations.get(), added, mean.get(), more.get(), p.channels);
    values += added;
  }
  store_statistics(p, values, means.get(), deviations.get(), result);
}

template <class A>
void move_running(const BatchNormReluParams& p, const A* statistics, const RunningStatistics& running) {
  const double count = statistics[2 * p.channels], unbiased = count / (count - 1);
  if (running.batches) ++*running.batches;
  if (count < 2) return;
  auto *mean = static_cast<A*>(running.mean), *var = static_cast<A*>(running.var);
  const auto move = [&](A& value, double to) { value += static_cast<A>(running.momentum * (to - value)); };
  for (int64_t c = 0; c < p.channels; ++c) {
    if (mean) move(mean[c], statistics[c]);
    if (var) move(var[c], statistics[p.channels + c] * unbiased);
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
void grad_sums(const BatchNormReluParams& p, const BatchNormReluInputs& in, const T* grad, T* grad_residual,
               Acc<T>* result) {
  const Cut cut(p);
  const Inputs<T> inputs(p, in, cut.padded);
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
  const Acc<T>* var = variances<T>(p, in);
  for (int64_t c = 0; c < p.channels; ++c) {
    double sum = 0, product = 0;
    for (int64_t s = 0; s < cut.slices; ++s) {
      sum += sums[s * cut.padded + c];
      product += products[s * cut.padded + c];
    }
    result[c] = static_cast<Acc<T>>(sum);
    result[p.channels + c] = static_cast<Acc<T>>(product) * inverse_deviation(var[c], p.eps);
  }
}

template <class T>
void grad_input(const BatchNormReluParams& p, const BatchNormReluInputs& in, const T* grad, const Acc<T>* sums,
                T* grad_x) {
  const Cut cut(p);
  const Inputs<T> inputs(p, in, cut.padded);
  advise_huge_pages(grad_x, sizeof(T) * p.pixels * p.channels);
  const Acc<T>* var = variances<T>(p, in);
  const double count = var[p.channels];
  const auto mean_gradient = zeros<Acc<T>>(cut.padded), slope = zeros<Acc<T>>(cut.padded);
  for (int64_t c = 0; c < p.channels; ++c) {
    mean_gradient[c] = static_cast<Acc<T>>(sums[c] / count);
    slope[c] = static_cast<Acc<T>>(sums[p.channels + c] / count) * inverse_deviation(var[c], p.eps);
  }
  const bool with_relu = p.relu && !in.residual;
  parallel_tasks(cut.slices, [&] {
    return [&](int64_t s) {
      const int64_t first = cut.begin(s) * p.channels, rows = cut.begin(s + 1) - cut.begin(s);
      PSPFAST_CALL(input_gradients, inputs.at(first), grad + first, rows, p.channels, with_relu, mean_gradient.get(),
                   slope.get(), grad_x + first);
    };
  });
}

}  // namespace

void batch_norm_statistics(const BatchNormReluParams& params, const void* x, void* result) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    statistics(params, static_cast<const T*>(x), static_cast<Acc<T>*>(result));
  });
}

void merge_batch_norm_statistics(const BatchNormReluParams& params, int64_t count, const void* parts, void* result) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using A = Acc<std::remove_pointer_t<decltype(type)>>;
    merge(params, count, static_cast<const A*>(parts), static_cast<A*>(result));
  });
}

void move_running_statistics(const BatchNormReluParams& params, const void* result, const RunningStatistics& running) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using A = Acc<std::remove_pointer_t<decltype(type)>>;
    move_running(params, static_cast<const A*>(result), running);
  });
}

void batch_norm_relu(const BatchNormReluParams& params, const BatchNormReluInputs& in, void* out) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    normalize(params, in, static_cast<T*>(out));
  });
}

void batch_norm_relu_grad_sums(const BatchNormReluParams& params, const BatchNormReluInputs& in, const void* grad,
                               void* grad_residual, void* sums) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    grad_sums(params, in, static_cast<const T*>(grad), static_cast<T*>(grad_residual), static_cast<Acc<T>*>(sums));
  });
}

void batch_norm_relu_grad_input(const BatchNormReluParams& params, const BatchNormReluInputs& in, const void* grad,
                                const void* sums, void* grad_x) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    grad_input(params, in, static_cast<const T*>(grad), static_cast<const Acc<T>*>(sums), static_cast<T*>(grad_x));
  });
}

}  // namespace pspfast::cpu
