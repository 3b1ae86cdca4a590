// Products of small matrices, included once per instruction set. Rows of 16 lie together: element (m, k) of a left
// factor is at [k / 16][m][k % 16], or, transposed, at [m / 16][k][m % 16]; element (k, n) of a right factor and (m, n)
// of a product at [n / 16][k or m][n % 16], where blocks of 16 columns are a given distance apart.

// This many products are summed one after another, before these sums are added: the error of a sum grows with its
// length. The rows of a right factor that they take stay in a core's first-level cache, too.
constexpr int64_t kSummed = 128;

// Rows and vectors of columns that a step keeps in registers, with a row of the right factor beside them.
#if PSPFAST_ISA == PSPFAST_AVX512
constexpr int kMatmulRows = 14, kMatmulCols = 2;
constexpr int kTransposedRows = 8;  // Divides 16.
#elif PSPFAST_ISA == PSPFAST_AVX2
constexpr int kMatmulRows = 6, kMatmulCols = 1;
constexpr int kTransposedRows = 4;
#else
constexpr int kMatmulRows = 2, kMatmulCols = 1;
constexpr int kTransposedRows = 2;
#endif

template <class A>
struct Matmul {
  const A* left;
  int64_t left_block;  // distance of the blocks of 16 k, or of 16 m if transposed
  const A* right;
  int64_t right_block;  // distance of the blocks of 16 columns
  A* product;
  int64_t product_row, product_block;
  int64_t depth;  // a multiple of 16 unless transposed
  bool add;       // to what the product holds
};

template <class A, int kRows, int kCols, bool kTransposed>
void multiply_rows(const Matmul<A>& m) {
  constexpr int64_t kRowStride = kTransposed ? 1 : kLanes, kStep = kTransposed ? kLanes : 1;
  Lanes<A> sums[kRows][kCols];
  const auto for_each_sum = [&](const auto& f) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kCols; ++j) f(sums[i][j], m.product + i * m.product_row + j * m.product_block);
    }
  };
  for_each_sum([](Lanes<A>& sum, const A*) { sum = Lanes<A>{}; });
  const auto step = [&](const A* left, const A* right) __attribute__((always_inline)) {
    Lanes<A> row[kCols];
#pragma GCC unroll 2
    for (int j = 0; j < kCols; ++j) row[j] = load(right + j * m.right_block);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kCols; ++j) sums[i][j] += left[i * kRowStride] * row[j];
    }
  };
  if constexpr (kTransposed) {
    for (int64_t k = 0; k < m.depth; ++k) step(m.left + k * kStep, m.right + k * kLanes);
  } else {
    for (int64_t k = 0; k < m.depth; k += kLanes) {
      const A* left = m.left + k / kLanes * m.left_block;
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLanes; ++i) step(left + i * kStep, m.right + (k + i) * kLanes);
    }
  }
  if (m.add) for_each_sum([](Lanes<A>& sum, const A* product) { sum += load(product); });
  for_each_sum([](const Lanes<A>& sum, A* product) { store(product, sum); });
}

template <class A, int kRows, int kCols>
void multiply_up_to(int64_t rows, const Matmul<A>& m) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_up_to<A, kRows - 1, kCols>(rows, m);
  }
  multiply_rows<A, kRows, kCols, false>(m);
}

// Multiplies `rows` rows by `blocks` blocks of columns. A product of depth 0 is zero, and is stored or added as any
// other.
template <class A>
void multiply(int64_t rows, int64_t blocks, const Matmul<A>& all) {
  const int64_t steps = (rows + kMatmulRows - 1) / kMatmulRows;
  for (int64_t block = 0; block < blocks; block += kMatmulCols) {
    for (int64_t k = 0; k == 0 || k < all.depth; k += kSummed) {
      for (int64_t step = 0; step < steps; ++step) {
        // The steps' numbers of rows differ by one at most.
        const int64_t begin = step * rows / steps, end = (step + 1) * rows / steps;
        Matmul<A> m = all;
        m.left += k / kLanes * all.left_block + begin * kLanes;
        m.right += block * all.right_block + k * kLanes;
        m.product += begin * all.product_row + block * all.product_block;
        m.depth = std::min(kSummed, all.depth - k);
        m.add |= k > 0;
        blocks - block < kMatmulCols ? multiply_up_to<A, kMatmulRows, 1>(end - begin, m)
                                     : multiply_up_to<A, kMatmulRows, kMatmulCols>(end - begin, m);
      }
    }
  }
}

// Multiplies with a transposed left factor, for a multiple of 16 rows.
template <class A>
void multiply_transposed(int64_t rows, int64_t blocks, const Matmul<A>& all) {
  for (int64_t block = 0; block < blocks; block += kMatmulCols) {
    for (int64_t k = 0; k == 0 || k < all.depth; k += kSummed) {
      for (int64_t row = 0; row < rows; row += kTransposedRows) {
        Matmul<A> m = all;
        m.left += row / kLanes * all.left_block + row % kLanes + k * kLanes;
        m.right += block * all.right_block + k * kLanes;
        m.product += row * all.product_row + block * all.product_block;
        m.depth = std::min(kSummed, all.depth - k);
        m.add |= k > 0;
        blocks - block < kMatmulCols ? multiply_rows<A, kTransposedRows, 1, true>(m)
                                     : multiply_rows<A, kTransposedRows, kMatmulCols, true>(m);
      }
    }
  }
}
