// upsample_concat_conv2d on the CPU: schemas, checks, allocation.
#include "upsample_concat_conv2d.h"

#include <vector>

#include "checks.h"

namespace pspfast {
namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

MemoryFormat format_of_flag(bool channels_last) { return channels_last ? kChannelsLast : MemoryFormat::Contiguous; }

// Checks the size of a map that is interpolated to that of the output.
void check_size(const char* op, const UpsampleConcatConv2dParams& p, int64_t rows, int64_t cols) {
  PSPFAST_CHECK(rows <= p.height && cols <= p.width, op, ": maps: expected H and W of at most ", p.height, " and ",
                p.width, ", got ", rows, " and ", cols);
  check_taps(op, p.height, rows, p.width, cols);
}

UpsampleConcatConv2dParams make_params(const char* op, int64_t batch, int64_t height, int64_t width, int64_t channels,
                                       int64_t out_channels, int64_t kernel_size, bool align_corners, bool nearest,
                                       bool weight_channels_last, DType dtype) {
  PSPFAST_CHECK(kernel_size == 1 || kernel_size == 3, op, ": weight: expected a kernel of 1x1 or 3x3, got ",
                kernel_size);
  check_sizes(op, "size", height, width);
  return {batch,         height,       width,
          channels,      out_channels, static_cast<int32_t>(kernel_size),
          align_corners, nearest,      weight_channels_last,
          dtype};
}

void check_weight(const char* op, const Tensor& weight) {
  PSPFAST_CHECK(weight.dim() == 4 && weight.size(2) == weight.size(3), op,
                ": weight: expected [O, C, k, k] with k = 1 or 3, got shape ", weight.sizes());
}

// The maps as the kernels take them; the tensors hold their memory.
struct Maps {
  std::vector<Tensor> tensors;
  std::vector<SourceMap> maps;
  int64_t channels = 0;

