// winograd_conv2d on the CPU: how the work is cut for caches and threads. The loops are in winograd.inl and matmul.inl.
#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "scratch.h"
#include "winograd.h"

#define PSPFAST_KERNELS "winograd.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

// Filters of so many channels that are transformed at a time, where they are not yet: 19 MB.
constexpr int64_t kFilters = 256;
// A transformed weight of up to so many numbers, 64 MB, is made once where several chunks of tiles need it: each would
// spend 8 % of its time on making it again.
constexpr int64_t kLargestKeptWeight = 16 << 20;
// A weight of this size stays in the last-level cache, and is worth reading again for every few tiles, whose
// transformed tensors then stay in a core's own cache.
constexpr int64_t kSmallWeight = 256 * 256;

// Memory for transformed tensors that the calling thread keeps for its next call. Given back to the system, its pages
// would have to be cleared anew each time, which takes 5 to 8 % of a network's inference.
struct Workspace {
  Scratch<float> data;
  int64_t size = 0;

  float* room_for(int64_t count) {
    if (count > size) {
      // Before the allocation, which may fail: there is no memory then.
      size = 0;
      data.reset();
      data = scratch<float>(count);
      advise_huge_pages(data.get(), count * sizeof(float));
      size = count;
    }
    return data.get();
  }
};
thread_local Workspace kept_workspace;

int64_t tiles_at_a_time(const WinogradParams& p) {
  const int64_t channels = std::min(kChannels, std::max(p.in_channels, p.out_channels));
  return std::min(p.tiles(), kTiles * kChannels / channels);
}

template <class T>
class Convolution {
 public:
  Convolution(const WinogradParams& p, const T* x, const WinogradWeight& weight, const WinogradEpilogue& epilogue,
              T* out, Workspace& workspace)
      : p_(p), x_(x), weight_(weight), epilogue_(epilogue), out_(out), workspace_(workspace) {}

  void run() const {
    const int64_t weight_size = p_.in_channels * p_.out_channels;
    weight_size <= kSmallWeight ? run_tile_by_tile() : run_in_stages();
  }

 private:
  // Every thread takes a few tiles from beginning to end.
  void run_tile_by_tile() const {
    const int64_t in_blocks = channel_blocks(p_.in_channels), out_blocks = channel_blocks(p_.out_channels);
    const auto room = weight_scratch(out_blocks, in_blocks);
    const Transformed weight = make_weight(0, out_blocks, 0, in_blocks, room.get());
    // All threads get equally many tasks.
    const int64_t threads = thread_count();
    const int64_t tasks =
        std::min(p_.tiles(), ceil_div(ceil_div(p_.tiles(), PSPFAST_CALL(few_tiles)), threads) * threads);
    const int64_t few = ceil_div(p_.tiles(), tasks);
    parallel_tasks(tasks, [&] {
      return [&, in = scratch<float>(transformed_size(in_blocks, few)),
              out = scratch<float>(transformed_size(out_blocks, few))](int64_t task) {
        const int64_t begin = task * p_.tiles() / tasks, tiles = (task + 1) * p_.tiles() / tasks - begin;
        const auto inputs = transformed(in.get(), in_blocks, tiles);
        const auto products = transformed(out.get(), out_blocks, tiles);
        for (int64_t t = 0; t < tiles; ++t) transform_input(begin, t, 0, inputs);
        for (int64_t i = 0; i < product_tasks(weight); ++i) multiply(i, inputs, weight, 0, products, false);
        for (int64_t t = 0; t < tiles; ++t) transform_output(begin, t, 0, products);
      };
    });
  }

  // All threads transform the inputs of many tiles, then multiply, then transform the products.
  void run_in_stages() const {
    const int64_t most = tiles_at_a_time(p_);
    const int64_t in_size = transformed_size(chunk_blocks(p_.in_channels), most);
    float* const in = workspace_.room_for(in_size + transformed_size(chunk_blocks(p_.out_channels), most));
    float* const out = in + in_size;
    const auto room = weight_scratch(channel_blocks(kFilters), chunk_blocks(p_.in_channels));
    for_each_even_chunk(p_.tiles(), most, [&](int64_t begin, int64_t tiles) {
      for_each_step(p_.out_channels, kChannels, [&](int64_t o, int64_t out_channels) {
        const auto products = transformed(out, channel_blocks(out_channels), tiles);
        for_each_step(p_.in_channels, kChannels, [&](int64_t c, int64_t in_channels) {
          const auto inputs = transformed(in, channel_blocks(in_channels), tiles);
          // A single chunk of input channels serves all chunks of output channels.
          if (o == 0 || p_.in_channels > kChannels) {
            parallel_for(tiles, [&](int64_t t) { transform_input(begin, t, c, inputs); });
          }
          const int64_t step = weight_.transformed ? products.blocks : channel_blocks(kFilters);
          for_each_step(products.blocks, step, [&](int64_t block, int64_t blocks) {
            const auto weight = make_weight(o + block * kChannelBlock, blocks, c, inputs.blocks, room.get());
            parallel_for(product_tasks(weight),
                         [&](int64_t task) { multiply(task, inputs, weight, block, products, c > 0); });
          });
        });
        parallel_for(tiles, [&](int64_t t) { transform_output(begin, t, o, products); });
      });
    });
  }

