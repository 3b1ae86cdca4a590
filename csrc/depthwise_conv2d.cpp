// depthwise_conv2d on the CPU, in inference: schema, checks, allocation.
#include "depthwise_conv2d.h"

#include "checks.h"

namespace pspfast {
namespace {

Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t dilation, bool relu) {
  constexpr auto op = "depthwise_conv2d";
  const DType dtype = check_map(op, "x", x);
  const int64_t channels = x.size(1), kernel_size = weight.dim() == 4 ? weight.size(2) : 0;
  PSPFAST_CHECK(has_shape(weight, {channels, 1, kernel_size, kernel_size}) && kernel_size % 2 == 1, op,
                ": weight: expected [C, 1, k, k] with C = ", channels, " and an odd k, got shape ", weight.sizes());
  check_same(op, "weight", weight, "x", x);
  PSPFAST_CHECK(dilation >= 1 && dilation <= kMaxAxisSize, op, ": dilation: expected 1 to ", kMaxAxisSize, ", got ",
                dilation);
  if (bias) check_bias(op, *bias, channels, "x", x);
  const auto format = format_of(x);
  const Tensor out = new_tensor(x.sizes(), x.scalar_type(), x, MemoryFormat::ChannelsLast);
  const Tensor map = in_format(x, MemoryFormat::ChannelsLast), filters = in_format(weight);
  const OptionalTensor dense_bias = in_format(bias);
  cpu::depthwise_conv2d({x.size(0), channels, x.size(2), x.size(3), kernel_size, dilation, dtype, relu},
                        map.const_data_ptr(), filters.const_data_ptr(), data_or_null(dense_bias),
                        out.mutable_data_ptr());
  return in_format(out, format);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, int dilation, bool relu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, m) { m.impl("depthwise_conv2d", TORCH_BOX(&forward)); }

}  // namespace pspfast
