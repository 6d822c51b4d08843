/* Vectors of 32-bit sums, to which products of pairs of 16-bit numbers are added, or of four bytes of a pixel
 * row and four weights. One lane stands for one output channel. All of them are exact, but where FTBNN_LACKING
 * is defined: inputs lack 128 there, and FTBNN_LACKING times the weights is what sums have too much.
 *
 * Bytes w0 w1 w2 w3 of a word are, as pairs of 16 bits, (w0, w2) and (w1, w3).
 */
#ifndef FTBNN_PAIRS_H
#define FTBNN_PAIRS_H

#include <stdint.h>
#include <string.h>

#ifdef FTBNN_PORTABLE
#define FTBNN_PAIR_KERNELS "portable"

#elif defined(__AVX512F__) && defined(__AVX512BW__)

#include <immintrin.h>
#define FTBNN_PAIR_LANES 16
typedef __m512i ftbnn_pairs;

static inline ftbnn_pairs ftbnn_pairs_zero(void) { return _mm512_setzero_si512(); }
static inline ftbnn_pairs ftbnn_pairs_load(const void *x) { return _mm512_loadu_si512(x); }
static inline void ftbnn_pairs_store(int32_t *out, ftbnn_pairs v) { _mm512_storeu_si512(out, v); }
static inline ftbnn_pairs ftbnn_pairs_sub(ftbnn_pairs a, ftbnn_pairs b) { return _mm512_sub_epi32(a, b); }
static inline ftbnn_pairs ftbnn_pairs_word(uint32_t word) { return _mm512_set1_epi32((int)word); }
static inline ftbnn_pairs ftbnn_pairs_low(ftbnn_pairs v) {
  return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8);
}
static inline ftbnn_pairs ftbnn_pairs_high(ftbnn_pairs v) { return _mm512_srai_epi16(v, 8); }
#ifdef __AVX512VNNI__
#define FTBNN_PAIR_KERNELS "AVX-512 VNNI"
static inline ftbnn_pairs ftbnn_pairs_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return _mm512_dpwssd_epi32(sums, x, w);
}
#define FTBNN_BYTES_AT_ONCE
static inline ftbnn_pairs ftbnn_bytes_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return _mm512_dpbusd_epi32(sums, x, w);
}
#else
#define FTBNN_PAIR_KERNELS "AVX-512"
static inline ftbnn_pairs ftbnn_pairs_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return _mm512_add_epi32(sums, _mm512_madd_epi16(x, w));
}
#endif

#elif defined(__AVX2__)

#include <immintrin.h>
#define FTBNN_PAIR_KERNELS "AVX2"
#define FTBNN_PAIR_LANES 8
typedef __m256i ftbnn_pairs;

static inline ftbnn_pairs ftbnn_pairs_zero(void) { return _mm256_setzero_si256(); }
static inline ftbnn_pairs ftbnn_pairs_load(const void *x) {
  return _mm256_loadu_si256((const __m256i *)x);
}
static inline void ftbnn_pairs_store(int32_t *out, ftbnn_pairs v) {
  _mm256_storeu_si256((__m256i *)(void *)out, v);
}
static inline ftbnn_pairs ftbnn_pairs_sub(ftbnn_pairs a, ftbnn_pairs b) { return _mm256_sub_epi32(a, b); }
static inline ftbnn_pairs ftbnn_pairs_word(uint32_t word) { return _mm256_set1_epi32((int)word); }
static inline ftbnn_pairs ftbnn_pairs_low(ftbnn_pairs v) {
  return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
}
static inline ftbnn_pairs ftbnn_pairs_high(ftbnn_pairs v) { return _mm256_srai_epi16(v, 8); }
static inline ftbnn_pairs ftbnn_pairs_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(x, w));
}

#elif defined(__SSE2__)

#include <emmintrin.h>
#define FTBNN_PAIR_KERNELS "SSE2"
#define FTBNN_PAIR_LANES 4
typedef __m128i ftbnn_pairs;