  Maps(const char* op, const std::vector<Tensor>& list, const char* as, const Tensor& other) {
    PSPFAST_CHECK(!list.empty(), op, ": maps: expected at least one, got none");
    for (const Tensor& map : list) {
      check_map(op, "maps", map);
      check_same(op, "maps", map, as, other);
      PSPFAST_CHECK(map.size(0) == list[0].size(0), op, ": maps: expected N = ", list[0].size(0), " as the first, got ",
                    map.size(0));
      tensors.push_back(in_format(map, kChannelsLast));
      maps.push_back({map.size(1), channels, map.size(2), map.size(3), tensors.back().const_data_ptr()});
      channels += map.size(1);
    }
  }
};

Tensor forward(const std::vector<Tensor>& maps, const Tensor& weight, const OptionalTensor& bias, const Ints& size,
               bool align_corners, bool nearest, bool relu) {
  constexpr auto op = "upsample_concat_conv2d";
  check_weight(op, weight);
  PSPFAST_CHECK(size.size() == 2, op, ": size: expected H and W, got ", Sizes(size));
  const Maps sources(op, maps, "weight", weight);
  const auto p = make_params(op, maps[0].size(0), size[0], size[1], weight.size(1), weight.size(0), weight.size(2),
                             align_corners, nearest, is_channels_last(weight), check_dtype(op, "weight", weight));
  for (const SourceMap& map : sources.maps) check_size(op, p, map.rows, map.cols);
  PSPFAST_CHECK(sources.channels == p.channels, op, ": weight: expected ", sources.channels,
                " input channels, those of the maps, got ", p.channels);
  if (bias) check_bias(op, *bias, p.out_channels, "weight", weight);
  bool channels_last = p.weight_channels_last;
  for (const Tensor& map : maps) channels_last |= is_channels_last(map);
  const Tensor out =
      new_tensor({p.batch, p.out_channels, p.height, p.width}, weight.scalar_type(), weight, kChannelsLast);
  if (out.numel() > 0) {
    const Tensor filters = in_format(weight, format_of_flag(p.weight_channels_last));
    const OptionalTensor dense_bias = in_format(bias);
    cpu::upsample_concat_conv2d(p, sources.maps.data(), sources.maps.size(), filters.const_data_ptr(),
                                data_or_null(dense_bias), relu, out.mutable_data_ptr());
  }
  return in_format(out, format_of_flag(channels_last));
}

// The gradient of the map [N, channels, rows, cols] that the weight's input channels from first_channel on belong to.
Tensor grad_map(const Tensor& grad, const Tensor& weight, int64_t first_channel, int64_t channels, const Ints& size,
                bool align_corners, bool nearest, bool channels_last) {
  constexpr auto op = "upsample_concat_conv2d_grad_map";
  check_weight(op, weight);
  const DType dtype = check_map(op, "grad", grad);
  check_same(op, "grad", grad, "weight", weight);
  PSPFAST_CHECK(grad.size(1) == weight.size(0), op, ": grad: expected [N, O, H, W] with O = ", weight.size(0),
                ", got shape ", grad.sizes());
  PSPFAST_CHECK(size.size() == 2, op, ": size: expected h and w, got ", Sizes(size));
  PSPFAST_CHECK(first_channel >= 0 && channels >= 0 && first_channel + channels <= weight.size(1), op,
                ": channels: expected some of ", weight.size(1), ", got ", channels, " from ", first_channel, " on");
  const auto p = make_params(op, grad.size(0), grad.size(2), grad.size(3), weight.size(1), weight.size(0),
                             weight.size(2), align_corners, nearest, is_channels_last(weight), dtype);
  check_size(op, p, size[0], size[1]);
  Tensor result = new_tensor({p.batch, channels, size[0], size[1]}, grad.scalar_type(), grad, kChannelsLast);
  if (p.out_channels == 0) {
    torch::stable::zero_(result);
  } else if (result.numel() > 0) {
    const Tensor filters = in_format(weight, format_of_flag(p.weight_channels_last));
    cpu::upsample_concat_conv2d_grad_map(p, {channels, first_channel, size[0], size[1], nullptr},
                                         in_format(grad, kChannelsLast).const_data_ptr(), filters.const_data_ptr(),
                                         result.mutable_data_ptr());
  }
  return in_format(result, format_of_flag(channels_last));
}

Tensor grad_weight(const Tensor& grad, const std::vector<Tensor>& maps, int64_t kernel_size, bool align_corners,
                   bool nearest, bool channels_last) {
  constexpr auto op = "upsample_concat_conv2d_grad_weight";
  const DType dtype = check_map(op, "grad", grad);
  const Maps sources(op, maps, "grad", grad);
  PSPFAST_CHECK(maps[0].size(0) == grad.size(0), op, ": maps: expected N = ", grad.size(0), " as grad, got ",
                maps[0].size(0));
  const auto p = make_params(op, grad.size(0), grad.size(2), grad.size(3), sources.channels, grad.size(1), kernel_size,
                             align_corners, nearest, channels_last, dtype);
  for (const SourceMap& map : sources.maps) check_size(op, p, map.rows, map.cols);
  Tensor sums = new_tensor({p.out_channels, p.channels, kernel_size, kernel_size}, sum_type(dtype), grad,
                           format_of_flag(channels_last));
  if (p.batch == 0) {
    return torch::stable::zero_(sums);
  }
  if (sums.numel() > 0) {
    cpu::upsample_concat_conv2d_grad_weight(p, sources.maps.data(), sources.maps.size(),
                                            in_format(grad, kChannelsLast).const_data_ptr(), sums.mutable_data_ptr());
  }
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "upsample_concat_conv2d(Tensor[] maps, Tensor weight, Tensor? bias, SymInt[] size, bool align_corners,"
      " bool nearest, bool relu) -> Tensor");
  m.def(
      "upsample_concat_conv2d_grad_map(Tensor grad, Tensor weight, int first_channel, int channels, SymInt[] size,"
      " bool align_corners, bool nearest, bool channels_last) -> Tensor");
  m.def(
      "upsample_concat_conv2d_grad_weight(Tensor grad, Tensor[] maps, int kernel_size, bool align_corners,"
      " bool nearest, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("upsample_concat_conv2d", TORCH_BOX(&forward));
  m.impl("upsample_concat_conv2d_grad_map", TORCH_BOX(&grad_map));
  m.impl("upsample_concat_conv2d_grad_weight", TORCH_BOX(&grad_weight));
}

}  // namespace pspfast
