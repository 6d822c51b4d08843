/* Single precision between the binary convolutions.
 *
 * Every sum is taken in one fixed order, whatever the vector length, and nothing is contracted into fused
 * multiply-adds, so that all compilers and processors give the same numbers.
 */
#ifndef FTBNN_ARITHMETIC_H
#define FTBNN_ARITHMETIC_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
#include <immintrin.h>
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#if !defined(FLT_EVAL_METHOD) || FLT_EVAL_METHOD != 0
#error "float arithmetic must be done in float: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

typedef float ftbnn_value;     /* what flows between the layers */
typedef float ftbnn_parameter; /* of a batch norm or an activation */
typedef float ftbnn_weight;    /* of a real convolution; a pixel in the network's scale */
typedef float ftbnn_sum;       /* of values */
typedef float ftbnn_pixel_sum; /* of the stem's products */

typedef struct {
  const float *multiplier, *offset;
} ftbnn_norm;

typedef struct {
  int kind;
  const float *negative, *positive;
} ftbnn_activation;


static inline ftbnn_value ftbnn_from_sum(ftbnn_sum sum, int shift, uint32_t *saturated) {
  (void)shift, (void)saturated;
  return sum;
}

static inline ftbnn_value ftbnn_mean(ftbnn_sum sum, int count) { return sum / (float)count; }

static inline void ftbnn_add_values(int n, float *restrict y, const float *restrict x, uint32_t *saturated) {
  (void)saturated;
  for (int i = 0; i < n; i++) y[i] += x[i];
}

static inline void ftbnn_normalize(const ftbnn_norm *norm, int n, float *restrict y, uint32_t *saturated) {
  const float *restrict multiplier = norm->multiplier, *restrict offset = norm->offset;
  (void)saturated;
  for (int i = 0; i < n; i++) y[i] = y[i] * multiplier[i] + offset[i];
}

static inline void ftbnn_prelu(const ftbnn_activation *activation, int n, float *restrict y,
                               uint32_t *saturated) {
  const float *restrict negative = activation->negative;
  (void)saturated;
  for (int i = 0; i < n; i++) {
    float scaled = y[i] * negative[i];
    y[i] = y[i] > 0 ? y[i] : scaled;
  }
}

static inline void ftbnn_fprelu(const ftbnn_activation *activation, int n, float *restrict y,
                                uint32_t *saturated) {
  const float *restrict negative = activation->negative, *restrict positive = activation->positive;
  (void)saturated;
  for (int i = 0; i < n; i++) {
    float up = y[i] * positive[i], down = y[i] * negative[i];
    y[i] = y[i] > 0 ? up : down;
  }
}

/* Signs of `bits` values, at most 32; up to 7 values after them may be read. A number below the smallest
 * normal one counts as 0, since some processors take it for 0. */
static inline void ftbnn_sign_bits(const float *x, int bits, uint32_t *above, uint32_t *below) {
  *above = *below = 0;
#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
  const __m256 least = _mm256_set1_ps(FLT_MIN), most = _mm256_set1_ps(-FLT_MIN);
  for (int i = 0; i < bits; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    *above |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(v, least, _CMP_GE_OQ)) << i;
    *below |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(v, most, _CMP_LE_OQ)) << i;
  }
  if (bits < 32) {
    *above &= ((uint32_t)1 << bits) - 1;
    *below &= ((uint32_t)1 << bits) - 1;
  }
#else
  for (int i = 0; i < bits; i++) {
    *above |= (uint32_t)(x[i] >= FLT_MIN) << i;
    *below |= (uint32_t)(x[i] <= -FLT_MIN) << i;
  }
#endif
}

/* sums[p][o] += sum over i of x[p][i] * weights[i][o], for a chunk of outputs at FTBNN_BLOCK positions. */
static inline void ftbnn_accumulate(const float *const x[FTBNN_BLOCK], int inputs,
                                    const float *restrict weights, int features, int chunk,
                                    float sums[FTBNN_BLOCK][FTBNN_CHUNK]) {
#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
  if (chunk == FTBNN_CHUNK) {
    __m256 low[FTBNN_BLOCK], high[FTBNN_BLOCK];
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      low[p] = _mm256_loadu_ps(sums[p]);
      high[p] = _mm256_loadu_ps(sums[p] + 8);
    }
    for (int i = 0; i < inputs; i++, weights += features) {
      __m256 first = _mm256_loadu_ps(weights), second = _mm256_loadu_ps(weights + 8);
      for (int p = 0; p < FTBNN_BLOCK; p++) {
        __m256 value = _mm256_set1_ps(x[p][i]);
        low[p] = _mm256_add_ps(low[p], _mm256_mul_ps(value, first));
        high[p] = _mm256_add_ps(high[p], _mm256_mul_ps(value, second));
      }
    }
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      _mm256_storeu_ps(sums[p], low[p]);
      _mm256_storeu_ps(sums[p] + 8, high[p]);
    }
    return;
  }
#endif
  for (int i = 0; i < inputs; i++, weights += features) {
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      for (int o = 0; o < chunk; o++) sums[p][o] += x[p][i] * weights[o];
    }
  }
}

#define ftbnn_accumulate_pixels ftbnn_accumulate

#endif