static inline ftbnn_pairs ftbnn_pairs_zero(void) { return _mm_setzero_si128(); }
static inline ftbnn_pairs ftbnn_pairs_load(const void *x) { return _mm_loadu_si128((const __m128i *)x); }
static inline void ftbnn_pairs_store(int32_t *out, ftbnn_pairs v) {
  _mm_storeu_si128((__m128i *)(void *)out, v);
}
static inline ftbnn_pairs ftbnn_pairs_sub(ftbnn_pairs a, ftbnn_pairs b) { return _mm_sub_epi32(a, b); }
static inline ftbnn_pairs ftbnn_pairs_word(uint32_t word) { return _mm_set1_epi32((int)word); }
static inline ftbnn_pairs ftbnn_pairs_low(ftbnn_pairs v) { return _mm_srai_epi16(_mm_slli_epi16(v, 8), 8); }
static inline ftbnn_pairs ftbnn_pairs_high(ftbnn_pairs v) { return _mm_srai_epi16(v, 8); }
static inline ftbnn_pairs ftbnn_pairs_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return _mm_add_epi32(sums, _mm_madd_epi16(x, w));
}

#elif defined(__wasm_simd128__)

#include <wasm_simd128.h>
#define FTBNN_PAIR_KERNELS "SIMD128"
#define FTBNN_PAIR_LANES 4
typedef v128_t ftbnn_pairs;

static inline ftbnn_pairs ftbnn_pairs_zero(void) { return wasm_i32x4_splat(0); }
static inline ftbnn_pairs ftbnn_pairs_load(const void *x) { return wasm_v128_load(x); }
static inline void ftbnn_pairs_store(int32_t *out, ftbnn_pairs v) { wasm_v128_store(out, v); }
static inline ftbnn_pairs ftbnn_pairs_sub(ftbnn_pairs a, ftbnn_pairs b) { return wasm_i32x4_sub(a, b); }
static inline ftbnn_pairs ftbnn_pairs_word(uint32_t word) {
  __asm__("" : "+r"(word)); /* as for ftbnn_spread */
  return wasm_i32x4_splat((int32_t)word);
}
static inline ftbnn_pairs ftbnn_pairs_low(ftbnn_pairs v) { return wasm_i16x8_shr(wasm_i16x8_shl(v, 8), 8); }
static inline ftbnn_pairs ftbnn_pairs_high(ftbnn_pairs v) { return wasm_i16x8_shr(v, 8); }
static inline ftbnn_pairs ftbnn_pairs_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return wasm_i32x4_add(sums, wasm_i32x4_dot_i16x8(x, w));
}

#elif defined(__ARM_NEON) && !defined(__ARM_BIG_ENDIAN)

#include <arm_neon.h>
#define FTBNN_PAIR_LANES 4
typedef int32x4_t ftbnn_pairs;

static inline ftbnn_pairs ftbnn_pairs_zero(void) { return vdupq_n_s32(0); }
static inline ftbnn_pairs ftbnn_pairs_load(const void *x) {
  return vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)x));
}
static inline void ftbnn_pairs_store(int32_t *out, ftbnn_pairs v) { vst1q_s32(out, v); }
static inline ftbnn_pairs ftbnn_pairs_sub(ftbnn_pairs a, ftbnn_pairs b) { return vsubq_s32(a, b); }
static inline ftbnn_pairs ftbnn_pairs_word(uint32_t word) { return vreinterpretq_s32_u32(vdupq_n_u32(word)); }
static inline ftbnn_pairs ftbnn_pairs_low(ftbnn_pairs v) {
  return vreinterpretq_s32_s16(vshrq_n_s16(vshlq_n_s16(vreinterpretq_s16_s32(v), 8), 8));
}
static inline ftbnn_pairs ftbnn_pairs_high(ftbnn_pairs v) {
  return vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_s32(v), 8));
}
static inline ftbnn_pairs ftbnn_pairs_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  const int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(w);
  const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
  const int32x4_t high = vmull_s16(vget_high_s16(a), vget_high_s16(b));
#ifdef __aarch64__
  return vaddq_s32(sums, vpaddq_s32(low, high));