  Scratch<float> weight_scratch(int64_t blocks, int64_t in_blocks) const {
    return weight_.transformed ? Scratch<float>() : scratch<float>(transformed_size(blocks, in_blocks * kChannelBlock));
  }

  Transformed make_weight(int64_t first, int64_t blocks, int64_t channel, int64_t in_blocks, float* room) const {
    if (!weight_.transformed) {
      const auto weight = transformed(room, blocks, in_blocks * kChannelBlock);
      transform_weight<T>(p_, weight_, first, channel, weight);
      return weight;
    }
    const int64_t block_stride = channel_blocks(p_.in_channels) * kChannelBlock * kChannelBlock;
    float* data =
        const_cast<float*>(weight_.transformed) + first / kChannelBlock * block_stride + channel * kChannelBlock;
    return {data, blocks, in_blocks * kChannelBlock, block_stride,
            winograd_weight_stride(p_.in_channels, p_.out_channels)};
  }

  void transform_input(int64_t begin, int64_t t, int64_t channel, const Transformed& to) const {
    PSPFAST_CALL(transform_input, p_, x_, begin + t, channel, to.blocks, to.data + t * kChannelBlock, to.block_stride,
                 to.position_stride);
  }

  void transform_output(int64_t begin, int64_t t, int64_t channel, const Transformed& from) const {
    PSPFAST_CALL(transform_output, p_, from.data + t * kChannelBlock, begin + t, channel, from.blocks,
                 from.block_stride, from.position_stride, epilogue_, out_);
  }

  // A task is two blocks of filters at one position.
  static int64_t product_tasks(const Transformed& weight) { return kTilePositions * ceil_div(weight.blocks, 2); }

  // The weight's filters are those of the products from `first_block` on.
  void multiply(int64_t task, const Transformed& inputs, const Transformed& weight, int64_t first_block,
                const Transformed& products, bool add) const {
    const int64_t pairs = ceil_div(weight.blocks, 2), position = task / pairs, block = task % pairs * 2;
    const float* left = inputs.data + position * inputs.position_stride;
    const float* right = weight.data + position * weight.position_stride + block * weight.block_stride;
    float* product =
        products.data + position * products.position_stride + (first_block + block) * products.block_stride;
    PSPFAST_CALL(multiply<float>, inputs.rows, std::min<int64_t>(2, weight.blocks - block),
                 {left, inputs.block_stride, right, weight.block_stride, product, kChannelBlock, products.block_stride,
                  weight.rows, add});
  }

  const WinogradParams& p_;
  const T* x_;
  const WinogradWeight& weight_;
  const WinogradEpilogue& epilogue_;
  T* out_;
  Workspace& workspace_;
};

}  // namespace

void winograd_conv2d(const WinogradParams& params, const void* x, const WinogradWeight& weight,
                     const WinogradEpilogue& epilogue, void* out) {
  WinogradWeight used = weight;
  const int64_t size = kTilePositions * winograd_weight_stride(params.in_channels, params.out_channels);
  Scratch<float> once;
  if (!weight.transformed && params.in_channels * params.out_channels > kSmallWeight &&
      params.tiles() > tiles_at_a_time(params) && size <= kLargestKeptWeight) {
    once = scratch<float>(size);
    winograd_weight(params, weight, once.get());
    used.transformed = once.get();
  }
  // Training, which transforms its weights, needs the memory for other things in between.
  Workspace passing;
  Workspace& workspace = weight.transformed ? kept_workspace : passing;
  dispatch_dtype_but_double(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Convolution<T>(params, static_cast<const T*>(x), used, epilogue, static_cast<T*>(out), workspace).run();
  });
}

}  // namespace pspfast::cpu
