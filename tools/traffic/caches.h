// What a GPU's caches let through to L2 and to DRAM, of a kernel's accesses: a model, in sectors of 32 bytes.
//
// An access is of a request, what a warp's instruction asks for at once, and of a request every sector counts once.
// A block keeps the last sectors that it read, as many as its share of L1 holds; what it writes goes to L2 at once.
// L2 keeps the last sectors that were read or written, and writes to DRAM once what was written meanwhile. It is empty
// when a launch begins.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace traffic {

constexpr uint64_t kSectorBytes = 32;

// Sectors.
struct Counts {
  int64_t read, written;  // different ones
  int64_t handed_on;      // of those read: written by an earlier launch
  int64_t l2_reads, l2_writes, dram_reads, dram_writes;
};

class Caches {
 public:
  Caches(int64_t l1_bytes, int64_t l2_bytes)
      : l1_sectors_(l1_bytes / kSectorBytes), l2_sectors_(l2_bytes / kSectorBytes) {}

  void begin_launch() {
    counts_ = {};
    ++launch_;
    l2_begin_ = l2_clock_;
    begin_block();
  }
  void begin_block() { l1_begin_ = l1_clock_; }
  void begin_request() { ++request_; }

  void access(uint64_t address, uint64_t bytes, bool store) {
    for (uint64_t place = address / kSectorBytes; place <= (address + bytes - 1) / kSectorBytes; ++place) {
      Sector& sector = at(place);
      if (sector.request == request_) continue;
      sector.request = request_;
      store ? write(sector) : read(sector);
    }
  }

  const Counts& counts() const { return counts_; }

 private:
  struct Sector {
    uint32_t request;
    // Its number among all that were taken in; 0 before.
    uint32_t l1, l2;
    // The last launches that read it, that wrote it, and that wrote it to what L2 keeps.
    uint8_t read_by, written_by;
    bool dirty;
  };
  static constexpr uint64_t kPageSectors = 1 << 16;
  using Page = std::array<Sector, kPageSectors>;

  Sector& at(uint64_t place) {
    const uint64_t number = place / kPageSectors;
    if (page_ == nullptr || number != page_number_) {
      auto& page = pages_[number];
      if (!page) page = std::make_unique<Page>();
      page_ = page.get();
      page_number_ = number;
    }
    return (*page_)[place % kPageSectors];
  }

  static bool keeps(uint32_t taken_in, uint32_t begin, uint32_t clock, int64_t sectors) {
    return taken_in > begin && clock - taken_in < sectors;
  }

  void read(Sector& sector) {
    if (sector.read_by != launch_) {
      ++counts_.read;
      counts_.handed_on += sector.written_by != 0 && sector.written_by != launch_;
      sector.read_by = launch_;
    }
    if (keeps(sector.l1, l1_begin_, l1_clock_, l1_sectors_)) return;
    sector.l1 = ++l1_clock_;
    ++counts_.l2_reads;
    if (!take_into_l2(sector)) return;
    sector.dirty = false;
    ++counts_.dram_reads;
  }

  void write(Sector& sector) {
    if (sector.written_by != launch_) {
      ++counts_.written;
      sector.written_by = launch_;
    }
    ++counts_.l2_writes;
    if (take_into_l2(sector)) sector.dirty = false;
    counts_.dram_writes += !sector.dirty;
    sector.dirty = true;
  }

  // Whether it was not there.
  bool take_into_l2(Sector& sector) {
    if (keeps(sector.l2, l2_begin_, l2_clock_, l2_sectors_)) return false;
    sector.l2 = ++l2_clock_;
    return true;
  }

  const int64_t l1_sectors_, l2_sectors_;
  Counts counts_{};
  uint8_t launch_ = 0;
  uint32_t request_ = 0, l1_clock_ = 0, l1_begin_ = 0, l2_clock_ = 0, l2_begin_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  Page* page_ = nullptr;
  uint64_t page_number_ = 0;
};

}  // namespace traffic
