// winograd_* on the CPU: how the work is cut for caches and threads. The loops are in winograd.inl and matmul.inl.
#include "../winograd.h"

#include "memory.h"
#include "tasks.h"

#define PSPFAST_KERNELS "winograd.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

// Channels transformed at a time, and tiles, so that a transformed tensor of them takes 19 MB at most: two of them are
// about the last-level cache of a server's core complex, 32 MB.
constexpr int64_t kChannels = 512, kTiles = 256;
// Filters of so many channels that are transformed at a time, where they are not yet: 19 MB.
constexpr int64_t kFilters = 256;
// A weight of this size stays in that cache, and is worth reading again for every few tiles, whose transformed tensors
// then stay in a core's own cache.
constexpr int64_t kSmallWeight = 256 * 256;

// Memory for transformed tensors that the calling thread keeps for its next call. Given back to the system, its pages
// would have to be cleared anew each time, which takes 5 to 8 % of a network's inference.
struct Workspace {
  Scratch<float> data;
  int64_t size = 0;

  float* room_for(int64_t count) {
    if (count > size) {
      data.reset();
      data = scratch<float>(count);
      advise_huge_pages(data.get(), count * sizeof(float));
      size = count;
    }
    return data.get();
  }
};
thread_local Workspace kept_workspace;

// [36, blocks, rows, 16]: tiles of blocks of 16 channels, or channels of blocks of 16 filters.
struct Transformed {
  float* data;
  int64_t blocks, rows, block_stride, position_stride;
};

// The additional row keeps the positions out of one another's set of the cache.
int64_t position_stride(int64_t blocks, int64_t rows) { return (blocks * rows + 1) * kChannelBlock; }
int64_t transformed_size(int64_t blocks, int64_t rows) { return kTilePositions * position_stride(blocks, rows); }
Transformed transformed(float* data, int64_t blocks, int64_t rows) {
  return {data, blocks, rows, rows * kChannelBlock, position_stride(blocks, rows)};
}

int64_t chunk_blocks(int64_t channels) { return channel_blocks(std::min(channels, kChannels)); }

int64_t tiles_at_a_time(const WinogradParams& p) {
  const int64_t channels = std::min(kChannels, std::max(p.in_channels, p.out_channels));
  return std::min(p.tiles(), kTiles * kChannels / channels);
}

// Calls f(begin, count) for parts of [0, size) of at most `most` each, which differ by one at most.
template <class F>
void for_each_part(int64_t size, int64_t most, const F& f) {
  const int64_t parts = ceil_div(size, most);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = part * size / parts;
    f(begin, (part + 1) * size / parts - begin);
  }
}

// Calls f(begin, count) for [0, size) in steps.
template <class F>
void for_each_step(int64_t size, int64_t step, const F& f) {
  for (int64_t begin = 0; begin < size; begin += step) f(begin, std::min(step, size - begin));
}

template <class F>
void parallel_for(int64_t count, const F& f) {
  at::parallel_for(0, count, 1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) f(i);
  });
}

// The filters from `first` on and the input channels from `channel` on, as many as `to` has room for.
template <class T>
void transform_weight(const WinogradParams& p, const WinogradWeight& weight, int64_t first, int64_t channel,
                      const Transformed& to) {
  const auto [lane_stride, row_stride] = weight.transposed ? std::pair(weight.in_stride, weight.out_stride)
                                                           : std::pair(weight.out_stride, weight.in_stride);
  constexpr int64_t kRows = 64;
  const int64_t parts = ceil_div(to.rows, kRows);
  parallel_for(to.blocks * parts, [&](int64_t task) {
    const int64_t block = task / parts, filter = first + block * kChannelBlock;
    const int64_t filters = std::min(p.out_channels - filter, kChannelBlock);
    const int64_t end = std::min(to.rows, (task % parts + 1) * kRows);
    for (int64_t row = task % parts * kRows; row < end; ++row) {
      const T* data = static_cast<const T*>(weight.data) + filter * lane_stride + (channel + row) * row_stride;
      PSPFAST_CALL(transform_weight, data, lane_stride, weight.tap_stride, weight.transposed,
                   channel + row < p.in_channels ? filters : 0, to.data + block * to.block_stride + row * kChannelBlock,
                   to.position_stride);
    }
  });
}

template <class T>
class Convolution {
 public:
  Convolution(const WinogradParams& p, const T* x, const WinogradWeight& weight, const WinogradEpilogue& epilogue,
              T* out)
      : p_(p), x_(x), weight_(weight), epilogue_(epilogue), out_(out) {}

  void run() const { p_.in_channels* p_.out_channels <= kSmallWeight ? run_tile_by_tile() : run_in_stages(); }

