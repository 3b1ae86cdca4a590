// winograd_weight on the CPU: filters are transformed in parallel. The loops are in winograd.inl.
#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "winograd.h"

#define PSPFAST_KERNELS "winograd.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {

template <class T>
void transform_weight(const WinogradParams& p, const WinogradWeight& weight, int64_t first, int64_t channel,
                      const Transformed& to) {
  const auto [lane_stride, row_stride] = weight.transposed ? std::pair(weight.in_stride, weight.out_stride)
                                                           : std::pair(weight.out_stride, weight.in_stride);
  constexpr int64_t kRows = 64;
  const int64_t row_blocks = ceil_div(to.rows, kRows);
  parallel_for(to.blocks * row_blocks, [&](int64_t task) {
    const int64_t block = task / row_blocks, filter = first + block * kChannelBlock;
    const int64_t filters = std::min(p.out_channels - filter, kChannelBlock);
    const int64_t end = std::min(to.rows, (task % row_blocks + 1) * kRows);
    for (int64_t row = task % row_blocks * kRows; row < end; ++row) {
      const T* data = static_cast<const T*>(weight.data) + filter * lane_stride + (channel + row) * row_stride;
      PSPFAST_CALL(transform_weight, data, lane_stride, weight.tap_stride, weight.transposed,
                   channel + row < p.in_channels ? filters : 0, to.data + block * to.block_stride + row * kChannelBlock,
                   to.position_stride);
    }
  });
}

template void transform_weight<float>(const WinogradParams&, const WinogradWeight&, int64_t, int64_t,
                                      const Transformed&);
template void transform_weight<c10::Half>(const WinogradParams&, const WinogradWeight&, int64_t, int64_t,
                                          const Transformed&);
template void transform_weight<c10::BFloat16>(const WinogradParams&, const WinogradWeight&, int64_t, int64_t,
                                              const Transformed&);

void winograd_weight(const WinogradParams& params, const WinogradWeight& weight, float* transformed) {
  const int64_t rows = channel_blocks(params.in_channels) * kChannelBlock;
  const int64_t stride = winograd_weight_stride(params.in_channels, params.out_channels);
  advise_huge_pages(transformed, sizeof(float) * kTilePositions * stride);
  // The room between positions is not read, but written files should not depend on what was in memory.
  for (int64_t i = 1; i <= kTilePositions; ++i)
    std::fill_n(transformed + i * stride - kChannelBlock, kChannelBlock, 0.f);
  dispatch_dtype_but_double(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    transform_weight<T>(params, weight, 0, 0,
                        {transformed, channel_blocks(params.out_channels), rows, rows * kChannelBlock, stride});
  });
}

}  // namespace pspfast::cpu
