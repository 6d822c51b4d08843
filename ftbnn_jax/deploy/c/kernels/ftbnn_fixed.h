/* Integers between the binary convolutions: a real number is an int32_t, multiplied by a power of two. A
 * parameter is an integer and, for all channels of a layer, a shift to the right that follows the
 * multiplication. Shifts and divisions round to the nearest, halves up. Where FTBNN_PROVEN (of model.h) is 1,
 * no image makes a number leave its type; elsewhere what leaves it becomes its end, and is reported.
 */
#ifndef FTBNN_ARITHMETIC_H
#define FTBNN_ARITHMETIC_H

#include <stdint.h>
#include <string.h>

#include "model.h"

#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
#include <immintrin.h>
#endif

typedef int32_t ftbnn_weight; /* of a real convolution; a pixel in the network's scale */
typedef int64_t ftbnn_sum;    /* of products; the weights are such that it suffices */

/* Shifts of negative numbers round down, as everywhere; else this does not compile. */
typedef char ftbnn_shifts_round_down[(-3 >> 1) == -2 ? 1 : -1];

static inline int64_t ftbnn_shifted(int64_t v, int shift) { return (v + ((int64_t)1 << shift >> 1)) >> shift; }

static inline int32_t ftbnn_shifted_32(int32_t v, int shift) { return (v + ((int32_t)1 << shift >> 1)) >> shift; }

static inline ftbnn_value ftbnn_saturate(int64_t v, uint32_t *saturated) {
  if (v >= INT32_MIN && v <= INT32_MAX) return (int32_t)v;
  *saturated = 1;
  return v < 0 ? INT32_MIN : INT32_MAX;
}

static inline ftbnn_value ftbnn_from_sum(ftbnn_sum sum, int shift, uint32_t *saturated) {
  return ftbnn_saturate(ftbnn_shifted(sum, shift), saturated);
}

/* A sum divided by how many values there were. */
static inline int64_t ftbnn_mean(ftbnn_sum sum, int64_t count) {
  int64_t dividend = 2 * sum + count, divisor = 2 * count;
  int64_t quotient = dividend / divisor;
  return dividend % divisor < 0 ? quotient - 1 : quotient;
}

/* A quotient; the end of the range where the divisor is 0. */
static inline int64_t ftbnn_ratio(int64_t x, int64_t y) {
  if (!y) return x > 0 ? INT32_MAX : x < 0 ? INT32_MIN : 0;
  return y < 0 ? ftbnn_mean(-x, -y) : ftbnn_mean(x, y);
}

/* Functions of x / 2^bits, as a whole number of 2^-result. */

/* e^x is 2 to a power, whose fraction goes through a polynomial of 30 fraction bits. */
static inline int64_t ftbnn_exp(int64_t x, int bits, int result) {
  static const int64_t powers[10] = {1073741824, 744261118, 257941248, 59597083, 10327387, 1431680, 165394, 16377, 1419, 109};
  const int64_t product = x * INT64_C(1549082005), whole = product >> (30 + bits);
  const int64_t fraction = (product - whole * ((int64_t)1 << (30 + bits))) >> bits;
  int64_t power = powers[9];
  for (int k = 8; k >= 0; k--) power = powers[k] + ((power * fraction) >> 30);
  int64_t shift = 30 - result - whole;
  if (shift < 0) return power << (shift < -2 ? 2 : -shift);
  return ftbnn_shifted(power, (int)(shift < 60 ? shift : 60));
}

static inline int64_t ftbnn_logistic(int64_t x, int bits, int result) {
  const int64_t one = (int64_t)1 << 30, power = ftbnn_exp(x < 0 ? x : -x, bits, 30);
  const int64_t part = (one << 30) / (one + power);
  return ftbnn_shifted(x < 0 ? one - part : part, 30 - result);
}

static inline int64_t ftbnn_tanh(int64_t x, int bits, int result) {
  const int64_t one = (int64_t)1 << 30, power = ftbnn_exp(x < 0 ? 2 * x : -2 * x, bits, 30);
  const int64_t part = ((one - power) << 30) / (one + power);
  return ftbnn_shifted(x < 0 ? -part : part, 30 - result);
}

/* The whole part of a square root. */
static inline int64_t ftbnn_root(int64_t x) {
  int64_t root = 0;
  for (int64_t bit = (int64_t)1 << 62; bit; bit >>= 2) {
    const int64_t tried = root + bit;
    root >>= 1;
    if (x >= tried) {
      x -= tried;
      root += bit;
    }
  }
  return root;
}

