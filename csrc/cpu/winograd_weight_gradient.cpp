// winograd_weight_gradient on the CPU: how the work is cut for caches and threads. The loops are in winograd.inl and
// matmul.inl.
#include "dispatch_dtype.h"
#include "parallel.h"
#include "scratch.h"
#include "winograd.h"

#define PSPFAST_KERNELS "winograd.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

// Channels on either side whose products a task keeps in a core's own cache: 36 * 64 * 64 floats are 0.6 MB. Fewer
// where there would be too few tasks for the threads.
int64_t group_size(const WinogradParams& p) {
  const int64_t enough = 4 * thread_count();
  int64_t group = 64;
  while (group > kChannelBlock && ceil_div(p.in_channels, group) * ceil_div(p.out_channels, group) < enough) group /= 2;
  return group;
}

template <class T>
class WeightGradient {
 public:
  WeightGradient(const WinogradParams& p, const T* x, const T* grad, bool channels_last, int64_t weight_channels,
                 float* grad_weight)
      : p_(p),
        x_(x),
        grad_(grad),
        out_stride_(9 * weight_channels),
        in_stride_(channels_last ? 1 : 9),
        tap_stride_(channels_last ? weight_channels : 1),
        grad_weight_(grad_weight) {}

  void run() const {
    // The number of tiles summed at a time does not depend on the threads, so neither do the sums.
    const int64_t most = std::min(p_.tiles(), kTiles);
    const auto in = scratch<float>(transformed_size(chunk_blocks(p_.in_channels), most));
    const auto out = scratch<float>(transformed_size(chunk_blocks(p_.out_channels), most));
    for_each_even_chunk(p_.tiles(), most, [&](int64_t begin, int64_t tiles) {
      for_each_step(p_.out_channels, kChannels, [&](int64_t o, int64_t out_channels) {
        const auto grads = transformed(out.get(), channel_blocks(out_channels), tiles);
        parallel_for(tiles, [&](int64_t t) {
          PSPFAST_CALL(transform_grad_output, p_, grad_, begin + t, o, grads.blocks, grads.data + t * kChannelBlock,
                       grads.block_stride, grads.position_stride);
        });
        for_each_step(p_.in_channels, kChannels, [&](int64_t c, int64_t in_channels) {
          const auto inputs = transformed(in.get(), channel_blocks(in_channels), tiles);
          parallel_for(tiles, [&](int64_t t) {
            PSPFAST_CALL(transform_input, p_, x_, begin + t, c, inputs.blocks, inputs.data + t * kChannelBlock,
                         inputs.block_stride, inputs.position_stride);
          });
          multiply(inputs, c, in_channels, grads, o, out_channels, begin > 0);
        });
      });
    });
  }

 private:
  void multiply(const Transformed& inputs, int64_t c0, int64_t in_channels, const Transformed& grads, int64_t o0,
                int64_t out_channels, bool add) const {
    const int64_t group = group_size(p_), out_groups = ceil_div(out_channels, group);
    parallel_tasks(ceil_div(in_channels, group) * out_groups, [&] {
      // Rows are input channels, columns output channels.
      const int64_t stride = group * group + kChannelBlock;
      return [&, stride, room = scratch<float>(kTilePositions * stride)](int64_t task) {
        const int64_t c = task / out_groups * group, o = task % out_groups * group;
        const int64_t rows = std::min(in_channels - c, group);
        const int64_t blocks = channel_blocks(std::min(out_channels - o, group));
        for (int64_t position = 0; position < kTilePositions; ++position) {
          const float* left = inputs.data + position * inputs.position_stride + c * inputs.rows;
          const float* right = grads.data + position * grads.position_stride + o * grads.rows;
          PSPFAST_CALL(multiply_transposed<float>, channel_blocks(rows) * kChannelBlock, blocks,
                       {left, inputs.block_stride, right, grads.block_stride, room.get() + position * stride, group,
                        kChannelBlock, grads.rows, false});
        }
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = o0 + o + block * kChannelBlock;
            PSPFAST_CALL(transform_grad_weight, room.get() + row * group + block * kChannelBlock, stride, add,
                         out_stride_, tap_stride_, std::min(p_.out_channels - first, kChannelBlock),
                         grad_weight_ + first * out_stride_ + (c0 + c + row) * in_stride_);
          }
        }
      };
    });
  }

  const WinogradParams& p_;
  const T *x_, *grad_;
  int64_t out_stride_, in_stride_, tap_stride_;
  float* grad_weight_;
};

}  // namespace

void winograd_weight_gradient(const WinogradParams& params, const void* x, const void* grad, bool channels_last,
                              int64_t weight_channels, float* grad_weight) {
  dispatch_dtype_but_double(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    WeightGradient<T>(params, static_cast<const T*>(x), static_cast<const T*>(grad), channels_last, weight_channels,
                      grad_weight)
        .run();
  });
}

}  // namespace pspfast::cpu
