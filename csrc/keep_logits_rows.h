// The rows of keep_logits (see keep_logits.cpp for what and why).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "block.h"
#include "keep_logits.h"

namespace mkd::MKD_ISA {

constexpr int kGroup = 64;
constexpr int kGroupsInBlock = kBlock / kGroup;
constexpr double kLog2OfE = 1.4426950408889634;
static_assert(kGroupsInBlock % Vec::kLanes == 0, "groups of a block fill whole registers");

// A float's bits as a number that is larger where the float is; NaN lies at the ends.
inline int32_t order_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
inline float float_of(int32_t order) {
  const int32_t bits = order ^ ((order >> 31) & 0x7fffffff);
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// Memory of a thread that is kept between rows. (Not std::unique_ptr: see vec.h on inline
// functions that two instruction sets would share.)
template <class T>
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { delete[] data_; }

  // Room for that many; what was there is lost where it has to grow.
  T* room(int64_t count) {
    if (count > size_) {
      delete[] data_;
      data_ = nullptr;
      data_ = new T[count];
      size_ = count;
    }
    return data_;
  }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// A column among the largest: a larger number is a larger logit or, of equals, a lower id.
struct Found {
  uint64_t rank;
  bool operator>(const Found& other) const { return rank > other.rank; }

  static Found of(float logit, int64_t id) {
    const auto order = static_cast<uint32_t>(order_of(logit)) ^ 0x80000000u;
    return {static_cast<uint64_t>(order) << 32 | static_cast<uint32_t>(~id)};
  }
  int32_t id() const { return static_cast<int32_t>(~static_cast<uint32_t>(rank)); }
  float logit() const {
    return float_of(static_cast<int32_t>(static_cast<uint32_t>(rank >> 32) ^ 0x80000000u));
  }
};

// Where a row's groups stand with one exponent c: sums of exp2(c (z - its block's largest)).
struct PowerSums {
  double log2_scale = 0.0;       // c = log2(e) / T, or tau times that
  float* group_sums = nullptr;   // [blocks * kGroupsInBlock]
  double* upto_block = nullptr;  // [blocks], of all blocks up to this one
  double total = 0.0;            // of exp2(c (z - the row's largest))
};

// joined[g] = act(register i of group g, folded by join over i and then over lanes), for a block.
template <class Act, class Join>
inline void of_groups(const float* block, const Act& act, const Join& join, float* joined) {
  constexpr int kRegisters = kGroup / Vec::kLanes;
  for (int first = 0; first < kGroupsInBlock; first += Vec::kLanes) {
    Vec rows[Vec::kLanes];
    for (int g = 0; g < Vec::kLanes; ++g) {
      const float* group = block + (first + g) * kGroup;
      Vec folded = act(load(group));
      for (int i = 1; i < kRegisters; ++i)
        folded = join(folded, act(load(group + i * Vec::kLanes)));
      rows[g] = folded;
    }
    store(joined + first, across(rows, join));
  }
}

// What one thread keeps of a row while it walks over it.
class LogitsRow {
 public:
  explicit LogitsRow(const KeepLogits& op)
      : op_(op), num_blocks_((op.num_columns + kBlock - 1) / kBlock) {
    const double draw_scale = kLog2OfE / op.draw_temperature;
    exponents_.room(op.num_temperatures + 2);
    log_z_.room(op.num_temperatures);
    for (int64_t i = 0; i < op.num_temperatures; ++i) {
      log_z_[i] = exponent_of(kLog2OfE / op.temperatures[i]);
    }
    if (op.num_draws > 0) {
      proposal_ = exponent_of(op.proposal_exponent * draw_scale);
      if (op.ratios) teacher_ = exponent_of(draw_scale);
    }
    const int64_t num_groups = num_blocks_ * kGroupsInBlock;
    float* group_sums = group_sums_.room(num_exponents_ * num_groups);
    double* upto_block = upto_block_.room(num_exponents_ * num_blocks_);
    for (int i = 0; i < num_exponents_; ++i) {
      exponents_[i].group_sums = group_sums + i * num_groups;
      exponents_[i].upto_block = upto_block + i * num_blocks_;
    }
    group_most_.room(num_groups);
    block_most_.room(num_blocks_);
  }

  void keep(int64_t n) {
    row_ = op_.logits.row(op_.rows[n]);
    walk();
    for (int64_t i = 0; i < op_.num_temperatures; ++i) {
      const PowerSums& at = exponents_[log_z_[i]];
      op_.log_z[n * op_.num_temperatures + i] =
          static_cast<float>(most_ / op_.temperatures[i] + std::log(at.total));
    }
    if (op_.num_top > 0) keep_top(n);
    if (op_.num_draws > 0) draw(n);
  }

 private:
  int exponent_of(double log2_scale) {
    for (int i = 0; i < num_exponents_; ++i) {
      if (exponents_[i].log2_scale == log2_scale) return i;
    }
    exponents_[num_exponents_].log2_scale = log2_scale;
    return num_exponents_++;
  }

  // Columns from `begin` on as floats, `size` of them, with -inf for those past V; how many are
  // real.
  int load_columns(int64_t begin, int size, float* to) const {
    const int64_t left = op_.num_columns - begin;
    const int real = left < size ? static_cast<int>(left) : size;
    const float padding = -std::numeric_limits<float>::infinity();
    load_scaled(op_.logits.dtype, row_, begin, real, 1.0f, padding, to);
    const int loaded = (real + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
    for (int i = loaded; i < size; ++i) to[i] = padding;
    return real;
  }

  // exp2(c (z - most)) of a register.
  static Vec power(Vec z, Vec scale, Vec most) { return exp2((z - most) * scale); }

  void walk() {
    alignas(64) float block[kBlock];
    const auto as_it_is = [](Vec x) { return x; };
    const auto larger = [](Vec a, Vec b) { return max(b, a); };  // which passes over NaN in b
    const auto add = [](Vec a, Vec b) { return a + b; };
    most_ = -std::numeric_limits<double>::infinity();
    for (int64_t b = 0; b < num_blocks_; ++b) {
      load_columns(b * kBlock, kBlock, block);
      float* group_most = &group_most_[0] + b * kGroupsInBlock;
      of_groups(block, as_it_is, larger, group_most);
      float most = group_most[0];
      for (int g = 1; g < kGroupsInBlock; ++g) most = group_most[g] > most ? group_most[g] : most;
      block_most_[b] = most;
      most_ = most > most_ ? most : most_;
      // of a block that is all -inf every exponential is 0, not the NaN of inf - inf
      const Vec base = all(most == -std::numeric_limits<float>::infinity() ? 0.0f : most);
      for (int i = 0; i < num_exponents_; ++i) {
        const Vec scale = all(static_cast<float>(exponents_[i].log2_scale));
        float* sums = exponents_[i].group_sums + b * kGroupsInBlock;
        of_groups(block, [&](Vec z) { return power(z, scale, base); }, add, sums);
        double sum = 0.0;
        for (int g = 0; g < kGroupsInBlock; ++g) sum += sums[g];
        exponents_[i].upto_block[b] = sum;
      }
    }
    for (int i = 0; i < num_exponents_; ++i) put_together(exponents_[i]);
  }

  // From the sum of each block, relative to its largest logit, to cumulative ones, relative to
  // the row's.
  void put_together(PowerSums& at) const {
    at.total = 0.0;
    for (int64_t b = 0; b < num_blocks_; ++b) {
      const double below = block_most_[b] - most_;  // NaN where the row is all -inf
      const double factor = below == 0.0 ? 1.0 : std::exp2(at.log2_scale * below);
      at.upto_block[b] = at.total += at.upto_block[b] * factor;
    }
  }

  // A logit that at least K are not below, and few more: K groups reach it, or it is -inf.
  float reached_by(int64_t num_top, int64_t num_groups) const {
    if (num_top >= num_groups) return -std::numeric_limits<float>::infinity();
    const float* most = &group_most_[0];
    int32_t low = order_of(-std::numeric_limits<float>::infinity());
    int32_t high = order_of(static_cast<float>(most_));  // the answer lies in [low, high]
    while (low < high) {
      const auto middle = static_cast<int32_t>(low + (static_cast<int64_t>(high) - low + 1) / 2);
      const float threshold = float_of(middle);
      int32_t count = 0;
      for (int64_t g = 0; g < num_groups; ++g) count += most[g] >= threshold ? 1 : 0;
      if (count < num_top) {
        high = middle - 1;
      } else {
        low = middle;
        if (count <= num_top + num_top / 8) break;
      }
    }
    return float_of(low);
  }

  void keep_top(int64_t n) {
    const int64_t num_top = op_.num_top;
    const int64_t num_groups = (op_.num_columns + kGroup - 1) / kGroup;
    const float threshold = reached_by(num_top, num_groups);
    int64_t capacity = 0;
    for (int64_t g = 0; g < num_groups; ++g) {
      capacity += group_most_[g] < threshold ? 0 : kGroup;
    }
    Found* found = found_.room(capacity);
    int64_t count = 0;
    for (int64_t g = 0; g < num_groups; ++g) {
      if (group_most_[g] < threshold) continue;
      alignas(64) float group[kGroup];
      const int size = load_columns(g * kGroup, kGroup, group);
      for (int i = 0; i < size; ++i) {
        found[count] = Found::of(group[i], g * kGroup + i);
        count += group[i] < threshold ? 0 : 1;  // NaN is not
      }
    }
    const auto larger = [](const Found& a, const Found& b) { return a > b; };
    if (count > num_top) std::nth_element(found, found + num_top - 1, found + count, larger);
    std::sort(found, found + num_top, larger);
    for (int64_t k = 0; k < num_top; ++k) {
      op_.top_ids[n * num_top + k] = found[k].id();
      op_.top_logits[n * num_top + k] = found[k].logit();
    }
  }

  void draw(int64_t n) {
    const PowerSums& proposal = exponents_[proposal_];
    op_.total[n] = proposal.total;
    read_begin_ = -1;
    for (int64_t i = n * op_.num_draws; i < (n + 1) * op_.num_draws; ++i) {
      const int64_t id = column_at(proposal, op_.uniforms[i] * proposal.total);
      op_.drawn[i] = static_cast<int32_t>(id);
      if (op_.ratios) op_.ratios[i] = ratio(id);
    }
  }

  // The first column up to which the proposal's sum exceeds `sought`; where rounding has made that
  // more than there is, the last column of its block or group that has a probability.
  int64_t column_at(const PowerSums& proposal, double sought) {
    int64_t block = 0, end = num_blocks_ - 1;
    while (block < end) {  // the first that exceeds it, or that nothing comes after
      const int64_t middle = (block + end) / 2;
      if (sought < proposal.upto_block[middle] || proposal.upto_block[middle] == proposal.total) {
        end = middle;
      } else {
        block = middle + 1;
      }
    }
    double rest = sought - (block > 0 ? proposal.upto_block[block - 1] : 0.0);
    const double below = block_most_[block] - most_;
    if (below != 0.0) rest *= std::exp2(-proposal.log2_scale * below);
    const int group = step_over(proposal.group_sums + block * kGroupsInBlock, kGroupsInBlock, rest);
    const int64_t begin = block * kBlock + group * kGroup;
    if (begin != read_begin_) {
      load_columns(begin, kGroup, powers_);
      const Vec scale = all(static_cast<float>(proposal.log2_scale)),
                most = all(block_most_[block]);
      for (int i = 0; i < kGroup; i += Vec::kLanes) {
        store(powers_ + i, power(load(powers_ + i), scale, most));
      }
      read_begin_ = begin;
    }
    const int64_t column = begin + step_over(powers_, kGroup, rest);
    return column < op_.num_columns ? column : op_.num_columns - 1;  // which a NaN may miss
  }

  // The first of some numbers up to which they sum to more than `rest`, which is then what is left
  // of it there; if none, the last that is not 0.
  static int step_over(const float* sums, int count, double& rest) {
    int last = 0;
    for (int i = 0; i < count; ++i) {
      if (sums[i] > 0.0f) last = i;
      if (rest < sums[i]) return i;
      rest -= sums[i];
    }
    rest += sums[last];
    return last;
  }

  // p / r of one column.
  double ratio(int64_t id) const {
    alignas(64) float column[Vec::kLanes];
    load_scaled(op_.logits.dtype, row_, id, 1, 1.0f, 0.0f, column);
    const double scaled = (column[0] - most_) / op_.draw_temperature;
    return std::exp((1.0 - op_.proposal_exponent) * scaled) * exponents_[proposal_].total /
           exponents_[teacher_].total;
  }

  const KeepLogits& op_;
  const int64_t num_blocks_;
  const char* row_ = nullptr;
  double most_ = 0.0;  // the row's largest logit
  int num_exponents_ = 0, proposal_ = 0, teacher_ = 0;
  Memory<PowerSums> exponents_;
  Memory<int> log_z_;  // of each temperature, which exponent
  Memory<float> group_sums_, group_most_, block_most_;
  Memory<double> upto_block_;
  Memory<Found> found_;
  alignas(64) float powers_[kGroup];  // exponentials of the group that was read last
  int64_t read_begin_ = -1;           // its first column
};

inline void keep_logits(const KeepLogits& op, int64_t begin, int64_t end) {
  if (op.num_top + op.num_temperatures + op.num_draws == 0) return;
  LogitsRow row(op);
  for (int64_t n = begin; n < end; ++n) row.keep(n);
}

}  // namespace mkd::MKD_ISA
