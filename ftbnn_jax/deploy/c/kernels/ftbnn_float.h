/* Single precision between the binary convolutions.
 *
 * Every sum is taken in one fixed order, whatever the vector length, and nothing is contracted into fused
 * multiply-adds, so that all compilers and processors give the same numbers. Products are cast since some
 * processors (s390x) compute in double: of one operation, rounded from there, the result is the same.
 */
#ifndef FTBNN_ARITHMETIC_H
#define FTBNN_ARITHMETIC_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#include "ftbnn_functions.h"
#include "model.h"

#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
#include <immintrin.h>
#elif defined(__wasm_simd128__) && !defined(FTBNN_PORTABLE)
#include <wasm_simd128.h>
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__) && !defined(__STRICT_ANSI__)
/* GCC fuses by itself but with -std=c99 and the like, and some who build (Arduino) take no flags. */
#pragma GCC optimize("fp-contract=off")
#endif
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(_M_FP_FAST) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "float arithmetic must keep its order and its roundings: compile without -ffast-math and its parts"
#endif
#if !defined(FLT_EVAL_METHOD) || (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 1)
#error "float arithmetic must be done in float or double: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

typedef float ftbnn_weight; /* of a real convolution; a pixel in the network's scale */
typedef float ftbnn_sum;    /* of values */

