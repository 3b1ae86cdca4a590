// upsample_add: schemas, checks, allocation. On CUDA only: elsewhere pyramid_conv2d and upsample_concat_conv2d have
// other ways.

#include "checks.h"
#include "dispatch.h"
#include "upsample_maps.h"

namespace pspfast {

#ifdef PSPFAST_WITH_CUDA
namespace {

// The params but for the levels.
MapUpsampleParams make_params(const char* op, int64_t batch, int64_t channels, int64_t height, int64_t width,
                              int64_t kernel_size, bool align_corners, bool nearest, bool channels_last, DType dtype,
                              DType value_dtype) {
  check_sizes(op, "size", height, width);
  PSPFAST_CHECK(kernel_size == 1 || kernel_size == 3, op, ": mixed: expected a kernel of 1x1 or 3x3, got ",
                kernel_size);
  PSPFAST_CHECK(value_dtype == dtype || value_dtype == DType::kFloat32, op,
                ": mixed: expected the map's dtype or float32");
  return {.batch = batch,
          .height = height,
          .width = width,
          .map_channels = channels,
          .channels = channels,
          .sum_levels = true,
          .kernel_size = static_cast<int32_t>(kernel_size),
          .align_corners = align_corners,
          .nearest = nearest,
          .channels_last = channels_last,
          .dtype = dtype,
          .value_dtype = value_dtype};
}

void add_level(const char* op, int64_t rows, int64_t cols, MapUpsampleParams& params) {
  PSPFAST_CHECK(params.levels < kMaxLevels, op, ": mixed: expected at most ", kMaxLevels, " levels, got more");
  check_sizes(op, "mixed", rows, cols);
  check_taps(op, params.height, rows, params.width, cols);
  params.rows[params.levels] = static_cast<int32_t>(rows);
  params.cols[params.levels++] = static_cast<int32_t>(cols);
}

Tensor upsample_add(const OptionalTensor& base, const std::vector<Tensor>& mixed, const OptionalTensor& bias,
                    const Ints& size, bool align_corners, bool nearest, bool relu, bool channels_last) {
  constexpr auto op = "upsample_add";
  PSPFAST_CHECK(size.size() == 2, op, ": size: expected H and W, got ", Sizes(size));
  PSPFAST_CHECK(!mixed.empty() && mixed[0].dim() == 6, op, ": mixed: expected levels [N, rows, cols, k, k, O]");
  const Tensor& first = mixed[0];
  const int64_t batch = first.size(0), k = first.size(3), channels = first.size(5);
  const Tensor& typed = base ? *base : first;
  auto params = make_params(op, batch, channels, size[0], size[1], k, align_corners, nearest, channels_last,
                            check_dtype(op, "base", typed), check_dtype(op, "mixed", first));
  std::vector<Tensor> dense_mixed;
  LevelValues<const void> values{};
  for (const Tensor& level : mixed) {
    check_same(op, "mixed", level, "the first", first);
    PSPFAST_CHECK(level.dim() == 6 && has_shape(level, {batch, level.size(1), level.size(2), k, k, channels}), op,
                  ": mixed: expected [N, rows, cols, k, k, O] with N, k and O as the first's, ", first.sizes(),
                  ", got shape ", level.sizes());
    add_level(op, level.size(1), level.size(2), params);
    dense_mixed.push_back(in_format(level));
    values.data[params.levels - 1] = dense_mixed.back().const_data_ptr();
    values.image_stride[params.levels - 1] = level.size(1) * level.size(2) * k * k * channels;
  }
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor map = new_tensor({batch, channels, size[0], size[1]}, typed.scalar_type(), first, format);
  if (base) {
    check_shape(op, "base", *base, {batch, channels, size[0], size[1]});
    check_same(op, "base", *base, "the result", map);
  }
  if (bias) check_bias(op, *bias, channels, "the result", map);
  if (map.numel() == 0) {
    return map;
  }
  const OptionalTensor dense_base = in_format(base, format), dense_bias = in_format(bias);
  const MapUpsampleEpilogue epilogue{.base = data_or_null(dense_base), .bias = data_or_null(dense_bias), .relu = relu};
  launch_on_device_of(map, &cuda::upsample_maps, params, epilogue, values, map.mutable_data_ptr());
  return map;
}

Tensor upsample_add_backward(const Tensor& grad, const Ints& sizes, int64_t kernel_size, bool align_corners,
                             bool nearest, bool in_float32) {
  constexpr auto op = "upsample_add_backward";
  const DType map_dtype = check_map(op, "grad", grad);
  auto params = make_params(op, grad.size(0), grad.size(1), grad.size(2), grad.size(3), kernel_size, align_corners,
                            nearest, is_channels_last(grad), map_dtype, in_float32 ? DType::kFloat32 : map_dtype);
  PSPFAST_CHECK(!sizes.empty() && sizes.size() % 2 == 0, op, ": sizes: expected rows and cols of levels, got ",
                Sizes(sizes));
  const int64_t pixel = kernel_size * kernel_size * params.channels;
  std::vector<int64_t> offsets;
  int64_t numel = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    add_level(op, sizes[i], sizes[i + 1], params);
    offsets.push_back(numel);
    numel += params.batch * sizes[i] * sizes[i + 1] * pixel;
  }
  const Tensor grads = new_tensor({numel}, in_float32 ? ScalarType::Float : grad.scalar_type(), grad);
  if (numel == 0) {
    return grads;
  }
  LevelValues<void> values{};
  for (int level = 0; level < params.levels; ++level) {
    const int64_t bytes = offsets[level] * (params.value_dtype == DType::kFloat32 ? 4 : 2);
    values.data[level] = static_cast<char*>(grads.mutable_data_ptr()) + bytes;
    values.image_stride[level] = int64_t{params.rows[level]} * params.cols[level] * pixel;
  }
  const Tensor map = dense(grad);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Tensor sums = new_tensor({cuda::upsample_maps_sums(params)}, ScalarType::Float, grad);
  launch_on_device_of(grad, &cuda::upsample_maps_backward, params, map.const_data_ptr(), values,
                      static_cast<float*>(sums.mutable_data_ptr()));
  return grads;
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "upsample_add(Tensor? base, Tensor[] mixed, Tensor? bias, SymInt[] size, bool align_corners, bool nearest,"
      " bool relu, bool channels_last) -> Tensor");
  m.def(
      "upsample_add_backward(Tensor grad, SymInt[] sizes, int kernel_size, bool align_corners, bool nearest,"
      " bool in_float32) -> Tensor");
}

#ifdef PSPFAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pspfast, CUDA, m) {
  m.impl("upsample_add", TORCH_BOX(&upsample_add));
  m.impl("upsample_add_backward", TORCH_BOX(&upsample_add_backward));
}
#endif

}  // namespace pspfast
