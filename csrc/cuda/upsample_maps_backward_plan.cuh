// upsample_maps, backward: how the work is cut into blocks.
#pragma once

#include <limits>

#include "upsample_maps_taps.cuh"

namespace pspfast::cuda {

// Rows of the map that a block takes at a time, at most.
constexpr int kBatchRows = 16;
// Rows of sources that a block gathers for, at most, if not for all of a level.
constexpr int kMostSources = 16;

// Levels [begin, end) that a block gathers for. It does so in one of two ways:
// - for `source_rows` x `source_cols` sources of one level, from all of the map that reads them. Neighbouring blocks
//   read some rows and columns of the map, too.
// - for all of the levels' sources, from a segment of the map's rows. Sums of segments are added by another kernel,
//   unless there is one segment.
struct BackwardGroup {
  int64_t first_block;   // of those of an image's chunk
  int64_t first_sum;     // of the group, if it has several segments
  int64_t bands, tiles;  // of sources
  int begin, end;
  int source_rows, source_cols;  // of a level, at most
  int segments, segment_rows;
  int entries;   // source columns of a block times columns of the kernel
  int gathered;  // sums of a block for each channel
};

struct BackwardPlan {
  BackwardGroup groups[kMaxLevels];
  int count;
  int64_t blocks, chunk_blocks;  // all, and those of an image's chunk, of all groups
  int64_t sums;                  // floats, of all segments
  int64_t chunks;                // of channels
  int lanes;
  int rows, cols;              // of the map, that a block takes at a time
  int row_stride, col_stride;  // taps of a level
  int levels;                  // of a block, at most
  int table_bytes, total_bytes;
};

inline int source_cols(const MapUpsampleParams& params, const BackwardGroup& group, int level) {
  return std::min(group.source_cols, params.cols[level]);
}
// Source rows that a segment reads, at most.
PSPFAST_HOST_DEVICE inline int segment_sources(const MapUpsampleParams& params, const BackwardGroup& group, int level) {
  return row_axis(params, level).most_sources(group.segment_rows);
}
// Source rows of a level that a block gathers for, at most. Of more sources than positions some are read by none, and
// count where there are no segments.
inline int most_source_rows(const MapUpsampleParams& params, const BackwardGroup& group, int level) {
  return group.segments > 1 ? segment_sources(params, group, level) : std::min(group.source_rows, params.rows[level]);
}

inline void count_sums(const MapUpsampleParams& params, BackwardGroup& group) {
  for (int level = group.begin; level < group.end; ++level) {
    const int entries = source_cols(params, group, level) * params.kernel_size;
    group.entries += entries;
    group.gathered += entries * params.kernel_size * most_source_rows(params, group, level);
  }
}

// Sums of an image and a channel that a segment hands over.
PSPFAST_HOST_DEVICE inline int64_t segment_sums(const MapUpsampleParams& params, const BackwardGroup& group) {
  int64_t sums = 0;
  for (int level = group.begin; level < group.end; ++level) {
    sums += int64_t{segment_sources(params, group, level)} * params.cols[level];
  }
  return sums * params.kernel_size * params.kernel_size;
}

// Channels of a thread.
template <typename T, int Size, bool ChannelsLast>
constexpr int kBwdChannels = ChannelsLast ? Size : kVectorSize<T>;

// Pixels are copied to shared memory first, channels innermost: a thread's channels of a pixel are one vector. This is
// the vector's place in its row: of contiguous maps neighbouring threads write each 8th, which would meet in the same
// banks if the row did not leave out one behind 8. kPixels pixels lie between two such gaps.
constexpr int kTileRun = 8;
__host__ __device__ inline int tile_position(int vector) { return vector + vector / kTileRun; }

// The distance of rows, in vectors: neighbouring threads read neighbouring rows, from as many banks at an odd distance.
__host__ __device__ inline int tile_stride(const BackwardPlan& plan) {
  return (tile_position(plan.cols * plan.lanes - 1) + 1) | 1;
}

// The shared memory of a block for the group that takes `rows` rows at a time, of vectors of so many channels and
// bytes.
inline int64_t bwd_bytes(const BackwardPlan& plan, const BackwardGroup& group, int rows, int channels,
                         int vector_bytes) {
  const int64_t sums = int64_t{rows} * group.entries + group.gathered;
  return plan.table_bytes + sums * plan.lanes * channels * int64_t{sizeof(float)} +
         int64_t{rows} * tile_stride(plan) * vector_bytes;
}

inline void lay_out_taps(const MapUpsampleParams& params, int rows, BackwardPlan& plan) {
  plan.rows = rows;
  plan.row_stride = rows + params.kernel_size - 1;
  plan.col_stride = plan.cols + params.kernel_size - 1;
  const int64_t taps = int64_t{plan.levels} * (plan.row_stride + plan.col_stride);
  plan.table_bytes = static_cast<int>(round_up(taps * sizeof(AxisTap), kVectorBytes));
}

// Finds the way of [group.begin, group.end) that moves the least bytes, of those that fit, and returns these bytes of
// an image and a channel, at the cost of cost_of_plan; infinity if none fits.
template <typename Fits>
double choose_group(const MapUpsampleParams& params, int element_bytes, int access_pixels, bool whole_rows,
                    const BackwardPlan& plan, const Fits& fits, BackwardGroup& best) {
  double least = std::numeric_limits<double>::infinity();
  // The groups of a launch share the GPU.
  const int64_t enough = ceil_div(kEnoughBlocks * (best.end - best.begin), params.levels);
  const auto consider = [&](BackwardGroup& group, double bytes) {
    count_sums(params, group);
    const int64_t blocks = params.batch * plan.chunks * group.bands * group.tiles * group.segments;
    bytes = cost_of_plan(bytes, blocks, enough);
    if (bytes < least && fits(group)) best = group, least = bytes;
  };
  const auto map_bytes = static_cast<double>(params.height * params.width * element_bytes);
  const int height = static_cast<int>(params.height), width = static_cast<int>(params.width);
  const int64_t needed = ceil_div(enough, params.batch * plan.chunks);
  for (int64_t segments = 1; segments < 2 * params.height; segments = std::max(2 * segments, needed)) {
    BackwardGroup group{.bands = 1, .tiles = 1, .begin = best.begin, .end = best.end};
    group.source_rows = group.source_cols = std::numeric_limits<int>::max();
    group.segment_rows =
        static_cast<int>(round_up(ceil_div(params.height, std::min(segments, params.height)), row_unit(access_pixels)));
    group.segments = static_cast<int>(ceil_div(params.height, group.segment_rows));
    // Sums of segments are written and read.
    const double sum_bytes = 2.0 * group.segments * segment_sums(params, group) * sizeof(float);
    consider(group, map_bytes + (group.segments > 1 ? sum_bytes : 0.0));
  }
  if (best.end - best.begin > 1 || whole_rows) return least;
  const InterpolatedAxis rows = row_axis(params, best.begin), cols = col_axis(params, best.begin);
  for (int source_rows = kMostSources; source_rows > 0; source_rows /= 2) {
    for (const int source_cols : {source_rows, 2 * source_rows}) {
      BackwardGroup group{.begin = best.begin, .end = best.end, .segments = 1, .segment_rows = height};
      group.source_rows = std::min(source_rows, rows.sources);
      group.source_cols = std::min(source_cols, cols.sources);
      group.bands = ceil_div(rows.sources, group.source_rows);
      group.tiles = ceil_div(cols.sources, group.source_cols);
      const int64_t tile_cols = round_up(cols.most_readers(group.source_cols), access_pixels);
      const double pixels = static_cast<double>(group.bands * rows.most_readers(group.source_rows)) *
                            static_cast<double>(group.tiles * std::min<int64_t>(tile_cols, width));
      consider(group, pixels * element_bytes);
    }
  }
  return least;
}

// The plan whose blocks fit into `shared_bytes`, or one without blocks.
template <typename T, int Size, bool ChannelsLast>
BackwardPlan make_bwd_plan(const MapUpsampleParams& params, int64_t shared_bytes) {
  constexpr int kChannels = kBwdChannels<T, Size, ChannelsLast>;
  constexpr int kVectorPixels = kAccessPixels<Size, ChannelsLast>;
  constexpr int kTileVector = kChannels * sizeof(T);
  // Vectors that lie in two rows ask for whole rows.
  const bool whole_rows = !ChannelsLast && params.width % kVectorPixels != 0;
  BackwardPlan best{};
  double least = std::numeric_limits<double>::infinity();
  for (int lanes = kMostLanes<kChannels, ChannelsLast>; lanes >= kLeastLanes<kChannels, ChannelsLast>; lanes /= 2) {
    for (const int levels : {1, params.sum_levels ? params.levels : 1}) {
      BackwardPlan plan{.chunks = ceil_div(params.channels, lanes * kChannels), .lanes = lanes, .levels = levels};
      plan.cols =
          static_cast<int>(std::min<int64_t>(kTileCols, round_up(params.width, std::max(kPixels, kVectorPixels))));
      lay_out_taps(params, row_unit(kVectorPixels), plan);
      const auto fits = [&](const BackwardGroup& group) {
        return bwd_bytes(plan, group, plan.rows, kChannels, kTileVector) <= shared_bytes;
      };
      double bytes = 0;
      for (int begin = 0; begin < params.levels; begin += levels) {
        BackwardGroup& group = plan.groups[plan.count++];
        group.begin = begin;
        group.end = begin + levels;
        bytes += choose_group(params, sizeof(T), kVectorPixels, whole_rows, plan, fits, group);
      }
      if (bytes < least) best = plan, least = bytes;
    }
  }
  for (int i = 0; i < best.count; ++i) {
    BackwardGroup& group = best.groups[i];
    group.first_block = best.chunk_blocks;
    best.chunk_blocks += group.bands * group.tiles * group.segments;
    group.first_sum = best.sums;
    if (group.segments > 1) best.sums += group.segments * params.batch * segment_sums(params, group) * params.channels;
  }
  best.blocks = params.batch * best.chunks * best.chunk_blocks;
  for (int rows = kBatchRows; best.count > 0; rows /= 2) {
    lay_out_taps(params, rows, best);
    int64_t bytes = 0;
    for (int i = 0; i < best.count; ++i) {
      bytes = std::max(bytes, bwd_bytes(best, best.groups[i], rows, kChannels, kTileVector));
    }
    best.total_bytes = static_cast<int>(bytes);
    // The fewest rows fit.
    if (bytes <= shared_bytes) break;
  }
  return best;
}

}  // namespace pspfast::cuda