#else
  return vaddq_s32(sums, vcombine_s32(vpadd_s32(vget_low_s32(low), vget_high_s32(low)),
                                      vpadd_s32(vget_low_s32(high), vget_high_s32(high))));
#endif
}
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define FTBNN_PAIR_KERNELS "NEON, usdot"
#define FTBNN_BYTES_AT_ONCE
static inline ftbnn_pairs ftbnn_bytes_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return vusdotq_s32(sums, vreinterpretq_u8_s32(x), vreinterpretq_s8_s32(w));
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define FTBNN_PAIR_KERNELS "NEON, sdot"
#define FTBNN_BYTES_AT_ONCE
/* Both are signed: a byte less 128 is. */
#define FTBNN_LACKING 0x80808080u
static inline ftbnn_pairs ftbnn_bytes_dot(ftbnn_pairs sums, ftbnn_pairs x, ftbnn_pairs w) {
  return vdotq_s32(sums, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w));
}
#else
#define FTBNN_PAIR_KERNELS "NEON"
#endif

#elif defined(__ARM_FEATURE_DSP) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN)

#include <arm_acle.h>
#define FTBNN_PAIR_KERNELS "smlad"
#define FTBNN_DUAL_PRODUCTS /* two products of 16-bit numbers are one instruction */

#else
#define FTBNN_PAIR_KERNELS "portable"
#endif

#ifdef FTBNN_PAIR_LANES

/* Vectors that sums are taken of side by side: as many as leave registers for the rest. */
#if FTBNN_PAIR_LANES == 16
enum { FTBNN_NARROW = 1, FTBNN_WIDE = 4 };
#elif defined(__aarch64__)
enum { FTBNN_NARROW = 4, FTBNN_WIDE = 4 };
#else
enum { FTBNN_NARROW = 2, FTBNN_WIDE = 2 };
#endif

static inline uint32_t ftbnn_word_of(const void *x) {
  uint32_t word;
  memcpy(&word, x, sizeof word);
  return word;
}

/* Two pairs of inputs, and the weights of outputs that meet them. */
static inline void ftbnn_two_pairs_spread(const int16_t *x, ftbnn_pairs out[2]) {
  out[0] = ftbnn_pairs_word(ftbnn_word_of(x));
  out[1] = ftbnn_pairs_word(ftbnn_word_of(x + 2));
}
static inline void ftbnn_halves(const int8_t *weights, ftbnn_pairs out[2]) {
  const ftbnn_pairs both = ftbnn_pairs_load(weights);
  out[0] = ftbnn_pairs_low(both);
  out[1] = ftbnn_pairs_high(both);
}
/* One pair. */
static inline void ftbnn_pair_spread(const int16_t *x, ftbnn_pairs out[1]) {
  out[0] = ftbnn_pairs_word(ftbnn_word_of(x));
}
static inline void ftbnn_pair_weights(const int16_t *weights, ftbnn_pairs out[1]) {
  out[0] = ftbnn_pairs_load(weights);
}

#ifndef FTBNN_LACKING
#define FTBNN_LACKING 0u
#endif
/* Four bytes, by instructions for them or as two pairs. */
#ifdef FTBNN_BYTES_AT_ONCE
enum { FTBNN_BYTE_TERMS = 1 };
static inline void ftbnn_bytes_spread(const uint8_t *x, ftbnn_pairs out[1]) {
  out[0] = ftbnn_pairs_word(ftbnn_word_of(x) ^ FTBNN_LACKING);
}
static inline void ftbnn_bytes_weights(const int8_t *weights, ftbnn_pairs out[1]) {
  out[0] = ftbnn_pairs_load(weights);
}
#else
enum { FTBNN_BYTE_TERMS = 2 };
#define ftbnn_bytes_dot ftbnn_pairs_dot
#define ftbnn_bytes_weights ftbnn_halves
static inline void ftbnn_bytes_spread(const uint8_t *x, ftbnn_pairs out[2]) {
  const uint32_t word = ftbnn_word_of(x);
  out[0] = ftbnn_pairs_word(word & 0x00ff00ffu);
  out[1] = ftbnn_pairs_word(word >> 8 & 0x00ff00ffu);
}
#endif

#endif

#endif
