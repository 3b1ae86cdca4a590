// What the op library uses of torch, on LibTorch's stable ABI: its tensors, and the few operations on them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

// As torch 2.10 names it.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace pspfast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using Shape = std::initializer_list<int64_t>;
// Arguments of type int[] in a schema.
using Ints = std::vector<int64_t>;

// The dimensions of a channels_last map, from the outermost in memory to the innermost.
constexpr std::array<int64_t, 4> kChannelsLastOrder = {0, 2, 3, 1};

inline bool has_shape(const Tensor& tensor, Sizes shape) {
  const Sizes sizes = tensor.sizes();
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

inline bool has_shape(const Tensor& tensor, Shape shape) {
  return has_shape(tensor, Sizes(shape.begin(), shape.size()));
}

// Not initialised, on the device of `like`.
inline Tensor new_strided(Sizes sizes, const int64_t* strides, ScalarType dtype, const Tensor& like) {
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.data(), strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      device_type, device_index, &handle));
  return Tensor(handle);
}

// The same in a memory format; channels_last is for four dimensions.
inline Tensor new_tensor(Sizes sizes, ScalarType dtype, const Tensor& like,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  std::array<int64_t, 5> strides;
  int64_t stride = 1;
  for (int64_t i = sizes.size() - 1; i >= 0; --i) {
    const int64_t dim = format == MemoryFormat::ChannelsLast ? kChannelsLastOrder[i] : i;
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);
  }
  return new_strided(sizes, strides.data(), dtype, like);
}

inline Tensor new_tensor(Shape shape, ScalarType dtype, const Tensor& like,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  return new_tensor(Sizes(shape.begin(), shape.size()), dtype, like, format);
}

inline bool is_contiguous(const Tensor& tensor, MemoryFormat format) {
  if (format == MemoryFormat::Contiguous) return tensor.is_contiguous();
  const Sizes sizes = tensor.sizes(), strides = tensor.strides();
  if (sizes.size() != 4) return false;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (sizes[dim] == 1) continue;
    if (strides[dim] != expected) return false;
    expected *= sizes[dim];
  }
  return true;
}

// Whether a map's memory order is channels_last and cannot be read as contiguous.
inline bool is_channels_last(const Tensor& map) {
  return is_contiguous(map, MemoryFormat::ChannelsLast) && !map.is_contiguous();
}

// channels_last if one of the maps is, as results of torch's conv2d are.
template <class... Maps>
MemoryFormat format_of(const Maps&... maps) {
  return (is_channels_last(maps) || ...) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor in_format(const Tensor& tensor, MemoryFormat format = MemoryFormat::Contiguous) {
  return is_contiguous(tensor, format) ? tensor : torch::stable::contiguous(tensor, format);
}

inline OptionalTensor in_format(const OptionalTensor& tensor, MemoryFormat format = MemoryFormat::Contiguous) {
  return tensor ? OptionalTensor(in_format(*tensor, format)) : std::nullopt;
}

inline const void* data_or_null(const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

// A map that kernels read: the same if it is contiguous or channels_last, else a contiguous copy.
inline Tensor dense(const Tensor& map) { return is_channels_last(map) ? map : in_format(map); }

inline Tensor as_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Calls an operator of torch by the name of its schema, with at least as many arguments as results and of the types
// that the schema has. The results take the arguments' place.
template <class... Arguments>
std::array<StableIValue, sizeof...(Arguments)> call(const char* op, const char* overload,
                                                    const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return stack;
}

inline Tensor take_tensor(StableIValue value) { return torch::stable::detail::to<Tensor>(value); }

}  // namespace pspfast
