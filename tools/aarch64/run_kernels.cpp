// Runs CPU kernels on what stdin brings and writes what they left to stdout, for a machine that has no torch: compiled
// for another processor together with csrc/cpu/*.cpp, and run by its emulator. tests/gpu/test_aarch64.py writes and
// reads both streams.
//
// The argument is a kernel's name. On stdin come the count of integers, they, the count of buffers, and of each the
// number of bytes and they; all numbers are int64. The answer is the buffers. An empty buffer is a null pointer.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string_view>
#include <vector>

#include "../../csrc/batch_norm_relu.h"
#include "../../csrc/depthwise_conv2d.h"
#include "../../csrc/pyramid_mix.h"
#include "../../csrc/pyramid_pool.h"
#include "../../csrc/pyramid_upsample.h"
#include "../../csrc/upsample_argmax.h"
#include "../../csrc/upsample_concat_conv2d.h"
#include "../../csrc/upsample_cross_entropy.h"
#include "../../csrc/upsample_softmax.h"
#include "../../csrc/winograd.h"

// What the kernels take from torch. Work is cut in two, as by two threads.
extern "C" {
uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }

AOTITorchError torch_get_num_threads(uint32_t* threads) {
  *threads = 2;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc run, void* context) {
  const int64_t middle = begin + (end - begin) / 2;
  if (begin < middle) run(begin, middle, context);
  if (middle < end) run(middle, end, context);
  return AOTI_TORCH_SUCCESS;
}
}

namespace {

using namespace pspfast;

struct Call {
  std::vector<int64_t> n;
  std::vector<std::vector<char>> buffers;

