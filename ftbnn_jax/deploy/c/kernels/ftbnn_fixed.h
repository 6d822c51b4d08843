/* Integers between the binary convolutions: a real number is an int32_t, multiplied by
 * 2^FTBNN_FRACTION_BITS (of model.h). A parameter is an integer and, for all channels of a layer, a shift
 * to the right that follows the multiplication. Shifts and divisions round to the nearest, halves up. What
 * leaves the range becomes its end, and is reported.
 */
#ifndef FTBNN_ARITHMETIC_H
#define FTBNN_ARITHMETIC_H

#include <stdint.h>
#include <string.h>

#include "model.h"

typedef int32_t ftbnn_weight; /* of a real convolution; a pixel in the network's scale */
typedef int64_t ftbnn_sum;    /* of products; the weights are such that it suffices */

static inline int64_t ftbnn_shifted(int64_t v, int shift) {
  v += (int64_t)1 << shift >> 1;
  return v >= 0 ? v >> shift : ~(~v >> shift);
}

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

/* Signs of `bits` values, at most 32. */
static inline void ftbnn_sign_bits(const int32_t *x, int bits, uint32_t *above, uint32_t *below) {
  *above = *below = 0;
  for (int i = 0; i < bits; i++) {
    *above |= (uint32_t)(x[i] > 0) << i;
    *below |= (uint32_t)(x[i] < 0) << i;
  }
}

/* sums[p][o] += sum over i of x[p][i] * weights[i][o], for a chunk of outputs at FTBNN_BLOCK positions. */
static inline void ftbnn_accumulate(const int32_t *const x[FTBNN_BLOCK], int inputs,
                                    const int32_t *restrict weights, int features, int chunk,
                                    int64_t sums[FTBNN_BLOCK][FTBNN_CHUNK]) {
  for (int i = 0; i < inputs; i++, weights += features) {
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      for (int o = 0; o < chunk; o++) sums[p][o] += (int64_t)x[p][i] * weights[o];
    }
  }
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