 private:
  // Every thread takes a few tiles from beginning to end.
  void run_tile_by_tile() const {
    const int64_t in_blocks = channel_blocks(p_.in_channels), out_blocks = channel_blocks(p_.out_channels);
    const auto room = weight_scratch(out_blocks, in_blocks);
    const Transformed weight = make_weight(0, out_blocks, 0, in_blocks, room.get());
    // As many parts for every thread.
    const int64_t threads = at::get_num_threads();
    const int64_t parts =
        std::min(p_.tiles(), ceil_div(ceil_div(p_.tiles(), PSPFAST_CALL(few_tiles)), threads) * threads);
    const int64_t few = ceil_div(p_.tiles(), parts);
    parallel_tasks(parts, [&] {
      return [&, in = scratch<float>(transformed_size(in_blocks, few)),
              out = scratch<float>(transformed_size(out_blocks, few))](int64_t part) {
        const int64_t begin = part * p_.tiles() / parts, tiles = (part + 1) * p_.tiles() / parts - begin;
        const auto inputs = transformed(in.get(), in_blocks, tiles);
        const auto products = transformed(out.get(), out_blocks, tiles);
        for (int64_t t = 0; t < tiles; ++t) transform_input(begin, t, 0, inputs);
        for (int64_t task = 0; task < product_tasks(weight); ++task) multiply(task, inputs, weight, 0, products, false);
        for (int64_t t = 0; t < tiles; ++t) transform_output(begin, t, 0, products);
      };
    });
  }

  // All threads transform the inputs of many tiles, then multiply, then transform the products.
  void run_in_stages() const {
    const int64_t most = tiles_at_a_time(p_);
    const int64_t in_size = transformed_size(chunk_blocks(p_.in_channels), most);
    // Training, which transforms its weights, needs the memory for other things in between.
    Workspace passing;
    Workspace& workspace = weight_.transformed ? kept_workspace : passing;
    float* const in = workspace.room_for(in_size + transformed_size(chunk_blocks(p_.out_channels), most));
    float* const out = in + in_size;
    const auto room = weight_scratch(channel_blocks(kFilters), chunk_blocks(p_.in_channels));
    for_each_part(p_.tiles(), most, [&](int64_t begin, int64_t tiles) {
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
};

// Channels on either side whose products a task keeps in a core's own cache: 36 * 64 * 64 floats are 0.6 MB. Fewer
// where there would be too few tasks for the threads.
int64_t group_size(const WinogradParams& p) {
  const int64_t enough = 4 * at::get_num_threads();
  int64_t group = 64;
  while (group > kChannelBlock && ceil_div(p.in_channels, group) * ceil_div(p.out_channels, group) < enough) group /= 2;
  return group;
}

template <class T>
class WeightGradient {
 public:
  WeightGradient(const WinogradParams& p, const T* x, const T* grad, bool channels_last, float* grad_weight)
      : p_(p),
        x_(x),
        grad_(grad),
        out_stride_(9 * p.in_channels),
        in_stride_(channels_last ? 1 : 9),
        tap_stride_(channels_last ? p.in_channels : 1),
        grad_weight_(grad_weight) {}

  void run() const {
    // The number of tiles summed at a time does not depend on the threads, so neither do the sums.
    const int64_t most = std::min(p_.tiles(), kTiles);
    const auto in = scratch<float>(transformed_size(chunk_blocks(p_.in_channels), most));
    const auto out = scratch<float>(transformed_size(chunk_blocks(p_.out_channels), most));
    for_each_part(p_.tiles(), most, [&](int64_t begin, int64_t tiles) {
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

// Calls f with a null pointer of the element type; there is no float64.
template <class F>
void dispatch_without_double(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat16: return f(static_cast<c10::Half*>(nullptr));
    case DType::kBFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
    default: return f(static_cast<float*>(nullptr));
  }
}

}  // namespace

void winograd_weight(const WinogradParams& params, const WinogradWeight& weight, float* transformed) {
  const int64_t rows = channel_blocks(params.in_channels) * kChannelBlock;
  const int64_t stride = winograd_weight_stride(params.in_channels, params.out_channels);
  advise_huge_pages(transformed, sizeof(float) * kTilePositions * stride);
  // The room between positions is not read, but written files should not depend on what was in memory.
  for (int64_t i = 1; i <= kTilePositions; ++i)
    std::fill_n(transformed + i * stride - kChannelBlock, kChannelBlock, 0.f);
  dispatch_without_double(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    transform_weight<T>(params, weight, 0, 0,
                        {transformed, channel_blocks(params.out_channels), rows, rows * kChannelBlock, stride});
  });
}

void winograd_conv2d(const WinogradParams& params, const void* x, const WinogradWeight& weight,
                     const WinogradEpilogue& epilogue, void* out) {
  dispatch_without_double(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Convolution<T>(params, static_cast<const T*>(x), weight, epilogue, static_cast<T*>(out)).run();
  });
}

void winograd_weight_gradient(const WinogradParams& params, const void* x, const void* grad, bool channels_last,
                              float* grad_weight) {
  dispatch_without_double(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    WeightGradient<T>(params, static_cast<const T*>(x), static_cast<const T*>(grad), channels_last, grad_weight).run();
  });
}

}  // namespace pspfast::cpu
