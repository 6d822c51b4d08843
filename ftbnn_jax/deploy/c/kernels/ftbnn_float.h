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
#elif defined(__SSE2__) && !defined(FTBNN_PORTABLE)
#include <emmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FTBNN_PORTABLE)
#include <arm_neon.h>
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

/* Has the compiler hold a vector in a register where it would load it again for each use. */
#if defined(__GNUC__) && defined(__AVX2__)
#define FTBNN_HELD(vector) __asm__("" : "+v"(vector))
#else
#define FTBNN_HELD(vector) (void)0
#endif

/* As ftbnn_accumulate for `many` vectors of outputs, with the sums in registers. */
#define FTBNN_ACCUMULATE(name, vector, lanes, many, zero, load, store, spread, add, multiply)                  \
  static inline void name(const float *const x[FTBNN_BLOCK], ftbnn_window window, const float *weights,        \
                          int features, float sums[FTBNN_BLOCK][FTBNN_CHUNK], int first) {                     \
    vector sum[FTBNN_BLOCK][many];                                                                             \
    weights += first;                                                                                          \
    for (int p = 0; p < FTBNN_BLOCK; p++) {                                                                    \
      for (int v = 0; v < many; v++) sum[p][v] = zero;                                                         \
    }                                                                                                          \
    for (int row = 0; row < window.rows; row++) {                                                              \
      for (int run = 0; run < window.runs; run++) {                                                            \
        const size_t at = (size_t)row * window.step + (size_t)run * window.hop;                                \
        for (size_t i = at; i < at + (size_t)window.length; i++, weights += features) {                        \
          vector weight[many];                                                                                 \
          for (int v = 0; v < many; v++) {                                                                     \
            weight[v] = load(weights + v * lanes);                                                             \
            FTBNN_HELD(weight[v]);                                                                             \
          }                                                                                                    \
          for (int p = 0; p < FTBNN_BLOCK; p++) {                                                              \
            const vector value = spread(x[p][i]);                                                              \
            for (int v = 0; v < many; v++) sum[p][v] = add(sum[p][v], multiply(value, weight[v]));             \
          }                                                                                                    \
        }                                                                                                      \
      }                                                                                                        \
    }                                                                                                          \
    for (int p = 0; p < FTBNN_BLOCK; p++) {                                                                    \
      for (int v = 0; v < many; v++) store(sums[p] + first + v * lanes, sum[p][v]);                            \
    }                                                                                                          \
  }

#if defined(__AVX512F__) && !defined(FTBNN_PORTABLE)
FTBNN_ACCUMULATE(ftbnn_accumulate_32, __m512, 16, 2, _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
                 _mm512_set1_ps, _mm512_add_ps, _mm512_mul_ps)
#endif
#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
FTBNN_ACCUMULATE(ftbnn_accumulate_16, __m256, 8, 2, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
                 _mm256_set1_ps, _mm256_add_ps, _mm256_mul_ps)
FTBNN_ACCUMULATE(ftbnn_accumulate_8, __m256, 8, 1, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
                 _mm256_set1_ps, _mm256_add_ps, _mm256_mul_ps)
#define FTBNN_EIGHTS
#elif defined(__SSE2__) && !defined(FTBNN_PORTABLE)
FTBNN_ACCUMULATE(ftbnn_accumulate_8, __m128, 4, 2, _mm_setzero_ps(), _mm_loadu_ps, _mm_storeu_ps, _mm_set1_ps,
                 _mm_add_ps, _mm_mul_ps)
#define FTBNN_EIGHTS
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FTBNN_PORTABLE)
FTBNN_ACCUMULATE(ftbnn_accumulate_8, float32x4_t, 4, 2, vdupq_n_f32(0), vld1q_f32, vst1q_f32, vdupq_n_f32,
                 vaddq_f32, vmulq_f32)
#define FTBNN_EIGHTS
#elif defined(__wasm_simd128__) && !defined(FTBNN_PORTABLE)
static inline v128_t ftbnn_float_spread(float x) {
  __asm__("" : "+r"(x)); /* as for ftbnn_spread */
  return wasm_f32x4_splat(x);
}
FTBNN_ACCUMULATE(ftbnn_accumulate_8, v128_t, 4, 2, wasm_f32x4_splat(0), wasm_v128_load, wasm_v128_store,
                 ftbnn_float_spread, wasm_f32x4_add, wasm_f32x4_mul)
#define FTBNN_EIGHTS
#endif