static inline int64_t ftbnn_sqrt(int64_t x, int bits, int result) {
  const int shift = 2 * result - bits;
  if (x < 0) return 0;
  return ftbnn_root(shift >= 0 ? x << shift : x >> -shift);
}

static inline int64_t ftbnn_rsqrt(int64_t x, int bits, int result) {
  const int shift = 30 + bits % 2;
  if (x <= 0) return (int64_t)1 << 31;
  return ((int64_t)1 << ((bits + shift) / 2 + result)) / ftbnn_root(x << shift);
}

static inline int64_t ftbnn_floor(int64_t x, int bits, int result) {
  return (x >> bits) * ((int64_t)1 << result);
}

static inline int64_t ftbnn_ceil(int64_t x, int bits, int result) { return -ftbnn_floor(-x, bits, result); }

/* Halves to the even number. */
static inline int64_t ftbnn_round(int64_t x, int bits, int result) {
  const int64_t whole = x >> bits, one = (int64_t)1 << bits, twice = 2 * (x - whole * one);
  return (whole + (twice > one || (twice == one && (whole & 1)))) * ((int64_t)1 << result);
}

static inline int64_t ftbnn_whole(int64_t x, int bits) { return x < 0 ? -(-x >> bits) : x >> bits; }

/* Signs of `bits` values, at most 32; up to 7 values after them may be read. */
static inline void ftbnn_sign_bits(const int32_t *x, int bits, uint32_t *above, uint32_t *below) {
  *above = *below = 0;
#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
  const __m256i zero = _mm256_setzero_si256();
  for (int i = 0; i < bits; i += 8) {
    /* Their highest bits are the signs of eight numbers. */
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(x + i));
    __m256i positive = _mm256_cmpgt_epi32(v, zero);
    *above |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(positive)) << i;
    *below |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(v)) << i;
  }
  if (bits < 32) {
    *above &= ((uint32_t)1 << bits) - 1;
    *below &= ((uint32_t)1 << bits) - 1;
  }
#else
  for (int i = 0; i < bits; i++) {
    *above |= (uint32_t)(x[i] > 0) << i;
    *below |= (uint32_t)(x[i] < 0) << i;
  }
#endif
}

/* sums[p][o] = sum over i of x[p][i] * weights[i][o], for a chunk of outputs at FTBNN_BLOCK positions and the
 * values i of a window. */
static inline void ftbnn_accumulate(const int32_t *const x[FTBNN_BLOCK], ftbnn_window window,
                                    const int32_t *restrict weights, int features, int chunk,
                                    int64_t sums[FTBNN_BLOCK][FTBNN_CHUNK]) {
  memset(sums, 0, FTBNN_BLOCK * sizeof *sums);
  for (int row = 0; row < window.rows; row++) {
    for (int run = 0; run < window.runs; run++) {
      const size_t at = (size_t)row * window.step + (size_t)run * window.hop;
      for (size_t i = at; i < at + (size_t)window.length; i++, weights += features) {
        for (int p = 0; p < FTBNN_BLOCK; p++) {
          for (int o = 0; o < chunk; o++) sums[p][o] += (int64_t)x[p][i] * weights[o];
        }
      }
    }
  }
}

/* Values as integers from -largest to largest: shifted by `bits` to the left, or to the right with rounding. */
static inline void ftbnn_narrow(const int32_t *restrict x, int count, int bits, int largest, int16_t *restrict y,
                                uint32_t *saturated) {
  int outside = 0;
  for (int i = 0; i < count; i++) {
    const int64_t found = bits < 0 ? ftbnn_shifted(x[i], -bits) : x[i] * ((int64_t)1 << bits);
    const int64_t below = found < largest ? found : largest, kept = below > -largest ? below : -largest;
    outside |= kept != found;
    y[i] = (int16_t)kept;
  }
  if (outside) *saturated = 1;
}

#define FTBNN_LOWEST INT32_MIN /* what a maximum begins with */

/* Products of `inputs` values with a matrix, [inputs][features], of multiples of a number for each feature. */
static inline void ftbnn_multiply(const int32_t *x, int inputs, const int16_t *multiples, int shift, int features,
                                  int32_t *restrict y, uint32_t *saturated) {
  enum { MANY = 64 };
  for (int first = 0; first < features; first += MANY) {
    const int many = features - first < MANY ? features - first : MANY;
    int64_t sums[MANY] = {0};
    for (int i = 0; i < inputs; i++) {
      const int16_t *row = multiples + (size_t)i * (size_t)features + first;
      for (int o = 0; o < many; o++) sums[o] += (int64_t)x[i] * row[o];
    }
    for (int o = 0; o < many; o++) y[first + o] = ftbnn_from_sum(sums[o], shift, saturated);
  }
}

#endif
