// Checks of arguments that several ops have. A message says op, argument, expected, got.
#pragma once

#include <ATen/core/Tensor.h>

#include "dtype.h"
#include "geometry.h"

namespace pspfast {

// The kernels' name for a dtype on a device; an error where they have none.
inline DType check_dtype(const char* op, const char* argument, at::ScalarType dtype, at::DeviceType device) {
  const bool is_cpu = device == at::kCPU;
  switch (dtype) {
    case at::kFloat: return DType::kFloat32;
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kDouble:
      if (is_cpu) {
        return DType::kFloat64;
      }
      break;
    default: break;
  }
  TORCH_CHECK_TYPE(false, op, ": ", argument, ": expected float32, float16 or bfloat16", is_cpu ? " or float64" : "",
                   ", got ", dtype);
}

inline DType check_dtype(const char* op, const char* argument, const at::Tensor& tensor) {
  return check_dtype(op, argument, tensor.scalar_type(), tensor.device().type());
}

// The type of sums of such elements.
inline at::ScalarType sum_type(DType dtype) { return dtype == DType::kFloat64 ? at::kDouble : at::kFloat; }

inline PyramidLevels check_bins(const char* op, at::IntArrayRef bins) {
  TORCH_CHECK_VALUE(!bins.empty() && bins.size() <= kMaxLevels, op, ": bins: expected 1 to ", kMaxLevels,
                    " levels, got ", bins.size());
  int64_t axis_bins = 0;
  for (const int64_t b : bins) {
    TORCH_CHECK_VALUE(b >= 1 && b <= kMaxAxisBins, op, ": bins: expected each of 1 to ", kMaxAxisBins, ", got ", b);
    axis_bins += b;
  }
  TORCH_CHECK_VALUE(axis_bins <= kMaxAxisBins, op, ": bins: expected a sum of at most ", kMaxAxisBins, ", got ",
                    axis_bins);
  return make_pyramid_levels(bins.data(), static_cast<int>(bins.size()));
}

// Checks that the kernels take a map [N, C, H, W].
inline DType check_map(const char* op, const char* argument, const at::Tensor& map) {
  TORCH_CHECK_VALUE(map.dim() == 4, op, ": ", argument, ": expected [N, C, H, W], got shape ", map.sizes());
  const DType dtype = check_dtype(op, argument, map);
  for (const int64_t size : {map.size(2), map.size(3)}) {
    TORCH_CHECK_VALUE(size >= 1 && size <= kMaxAxisSize, op, ": ", argument, ": expected H and W of 1 to ",
                      kMaxAxisSize, ", got ", map.size(2), " and ", map.size(3));
  }
  return dtype;
}

// Checks that two tensors have one dtype and device.
inline void check_same(const char* op, const char* argument, const at::Tensor& tensor, const char* as,
                       const at::Tensor& other) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), op, ": ", argument, ": expected ", other.scalar_type(),
                   " as ", as, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == other.device(), op, ": ", argument, ": expected device ", other.device(), " as ",
                    as, ", got ", tensor.device());
}

inline void check_bias(const char* op, const at::Tensor& bias, int64_t out_channels, const char* as,
                       const at::Tensor& other) {
  TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == out_channels, op, ": bias: expected [O] with O = ", out_channels,
                    ", got shape ", bias.sizes());
  check_same(op, "bias", bias, as, other);
}

// Checks priors [N, R, S] for the map x.
inline void check_priors(const char* op, const at::Tensor& priors, const at::Tensor& x, const PyramidLevels& pyramid) {
  TORCH_CHECK_VALUE(priors.dim() == 3 && priors.size(0) == x.size(0) && priors.size(2) == pyramid.bin_count, op,
                    ": priors: expected [N, R, S] with N = ", x.size(0), " and S = ", pyramid.bin_count, ", got shape ",
                    priors.sizes());
  check_same(op, "priors", priors, "x", x);
}

// Whether a map's memory order is channels_last and cannot be read as contiguous.
inline bool is_channels_last(const at::Tensor& map) {
  return map.is_contiguous(at::MemoryFormat::ChannelsLast) && !map.is_contiguous();
}

// channels_last if one of the maps is, as results of at::conv2d are.
template <class... Maps>
at::MemoryFormat format_of(const Maps&... maps) {
  return (is_channels_last(maps) || ...) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace pspfast