#if (!defined(__SSE__) && !defined(__ARM_NEON) && !defined(__wasm_simd128__)) || FTBNN_PORTABLE + 0 == 32
#define FTBNN_SCALAR
/* As ftbnn_accumulate for two outputs, with the sums in registers, for processors without vectors. */
static inline void ftbnn_accumulate_2(const float *const x[FTBNN_BLOCK], ftbnn_window window, const float *weights,
                                      int features, float sums[FTBNN_BLOCK][FTBNN_CHUNK], int at) {
  float a0 = 0, a1 = 0, b0 = 0, b1 = 0, c0 = 0, c1 = 0, d0 = 0, d1 = 0;
  weights += at;
  for (int row = 0; row < window.rows; row++) {
    for (int run = 0; run < window.runs; run++) {
      const size_t from = (size_t)row * window.step + (size_t)run * window.hop;
      const float *const first = x[0] + from, *const second = x[1] + from;
      const float *const third = x[2] + from, *const fourth = x[3] + from;
      for (int i = 0; i < window.length; i++, weights += features) {
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
    }
  }
  sums[0][at] = a0, sums[0][at + 1] = a1, sums[1][at] = b0, sums[1][at + 1] = b1;
  sums[2][at] = c0, sums[2][at + 1] = c1, sums[3][at] = d0, sums[3][at + 1] = d1;
}
#endif

/* sums[p][o] = sum over i of x[p][i] * weights[i][o], for a chunk of outputs at FTBNN_BLOCK positions and the
 * values i of a window. */
static inline void ftbnn_accumulate(const float *const x[FTBNN_BLOCK], ftbnn_window window,
                                    const float *restrict weights, int features, int chunk,
                                    float sums[FTBNN_BLOCK][FTBNN_CHUNK]) {
  int done = 0;
#if defined(__AVX512F__) && !defined(FTBNN_PORTABLE)
  for (; done + 32 <= chunk; done += 32) ftbnn_accumulate_32(x, window, weights, features, sums, done);
#endif
#if defined(__AVX2__) && !defined(FTBNN_PORTABLE)
  for (; done + 16 <= chunk; done += 16) ftbnn_accumulate_16(x, window, weights, features, sums, done);
#endif
#ifdef FTBNN_EIGHTS
  for (; done + 8 <= chunk; done += 8) ftbnn_accumulate_8(x, window, weights, features, sums, done);
#endif
#ifdef FTBNN_SCALAR
  for (; done + 2 <= chunk; done += 2) ftbnn_accumulate_2(x, window, weights, features, sums, done);
#endif
  if (done == chunk) return;
  for (int p = 0; p < FTBNN_BLOCK; p++) {
    for (int o = done; o < chunk; o++) sums[p][o] = 0;
  }
  for (int row = 0; row < window.rows; row++) {
    for (int run = 0; run < window.runs; run++) {
      const size_t at = (size_t)row * window.step + (size_t)run * window.hop;
      for (size_t i = at; i < at + (size_t)window.length; i++, weights += features) {
        for (int p = 0; p < FTBNN_BLOCK; p++) {
          for (int o = done; o < chunk; o++) sums[p][o] += (float)(x[p][i] * weights[o]);
        }
      }
    }
  }
}

/* Values as integers from -largest to largest: round(x * 2^bits), halves to the even one. */
static inline void ftbnn_narrow(const float *restrict x, int count, int bits, int largest, int16_t *restrict y,
                                uint32_t *saturated) {
  /* Added and taken away, this leaves whole numbers. */
  const float scale = (float)ftbnn_power_of_2(bits), most = (float)largest, large = 12582912.0f;
  int outside = 0;
  for (int i = 0; i < count; i++) {
    const float scaled = (float)(x[i] * scale), below = scaled < most ? scaled : most;
    const float kept = below > -most ? below : -most;
    outside |= kept != scaled;
    y[i] = (int16_t)((float)(kept + large) - large);
  }
  if (outside) *saturated = 1;
}

#define FTBNN_LOWEST (-HUGE_VALF) /* what a maximum begins with */

/* Products of `inputs` values with a matrix, [inputs][features], of multiples of a number for each feature. */
static inline void ftbnn_multiply(const float *x, int inputs, const int16_t *multiples, const float *scale,
                                  int features, float *restrict y, uint32_t *saturated) {
  (void)saturated;
  for (int o = 0; o < features; o++) y[o] = 0;
  int i = 0;
  /* Four rows at a time, in order, so that the sums are loaded and stored a fourth as often. */
  for (; i + 4 <= inputs; i += 4, multiples += 4 * features) {
    const float a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3];
    for (int o = 0; o < features; o++) {
      const float first = (float)multiples[o] * scale[o], second = (float)multiples[features + o] * scale[o];
      const float third = (float)multiples[2 * features + o] * scale[o];
      const float fourth = (float)multiples[3 * features + o] * scale[o];
      float sum = y[o] + (float)(a * first);
      sum += (float)(b * second);
      sum += (float)(c * third);
      y[o] = sum + (float)(d * fourth);
    }
  }
  for (int left = inputs & 3; left; left--, i++, multiples += features) {
    for (int o = 0; o < features; o++) {
      const float weight = (float)multiples[o] * scale[o];
      y[o] += (float)(x[i] * weight);
    }
  }
}

#endif
