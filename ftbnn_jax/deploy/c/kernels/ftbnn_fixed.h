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

typedef struct {
  const int32_t *multiplier, *offset;
  int shift;
} ftbnn_norm;

typedef struct {
  int kind;
  const int32_t *negative, *positive;
  int shift;
} ftbnn_activation;


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

static inline ftbnn_value ftbnn_mean(ftbnn_sum sum, int count) {
  int64_t dividend = 2 * sum + count, divisor = 2 * (int64_t)count;
  int64_t quotient = dividend / divisor;
  return (int32_t)(dividend % divisor < 0 ? quotient - 1 : quotient);
}

static inline void ftbnn_add_values(int n, int32_t *restrict y, const int32_t *restrict x,
                                    uint32_t *saturated) {
  for (int i = 0; i < n; i++) y[i] = ftbnn_saturate((int64_t)y[i] + x[i], saturated);
}

static inline void ftbnn_normalize(const ftbnn_norm *norm, int n, int32_t *restrict y, uint32_t *saturated) {
  for (int i = 0; i < n; i++) {
    int64_t scaled = ftbnn_shifted((int64_t)y[i] * norm->multiplier[i], norm->shift);
    y[i] = ftbnn_saturate(scaled + norm->offset[i], saturated);
  }
}

static inline void ftbnn_prelu(const ftbnn_activation *activation, int n, int32_t *restrict y,
                               uint32_t *saturated) {
  for (int i = 0; i < n; i++) {
    int64_t scaled = ftbnn_shifted((int64_t)y[i] * activation->negative[i], activation->shift);
    y[i] = y[i] > 0 ? y[i] : ftbnn_saturate(scaled, saturated);
  }
}

static inline void ftbnn_fprelu(const ftbnn_activation *activation, int n, int32_t *restrict y,
                                uint32_t *saturated) {
  for (int i = 0; i < n; i++) {
    int64_t slope = y[i] > 0 ? activation->positive[i] : activation->negative[i];
    y[i] = ftbnn_saturate(ftbnn_shifted(y[i] * slope, activation->shift), saturated);
  }
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

#endif
