// upsample_concat_conv2d on the CPU: schemas, checks, allocation.
#include "upsample_concat_conv2d.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "checks.h"

namespace pspfast {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

at::MemoryFormat format_of_flag(bool channels_last) {
  return channels_last ? kChannelsLast : at::MemoryFormat::Contiguous;
}

// Checks the size of a map that is interpolated to that of the output.
void check_size(const char* op, const UpsampleConcatConv2dParams& p, int64_t rows, int64_t cols) {
  TORCH_CHECK_VALUE(rows <= p.height && cols <= p.width, op, ": maps: expected H and W of at most ", p.height, " and ",
                    p.width, ", got ", rows, " and ", cols);
  // Taps are computed in int32.
  TORCH_CHECK_VALUE(std::max(p.height * rows, p.width * cols) < int64_t(1) << 30, op,
                    ": size: expected H h and W w below 2^30, got ", p.height, " x ", rows, " and ", p.width, " x ",
                    cols);
}

UpsampleConcatConv2dParams make_params(const char* op, int64_t batch, int64_t height, int64_t width, int64_t channels,
                                       int64_t out_channels, int64_t kernel_size, bool align_corners, bool nearest,
                                       bool weight_channels_last, DType dtype) {
  TORCH_CHECK_VALUE(kernel_size == 1 || kernel_size == 3, op, ": weight: expected a kernel of 1x1 or 3x3, got ",
                    kernel_size);
  for (const int64_t size : {height, width}) {
    TORCH_CHECK_VALUE(size >= 1 && size <= kMaxAxisSize, op, ": size: expected H and W of 1 to ", kMaxAxisSize,
                      ", got ", height, " and ", width);
  }
  return {batch,         height,  width,                channels, out_channels, static_cast<int32_t>(kernel_size),
          align_corners, nearest, weight_channels_last, dtype};
}

void check_weight(const char* op, const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(2) == weight.size(3), op,
                    ": weight: expected [O, C, k, k] with k = 1 or 3, got shape ", weight.sizes());
}

// The maps as the kernels take them; the tensors hold their memory.
struct Maps {
  std::vector<at::Tensor> tensors;
  std::vector<SourceMap> maps;
  int64_t channels = 0;

  Maps(const char* op, const at::TensorList& list, const char* as, const at::Tensor& other) {
    TORCH_CHECK_VALUE(!list.empty(), op, ": maps: expected at least one, got none");
    for (const at::Tensor& map : list) {
      check_map(op, "maps", map);
      check_same(op, "maps", map, as, other);
      TORCH_CHECK_VALUE(map.size(0) == list[0].size(0), op, ": maps: expected N = ", list[0].size(0),
                        " as the first, got ", map.size(0));
      tensors.push_back(map.contiguous(kChannelsLast));
      maps.push_back({map.size(1), channels, map.size(2), map.size(3), tensors.back().const_data_ptr()});
      channels += map.size(1);
    }
  }
};

at::Tensor forward(const at::TensorList& maps, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   at::IntArrayRef size, bool align_corners, bool nearest, bool relu) {
  constexpr auto op = "upsample_concat_conv2d";
  check_weight(op, weight);
  TORCH_CHECK_VALUE(size.size() == 2, op, ": size: expected H and W, got ", size);
  const Maps sources(op, maps, "weight", weight);
  const auto p = make_params(op, maps[0].size(0), size[0], size[1], weight.size(1), weight.size(0), weight.size(2),
                             align_corners, nearest, is_channels_last(weight), check_dtype(op, "weight", weight));
  for (const SourceMap& map : sources.maps) check_size(op, p, map.rows, map.cols);
  TORCH_CHECK_VALUE(sources.channels == p.channels, op, ": weight: expected ", sources.channels,
                    " input channels, those of the maps, got ", p.channels);
  if (bias) check_bias(op, *bias, p.out_channels, "weight", weight);
  bool channels_last = p.weight_channels_last;
  for (const at::Tensor& map : maps) channels_last |= is_channels_last(map);
  at::Tensor out = at::empty({p.batch, p.out_channels, p.height, p.width}, weight.options(), kChannelsLast);
  if (out.numel() > 0) {
    const at::Tensor filters = weight.contiguous(format_of_flag(p.weight_channels_last));
    const at::Tensor dense_bias = bias ? bias->contiguous() : at::Tensor();
    cpu::upsample_concat_conv2d(p, sources.maps.data(), sources.maps.size(), filters.const_data_ptr(),
                                bias ? dense_bias.const_data_ptr() : nullptr, relu, out.mutable_data_ptr());
  }
  return out.contiguous(format_of_flag(channels_last));
}

