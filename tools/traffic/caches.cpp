// The caches behind a C interface.
#include "caches.h"

extern "C" {

traffic::Caches* make_caches(int64_t l1_bytes, int64_t l2_bytes) { return new traffic::Caches(l1_bytes, l2_bytes); }
void delete_caches(traffic::Caches* caches) { delete caches; }
void begin_launch(traffic::Caches* caches) { caches->begin_launch(); }
void begin_block(traffic::Caches* caches) { caches->begin_block(); }

// All of one request.
void access_all(traffic::Caches* caches, const uint64_t* addresses, int64_t count, int64_t bytes, bool store) {
  caches->begin_request();
  for (int64_t i = 0; i < count; ++i) caches->access(addresses[i], bytes, store);
}

void get_counts(const traffic::Caches* caches, traffic::Counts* counts) { *counts = caches->counts(); }
}