  template <class T = void>
  T* at(size_t i) {
    return buffers[i].empty() ? nullptr : reinterpret_cast<T*>(buffers[i].data());
  }
  DType dtype(size_t i) const { return static_cast<DType>(n[i]); }
  // All integers from i on are bins.
  PyramidLevels levels(size_t i) const { return make_pyramid_levels(n.data() + i, static_cast<int>(n.size() - i)); }
};

PyramidPoolParams pool(const Call& c) {
  return {c.n[0], c.n[1], c.n[2], c.n[3], c.n[4] != 0, c.dtype(5), make_pyramid_cells(c.n[2], c.n[3], c.levels(6))};
}

PyramidUpsampleParams upsample_pyramid(const Call& c) {
  return {c.levels(8), c.n[0],      c.n[2],    c.n[3], c.n[1], 0, c.n[1], true, static_cast<int32_t>(c.n[6]),
          c.n[7] != 0, c.n[4] != 0, c.dtype(5)};
}

// [O, x_channels + L R, k, k] with the map's channels first.
PyramidMixParams mix(const Call& c) {
  const PyramidLevels levels = c.levels(6);
  const int64_t x_channels = c.n[2], reduction = c.n[3];
  return {levels, c.n[0], c.n[1],    x_channels + levels.levels * reduction, x_channels, 0, reduction, x_channels,
          c.n[4], false,  c.dtype(5)};
}

UpsampleConcatConv2dParams concat(const Call& c) {
  return {c.n[0],      c.n[1],      c.n[2], c.n[3],    c.n[4], static_cast<int32_t>(c.n[5]),
          c.n[6] != 0, c.n[7] != 0, false,  c.dtype(8)};
}

// Behind the parameters: channels, rows and columns of each map, whose data are the buffers from `first` on.
std::vector<SourceMap> sources(Call& c, size_t first) {
  std::vector<SourceMap> maps;
  for (size_t i = 9, channel = 0; i < c.n.size(); i += 3) {
    maps.push_back({c.n[i], static_cast<int64_t>(channel), c.n[i + 1], c.n[i + 2], c.at(first + maps.size())});
    channel += c.n[i];
  }
  return maps;
}

constexpr double kEps = 1e-5;

BatchNormReluParams batch_norm(const Call& c) { return {c.n[0], c.n[1], c.dtype(2), true, kEps}; }

BatchNormReluInputs batch_norm_inputs(Call& c) { return {c.at(0), c.at(1), c.at(2), c.at(3), c.at(4)}; }

WinogradParams winograd(const Call& c) { return {c.n[0], c.n[1], c.n[2], c.n[3], c.n[4], c.n[5], c.dtype(6)}; }

UpsampleParams upsample(const Call& c) {
  return {c.n[0], c.n[1], c.n[2], c.n[3], c.n[4], c.n[5], c.n[6] != 0, c.n[7] != 0, c.dtype(8)};
}

constexpr int64_t kIgnored = 255;
constexpr double kSmoothing = 0.1;

UpsampleLossParams loss(const Call& c) { return {upsample(c), kIgnored, kSmoothing}; }

struct Kernel {
  std::string_view name;
  void (*run)(Call&);
};

const Kernel kKernels[] = {
    {"pyramid_pool", [](Call& c) { cpu::pyramid_pool(pool(c), c.at(0), nullptr, c.at(1)); }},
    {"pyramid_pool_backward", [](Call& c) { cpu::pyramid_pool_backward(pool(c), c.at(0), c.at(1)); }},
    {"pyramid_upsample",
     [](Call& c) {
       cpu::pyramid_upsample(upsample_pyramid(c), {.base = c.at(0), .bias = c.at(1), .relu = true}, c.at(2), c.at(3));
     }},
    {"pyramid_upsample_backward",
     [](Call& c) { cpu::pyramid_upsample_backward(upsample_pyramid(c), c.at(0), c.at(1), nullptr); }},
    {"pyramid_mix", [](Call& c) { cpu::pyramid_mix(mix(c), c.at(0), c.at(1), c.at(2), c.at(3)); }},
    {"pyramid_mix_backward",
     [](Call& c) { cpu::pyramid_mix_backward(mix(c), c.at(0), c.at(1), c.at(2), c.at(3), c.at(4), c.at(5)); }},
    {"upsample_concat_conv2d",
     [](Call& c) {
       const auto maps = sources(c, 3);
       cpu::upsample_concat_conv2d(concat(c), maps.data(), maps.size(), c.at(0), c.at(1), true, c.at(2));
     }},
    {"upsample_concat_conv2d_grad_map",
     [](Call& c) { cpu::upsample_concat_conv2d_grad_map(concat(c), sources(c, 3).back(), c.at(0), c.at(1), c.at(2)); }},
    {"upsample_concat_conv2d_grad_weight",
     [](Call& c) {
       const auto maps = sources(c, 2);
       cpu::upsample_concat_conv2d_grad_weight(concat(c), maps.data(), maps.size(), c.at(0), c.at(1));
     }},
    {"batch_norm_statistics", [](Call& c) { cpu::batch_norm_statistics(batch_norm(c), c.at(0), c.at(1)); }},
    {"batch_norm_relu", [](Call& c) { cpu::batch_norm_relu(batch_norm(c), batch_norm_inputs(c), c.at(5)); }},
    {"batch_norm_relu_grad_sums",
     [](Call& c) { cpu::batch_norm_relu_grad_sums(batch_norm(c), batch_norm_inputs(c), c.at(5), c.at(6), c.at(7)); }},
    {"batch_norm_relu_grad_input",
     [](Call& c) { cpu::batch_norm_relu_grad_input(batch_norm(c), batch_norm_inputs(c), c.at(5), c.at(6), c.at(7)); }},
    {"winograd_conv2d",
     [](Call& c) {
       const auto p = winograd(c);
       const WinogradWeight weight{c.at(1), 9 * p.in_channels, 9, 1, false, nullptr};
       cpu::winograd_conv2d(p, c.at(0), weight, {c.at(2), c.at(3), true}, c.at(4));
     }},
    {"winograd_weight_gradient",
     [](Call& c) {
       const auto p = winograd(c);
       cpu::winograd_weight_gradient(p, c.at(0), c.at(1), false, p.in_channels, c.at<float>(2));
     }},
    {"depthwise_conv2d",
     [](Call& c) {
       const DepthwiseConv2dParams p{c.n[0], c.n[1], c.n[2], c.n[3], c.n[4], c.n[5], c.dtype(6), true};
       cpu::depthwise_conv2d(p, c.at(0), c.at(1), c.at(2), c.at(3));
     }},
    {"upsample_argmax", [](Call& c) { cpu::upsample_argmax(upsample(c), c.at(0), LabelType::kInt32, c.at(1)); }},
    {"upsample_softmax",
     [](Call& c) {
       const auto p = upsample(c);
       const int64_t pixels = p.height * p.width;
       cpu::upsample_softmax(p, {p.classes * pixels, pixels, p.width, 1, true, false, 0.5}, c.at(0), c.at(1));
     }},
    {"upsample_cross_entropy",
     [](Call& c) {
       const auto p = loss(c);
       const int64_t partials = cpu::upsample_cross_entropy_partials(p);
       std::vector<double> sums(3 * partials);
       bool valid;
       cpu::upsample_cross_entropy(p, c.at(0), c.at<int64_t>(1), c.at(2), c.at(3), LabelType::kUInt8, nullptr,
                                   sums.data());
       cpu::upsample_cross_entropy_mean(p, partials, sums.data(), c.at(4), c.at(5), &valid);
       if (!valid) std::exit(2);
     }},
    {"upsample_cross_entropy_backward",
     [](Call& c) {
       cpu::upsample_cross_entropy_backward(loss(c), c.at(0), c.at<int64_t>(1), c.at(2), c.at(3), c.at(4), c.at(5),
                                            nullptr);
     }},
};

void read(void* data, size_t bytes) {
  if (std::fread(data, 1, bytes, stdin) != bytes) std::exit(1);
}

int64_t read_number() {
  int64_t number;
  read(&number, sizeof(number));
  return number;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view name = argc == 2 ? argv[1] : "";
  const auto kernel = std::find_if(std::begin(kKernels), std::end(kKernels), [&](auto& k) { return k.name == name; });
  if (kernel == std::end(kKernels)) return 1;
  Call call;
  call.n.resize(read_number());
  for (int64_t& number : call.n) number = read_number();
  call.buffers.resize(read_number());
  for (auto& buffer : call.buffers) {
    buffer.resize(read_number());
    read(buffer.data(), buffer.size());
  }
  kernel->run(call);
  for (const auto& buffer : call.buffers) std::fwrite(buffer.data(), 1, buffer.size(), stdout);
}
