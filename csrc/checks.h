// Checks of arguments that several ops have. A message says op, argument, expected, got.
#pragma once

#include <sstream>
#include <stdexcept>

#include "dtype.h"
#include "geometry.h"
#include "tensor.h"

namespace pspfast {

inline std::ostream& operator<<(std::ostream& stream, const torch::stable::Device& device) {
  switch (device.type()) {
    case torch::headeronly::DeviceType::CPU: return stream << "cpu";
    case torch::headeronly::DeviceType::CUDA: return stream << "cuda:" << device.index();
    case torch::headeronly::DeviceType::Meta: return stream << "meta";
    default: return stream << "one of another type";
  }
}

inline std::ostream& operator<<(std::ostream& stream, const Sizes& sizes) {
  const char* separator = "[";
  for (const int64_t size : sizes) {
    stream << separator << size;
    separator = ", ";
  }
  return stream << (sizes.empty() ? "[]" : "]");
}

inline std::ostream& operator<<(std::ostream& stream, Shape shape) {
  return stream << Sizes(shape.begin(), shape.size());
}

// Python gets a ValueError.
template <class... Parts>
[[noreturn]] void raise(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace pspfast

#define PSPFAST_CHECK(condition, ...) \
  if (!(condition)) [[unlikely]]      \
  ::pspfast::raise(__VA_ARGS__)

namespace pspfast {

// The kernels' name for a dtype on the CPU or on a GPU; an error where they have none.
inline DType check_dtype(const char* op, const char* argument, ScalarType dtype, bool is_cpu) {
  switch (dtype) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Double:
      if (is_cpu) return DType::kFloat64;
      break;
    default: break;
  }
  raise(op, ": ", argument, ": expected float32, float16 or bfloat16", is_cpu ? " or float64" : "", ", got ", dtype);
}

inline DType check_dtype(const char* op, const char* argument, const Tensor& tensor) {
  return check_dtype(op, argument, tensor.scalar_type(), tensor.is_cpu());
}

// The type of sums of such elements.
inline ScalarType sum_type(DType dtype) { return dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Double;
}

inline void check_floating(const char* op, const char* argument, const Tensor& tensor) {
  PSPFAST_CHECK(is_floating(tensor.scalar_type()), op, ": ", argument, ": expected floating point, got ",
                tensor.scalar_type());
}

inline PyramidLevels check_bins(const char* op, const Ints& bins) {
  PSPFAST_CHECK(!bins.empty() && bins.size() <= kMaxLevels, op, ": bins: expected 1 to ", kMaxLevels, " levels, got ",
                bins.size());
  int64_t axis_bins = 0;
  for (const int64_t b : bins) {
    PSPFAST_CHECK(b >= 1 && b <= kMaxAxisBins, op, ": bins: expected each of 1 to ", kMaxAxisBins, ", got ", b);
    axis_bins += b;
  }
  PSPFAST_CHECK(axis_bins <= kMaxAxisBins, op, ": bins: expected a sum of at most ", kMaxAxisBins, ", got ", axis_bins);
  return make_pyramid_levels(bins.data(), static_cast<int>(bins.size()));
}

inline void check_sizes(const char* op, const char* argument, int64_t height, int64_t width) {
  for (const int64_t size : {height, width}) {
    PSPFAST_CHECK(size >= 1 && size <= kMaxAxisSize, op, ": ", argument, ": expected H and W of 1 to ", kMaxAxisSize,
                  ", got ", height, " and ", width);
  }
}

// Checks that taps, which interpolate rows and cols to height and width, can be computed in int32.
inline void check_taps(const char* op, int64_t height, int64_t rows, int64_t width, int64_t cols) {
  PSPFAST_CHECK(std::max(height * rows, width * cols) < int64_t(1) << 30, op,
                ": size: expected H h and W w below 2^30, got ", height, " x ", rows, " and ", width, " x ", cols);
}

// Checks that the kernels take a map [N, C, H, W].
inline DType check_map(const char* op, const char* argument, const Tensor& map) {
  PSPFAST_CHECK(map.dim() == 4, op, ": ", argument, ": expected [N, C, H, W], got shape ", map.sizes());
  const DType dtype = check_dtype(op, argument, map);
  check_sizes(op, argument, map.size(2), map.size(3));
  return dtype;
}

inline void check_device(const char* op, const char* argument, const Tensor& tensor, const char* as,
                         const Tensor& other) {
  PSPFAST_CHECK(tensor.device() == other.device(), op, ": ", argument, ": expected device ", other.device(), " as ", as,
                ", got ", tensor.device());
}

// Checks that two tensors have one dtype and device.
inline void check_same(const char* op, const char* argument, const Tensor& tensor, const char* as,
                       const Tensor& other) {
  PSPFAST_CHECK(tensor.scalar_type() == other.scalar_type(), op, ": ", argument, ": expected ", other.scalar_type(),
                " as ", as, ", got ", tensor.scalar_type());
  check_device(op, argument, tensor, as, other);
}

inline void check_shape(const char* op, const char* argument, const Tensor& tensor, Shape shape) {
  PSPFAST_CHECK(has_shape(tensor, shape), op, ": ", argument, ": expected shape ", shape, ", got ", tensor.sizes());
}

inline void check_bias(const char* op, const Tensor& bias, int64_t out_channels, const char* as, const Tensor& other) {
  PSPFAST_CHECK(has_shape(bias, {out_channels}), op, ": bias: expected [O] with O = ", out_channels, ", got shape ",
                bias.sizes());
  check_same(op, "bias", bias, as, other);
}

// Checks priors [N, R, S] for the map x.
inline void check_priors(const char* op, const Tensor& priors, const Tensor& x, const PyramidLevels& pyramid) {
  PSPFAST_CHECK(priors.dim() == 3 && priors.size(0) == x.size(0) && priors.size(2) == pyramid.bin_count, op,
                ": priors: expected [N, R, S] with N = ", x.size(0), " and S = ", pyramid.bin_count, ", got shape ",
                priors.sizes());
  check_same(op, "priors", priors, "x", x);
}

}  // namespace pspfast
