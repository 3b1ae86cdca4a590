// pyramid_concat: schema, checks, allocation, choice of the CPU or CUDA kernel.

#include "checks.h"
#include "dispatch.h"
#include "pyramid_upsample.h"

namespace pspfast {
namespace {

PyramidUpsampleParams make_params(const Tensor& map, int64_t channels, const PyramidLevels& pyramid, bool align_corners,
                                  DType dtype) {
  const int64_t upsampled = pyramid.levels * channels;
  return {pyramid,
          map.size(0),
          map.size(2),
          map.size(3),
          map.size(1),
          map.size(1) - upsampled,
          channels,
          /*sum_levels=*/false,
          /*kernel_size=*/1,
          align_corners,
          is_channels_last(map),
          dtype};
}

Tensor pyramid_concat(const Tensor& x, const Tensor& priors, const Ints& bins, bool align_corners) {
  constexpr auto op = "pyramid_concat";
  const DType dtype = check_map(op, "x", x);
  const PyramidLevels pyramid = check_bins(op, bins);
  check_priors(op, priors, x, pyramid);
  const bool channels_last = is_channels_last(x);
  const int64_t channels = priors.size(1);
  Tensor map = new_tensor({x.size(0), x.size(1) + pyramid.levels * channels, x.size(2), x.size(3)}, x.scalar_type(), x,
                          format_of(x));
  if (map.numel() == 0) {
    return map;
  }
  if (channels == 0) {
    return torch::stable::copy_(map, x);
  }
  auto params = make_params(map, channels, pyramid, align_corners, dtype);
  params.channels_last = channels_last;
  // [N, S, R], as pyramid_upsample has it for a kernel of 1x1.
  const Tensor values = in_format(as_dtype(torch::stable::transpose(priors, 1, 2), sum_type(dtype)));
  const Tensor copied = dense(x);
  const MapUpsampleEpilogue epilogue{.copied = copied.const_data_ptr()};
  PSPFAST_RUN(x, pyramid_upsample, params, epilogue, values.const_data_ptr(), map.mutable_data_ptr());
  return map;
}

Tensor pyramid_concat_backward(const Tensor& grad, const Ints& bins, bool align_corners, int64_t channels) {
  constexpr auto op = "pyramid_concat_backward";
  const DType dtype = check_map(op, "grad", grad);
  const PyramidLevels pyramid = check_bins(op, bins);
  PSPFAST_CHECK(channels >= 0 && grad.size(1) >= pyramid.levels * channels, op, ": grad: expected at least ",
                pyramid.levels * channels, " channels, got ", grad.size(1));
  if (grad.numel() == 0 || channels == 0) {
    Tensor zeros = new_tensor({grad.size(0), channels, pyramid.bin_count}, grad.scalar_type(), grad);
    return torch::stable::zero_(zeros);
  }
  const Tensor map = dense(grad);
  const auto params = make_params(map, channels, pyramid, align_corners, dtype);
  const Tensor grad_values = new_tensor({params.batch, params.bin_count, channels}, sum_type(dtype), grad);
  const Tensor sums = new_tensor({PSPFAST_ASK(grad, pyramid_upsample_sums, params)}, ScalarType::Float, grad);
  PSPFAST_RUN(grad, pyramid_upsample_backward, params, map.const_data_ptr(), grad_values.mutable_data_ptr(),
              static_cast<float*>(sums.mutable_data_ptr()));
  return in_format(as_dtype(torch::stable::transpose(grad_values, 1, 2), grad.scalar_type()));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("pyramid_concat(Tensor x, Tensor priors, int[] bins, bool align_corners) -> Tensor");
  m.def("pyramid_concat_backward(Tensor grad, int[] bins, bool align_corners, SymInt channels) -> Tensor");
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("pyramid_concat", TORCH_BOX(&pyramid_concat));
  m.impl("pyramid_concat_backward", TORCH_BOX(&pyramid_concat_backward));
}

}  // namespace pspfast