static inline ftbnn_value ftbnn_from_sum(ftbnn_sum sum, int shift, uint32_t *saturated) {
  (void)shift, (void)saturated;
  return sum;
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

/* As ftbnn_accumulate for the LANES * 2 outputs of a vector type, with the sums in registers. */
#define FTBNN_ACCUMULATE(name, vector, lanes, load, store, spread, add, multiply)                          \
  static inline void name(const float *const x[FTBNN_BLOCK], int inputs, const float *weights, int features, \
                          float *const sums[FTBNN_BLOCK]) {                                                 \
    vector low[FTBNN_BLOCK], high[FTBNN_BLOCK];                                                             \
    for (int p = 0; p < FTBNN_BLOCK; p++) {                                                                 \
      low[p] = load(sums[p]);                                                                               \
      high[p] = load(sums[p] + lanes);                                                                      \
    }                                                                                                       \
    for (int i = 0; i < inputs; i++, weights += features) {                                                 \
      vector first = load(weights), second = load(weights + lanes);                                         \
      for (int p = 0; p < FTBNN_BLOCK; p++) {                                                               \
        vector value = spread(x[p][i]);                                                                     \
        low[p] = add(low[p], multiply(value, first));                                                       \
        high[p] = add(high[p], multiply(value, second));                                                    \
      }                                                                                                     \
    }                                                                                                       \
    for (int p = 0; p < FTBNN_BLOCK; p++) {                                                                 \
      store(sums[p], low[p]);                                                                               \
      store(sums[p] + lanes, high[p]);                                                                      \
    }                                                                                                       \
  }

#if defined(__AVX512F__) && !defined(FTBNN_PORTABLE)
FTBNN_ACCUMULATE(ftbnn_accumulate_32, __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
                 _mm512_add_ps, _mm512_mul_ps)
#endif
#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
FTBNN_ACCUMULATE(ftbnn_accumulate_16, __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
                 _mm256_add_ps, _mm256_mul_ps)
#endif
#if defined(__wasm_simd128__) && !defined(FTBNN_PORTABLE)
FTBNN_ACCUMULATE(ftbnn_accumulate_8, v128_t, 4, wasm_v128_load, wasm_v128_store, wasm_f32x4_splat,
                 wasm_f32x4_add, wasm_f32x4_mul)
#endif

#if (!defined(__SSE__) && !defined(__ARM_NEON) && !defined(__wasm_simd128__)) || FTBNN_PORTABLE + 0 == 32
#define FTBNN_SCALAR
/* As ftbnn_accumulate for two outputs, with the sums in registers, for processors without vectors. */
static inline void ftbnn_accumulate_2(const float *const x[FTBNN_BLOCK], int inputs, const float *weights,
                                      int features, float *const sums[FTBNN_BLOCK]) {
  const float *const first = x[0], *const second = x[1], *const third = x[2], *const fourth = x[3];
  float a0 = sums[0][0], a1 = sums[0][1], b0 = sums[1][0], b1 = sums[1][1];
  float c0 = sums[2][0], c1 = sums[2][1], d0 = sums[3][0], d1 = sums[3][1];
  for (int i = 0; i < inputs; i++, weights += features) {
    const float w0 = weights[0], w1 = weights[1], a = first[i], b = second[i], c = third[i], d = fourth[i];
    a0 += (float)(a * w0);
    a1 += (float)(a * w1);
    b0 += (float)(b * w0);
    b1 += (float)(b * w1);
    c0 += (float)(c * w0);
    c1 += (float)(c * w1);
    d0 += (float)(d * w0);
    d1 += (float)(d * w1);
  }
  sums[0][0] = a0, sums[0][1] = a1, sums[1][0] = b0, sums[1][1] = b1;
  sums[2][0] = c0, sums[2][1] = c1, sums[3][0] = d0, sums[3][1] = d1;
}
#endif

/* sums[p][o] += sum over i of x[p][i] * weights[i][o], for a chunk of outputs at FTBNN_BLOCK positions. */
static inline void ftbnn_accumulate(const float *const x[FTBNN_BLOCK], int inputs,
                                    const float *restrict weights, int features, int chunk,
                                    float sums[FTBNN_BLOCK][FTBNN_CHUNK]) {
  int done = 0;
#if defined(__AVX512F__) && !defined(FTBNN_PORTABLE)
  for (; done + 32 <= chunk; done += 32) {
    float *const at[FTBNN_BLOCK] = {sums[0] + done, sums[1] + done, sums[2] + done, sums[3] + done};
    ftbnn_accumulate_32(x, inputs, weights + done, features, at);
  }
#endif
#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
  for (; done + 16 <= chunk; done += 16) {
    float *const at[FTBNN_BLOCK] = {sums[0] + done, sums[1] + done, sums[2] + done, sums[3] + done};
    ftbnn_accumulate_16(x, inputs, weights + done, features, at);
  }
#endif
#if defined(__wasm_simd128__) && !defined(FTBNN_PORTABLE)
  for (; done + 8 <= chunk; done += 8) {
    float *const at[FTBNN_BLOCK] = {sums[0] + done, sums[1] + done, sums[2] + done, sums[3] + done};
    ftbnn_accumulate_8(x, inputs, weights + done, features, at);
  }
#endif
#ifdef FTBNN_SCALAR
  for (; done + 2 <= chunk; done += 2) {
    float *const at[FTBNN_BLOCK] = {sums[0] + done, sums[1] + done, sums[2] + done, sums[3] + done};
    ftbnn_accumulate_2(x, inputs, weights + done, features, at);
  }
#endif
  for (int i = 0; i < inputs && done < chunk; i++, weights += features) {
    for (int p = 0; p < FTBNN_BLOCK; p++) {
      for (int o = done; o < chunk; o++) sums[p][o] += (float)(x[p][i] * weights[o]);
    }
  }
}

#define FTBNN_LOWEST (-HUGE_VALF) /* what a maximum begins with */

/* Products of `inputs` values with a matrix, [inputs][features], of multiples of a number for each feature. */
static inline void ftbnn_multiply(const float *x, int inputs, const int16_t *multiples, const float *scale,
                                  int features, float *restrict y, uint32_t *saturated) {
  enum { MANY = 64 };
  (void)saturated;
  for (int first = 0; first < features; first += MANY) {
    const int many = features - first < MANY ? features - first : MANY;
    float sums[MANY] = {0};
    for (int i = 0; i < inputs; i++) {
      const int16_t *row = multiples + (size_t)i * (size_t)features + first;
      for (int o = 0; o < many; o++) {
        const float weight = (float)row[o] * scale[first + o];
        sums[o] += (float)(x[i] * weight);
      }
    }
    for (int o = 0; o < many; o++) y[first + o] = sums[o];
  }
}

#endif