// The gradient of the map [N, channels, rows, cols] that the weight's input channels from first_channel on belong to.
at::Tensor grad_map(const at::Tensor& grad, const at::Tensor& weight, int64_t first_channel, int64_t channels,
                    at::IntArrayRef size, bool align_corners, bool nearest, bool channels_last) {
  constexpr auto op = "upsample_concat_conv2d_grad_map";
  check_weight(op, weight);
  const DType dtype = check_map(op, "grad", grad);
  check_same(op, "grad", grad, "weight", weight);
  TORCH_CHECK_VALUE(grad.size(1) == weight.size(0), op, ": grad: expected [N, O, H, W] with O = ", weight.size(0),
                    ", got shape ", grad.sizes());
  TORCH_CHECK_VALUE(size.size() == 2, op, ": size: expected h and w, got ", size);
  TORCH_CHECK_VALUE(first_channel >= 0 && channels >= 0 && first_channel + channels <= weight.size(1), op,
                    ": channels: expected some of ", weight.size(1), ", got ", channels, " from ", first_channel,
                    " on");
  const auto p = make_params(op, grad.size(0), grad.size(2), grad.size(3), weight.size(1), weight.size(0),
                             weight.size(2), align_corners, nearest, is_channels_last(weight), dtype);
  check_size(op, p, size[0], size[1]);
  at::Tensor result = at::empty({p.batch, channels, size[0], size[1]}, grad.options(), kChannelsLast);
  if (result.numel() > 0) {
    const at::Tensor filters = weight.contiguous(format_of_flag(p.weight_channels_last));
    cpu::upsample_concat_conv2d_grad_map(p, {channels, first_channel, size[0], size[1], nullptr},
                                         grad.contiguous(kChannelsLast).const_data_ptr(), filters.const_data_ptr(),
                                         result.mutable_data_ptr());
  }
  return result.contiguous(format_of_flag(channels_last));
}

at::Tensor grad_weight(const at::Tensor& grad, const at::TensorList& maps, int64_t kernel_size, bool align_corners,
                       bool nearest, bool channels_last) {
  constexpr auto op = "upsample_concat_conv2d_grad_weight";
  const DType dtype = check_map(op, "grad", grad);
  const Maps sources(op, maps, "grad", grad);
  TORCH_CHECK_VALUE(maps[0].size(0) == grad.size(0), op, ": maps: expected N = ", grad.size(0), " as grad, got ",
                    maps[0].size(0));
  const auto p = make_params(op, grad.size(0), grad.size(2), grad.size(3), sources.channels, grad.size(1), kernel_size,
                             align_corners, nearest, channels_last, dtype);
  for (const SourceMap& map : sources.maps) check_size(op, p, map.rows, map.cols);
  at::Tensor sums = at::empty({p.out_channels, p.channels, kernel_size, kernel_size},
                              grad.options().dtype(sum_type(dtype)), format_of_flag(channels_last));
  if (p.batch == 0) {
    return sums.zero_();
  }
  if (sums.numel() > 0) {
    cpu::upsample_concat_conv2d_grad_weight(p, sources.maps.data(), sources.maps.size(),
                                            grad.contiguous(kChannelsLast).const_data_ptr(), sums.mutable_data_ptr());
  }
  return sums;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "upsample_concat_conv2d(Tensor[] maps, Tensor weight, Tensor? bias, SymInt[] size, bool align_corners,"
      " bool nearest, bool relu) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "upsample_concat_conv2d_grad_map(Tensor grad, Tensor weight, int first_channel, int channels, SymInt[] size,"
      " bool align_corners, bool nearest, bool channels_last) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "upsample_concat_conv2d_grad_weight(Tensor grad, Tensor[] maps, int kernel_size, bool align_corners,"
      " bool nearest, bool channels_last) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("upsample_concat_conv2d", &forward);
  m.impl("upsample_concat_conv2d_grad_map", &grad_map);
  m.impl("upsample_concat_conv2d_grad_weight", &grad_weight);
}

}  // namespace pspfast
