/* Vectors of 32-bit words, and how many bits are set in each word.
 *
 * One lane stands for one output channel. Bits are counted in two steps: `ftbnn_count` gives partial
 * counts, of which FTBNN_RUN may be added with `ftbnn_add_partial`; `ftbnn_total` turns such a sum into
 * one 32-bit count a lane. FTBNN_SIDE positions are counted side by side, which divides FTBNN_BLOCK; with
 * FTBNN_CARRY_SAVE counting takes longer than five additions bit by bit. Compiled for a processor with AVX-512 VPOPCNTDQ, AVX2 or NEON, or for WebAssembly
 * with SIMD128, these are its instructions; otherwise, or with FTBNN_PORTABLE defined, plain C on 64-bit or
 * (FTBNN_PORTABLE=32) 32-bit numbers. All give the same integers.
 */
#ifndef FTBNN_VECTOR_H
#define FTBNN_VECTOR_H

#include <stdint.h>
#include <string.h>

#if !defined(FTBNN_PORTABLE) && defined(__AVX512F__) && defined(__AVX512VPOPCNTDQ__)

#include <immintrin.h>
#define FTBNN_KERNELS "AVX-512 VPOPCNTDQ"
enum { FTBNN_LANES = 16, FTBNN_RUN = 1 << 20, FTBNN_SIDE = 4 };
typedef __m512i ftbnn_vector;

static inline ftbnn_vector ftbnn_zero(void) { return _mm512_setzero_si512(); }
static inline ftbnn_vector ftbnn_spread(uint32_t word) { return _mm512_set1_epi32((int)word); }
static inline ftbnn_vector ftbnn_load(const uint32_t *words) { return _mm512_loadu_si512(words); }
static inline void ftbnn_store(int32_t *out, ftbnn_vector v) { _mm512_storeu_si512(out, v); }
static inline ftbnn_vector ftbnn_xor(ftbnn_vector a, ftbnn_vector b) { return _mm512_xor_si512(a, b); }
static inline ftbnn_vector ftbnn_and(ftbnn_vector a, ftbnn_vector b) { return _mm512_and_si512(a, b); }
static inline ftbnn_vector ftbnn_or(ftbnn_vector a, ftbnn_vector b) { return _mm512_or_si512(a, b); }
static inline ftbnn_vector ftbnn_add(ftbnn_vector a, ftbnn_vector b) { return _mm512_add_epi32(a, b); }
static inline ftbnn_vector ftbnn_count(ftbnn_vector v) { return _mm512_popcnt_epi32(v); }
static inline ftbnn_vector ftbnn_add_partial(ftbnn_vector a, ftbnn_vector b) {
  return _mm512_add_epi32(a, b);
}
static inline ftbnn_vector ftbnn_total(ftbnn_vector v) { return v; }

#elif !defined(FTBNN_PORTABLE) && defined(__AVX2__)

#include <immintrin.h>
#define FTBNN_KERNELS "AVX2"
/* Partial counts are bytes of at most 8: 31 of them fit. */
#define FTBNN_CARRY_SAVE
enum { FTBNN_LANES = 8, FTBNN_RUN = 31, FTBNN_SIDE = 2 };
typedef __m256i ftbnn_vector;

static inline ftbnn_vector ftbnn_zero(void) { return _mm256_setzero_si256(); }
static inline ftbnn_vector ftbnn_spread(uint32_t word) { return _mm256_set1_epi32((int)word); }
static inline ftbnn_vector ftbnn_load(const uint32_t *words) {
  return _mm256_loadu_si256((const __m256i *)(const void *)words);
}
static inline void ftbnn_store(int32_t *out, ftbnn_vector v) {
  _mm256_storeu_si256((__m256i *)(void *)out, v);
}
static inline ftbnn_vector ftbnn_xor(ftbnn_vector a, ftbnn_vector b) { return _mm256_xor_si256(a, b); }
static inline ftbnn_vector ftbnn_and(ftbnn_vector a, ftbnn_vector b) { return _mm256_and_si256(a, b); }
static inline ftbnn_vector ftbnn_or(ftbnn_vector a, ftbnn_vector b) { return _mm256_or_si256(a, b); }
static inline ftbnn_vector ftbnn_add(ftbnn_vector a, ftbnn_vector b) { return _mm256_add_epi32(a, b); }
static inline ftbnn_vector ftbnn_count(ftbnn_vector v) {
  const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(v, nibble));
  __m256i high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
  return _mm256_add_epi8(low, high);
}
static inline ftbnn_vector ftbnn_add_partial(ftbnn_vector a, ftbnn_vector b) {
  return _mm256_add_epi8(a, b);
}
static inline ftbnn_vector ftbnn_total(ftbnn_vector v) {
  __m256i pairs = _mm256_maddubs_epi16(v, _mm256_set1_epi8(1));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#elif !defined(FTBNN_PORTABLE) && defined(__ARM_NEON)

#include <arm_neon.h>
#define FTBNN_KERNELS "NEON"
enum { FTBNN_LANES = 4, FTBNN_RUN = 31, FTBNN_SIDE = 4 };
typedef uint32x4_t ftbnn_vector;

static inline ftbnn_vector ftbnn_zero(void) { return vdupq_n_u32(0); }
static inline ftbnn_vector ftbnn_spread(uint32_t word) { return vdupq_n_u32(word); }
static inline ftbnn_vector ftbnn_load(const uint32_t *words) { return vld1q_u32(words); }
static inline void ftbnn_store(int32_t *out, ftbnn_vector v) { vst1q_s32(out, vreinterpretq_s32_u32(v)); }
static inline ftbnn_vector ftbnn_xor(ftbnn_vector a, ftbnn_vector b) { return veorq_u32(a, b); }
static inline ftbnn_vector ftbnn_and(ftbnn_vector a, ftbnn_vector b) { return vandq_u32(a, b); }
static inline ftbnn_vector ftbnn_or(ftbnn_vector a, ftbnn_vector b) { return vorrq_u32(a, b); }
static inline ftbnn_vector ftbnn_add(ftbnn_vector a, ftbnn_vector b) { return vaddq_u32(a, b); }
static inline ftbnn_vector ftbnn_count(ftbnn_vector v) {
  return vreinterpretq_u32_u8(vcntq_u8(vreinterpretq_u8_u32(v)));
}
static inline ftbnn_vector ftbnn_add_partial(ftbnn_vector a, ftbnn_vector b) {
  return vreinterpretq_u32_u8(vaddq_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b)));
}
static inline ftbnn_vector ftbnn_total(ftbnn_vector v) {
  return vpaddlq_u16(vpaddlq_u8(vreinterpretq_u8_u32(v)));
}

#elif !defined(FTBNN_PORTABLE) && defined(__wasm_simd128__)

#include <wasm_simd128.h>
#define FTBNN_KERNELS "WebAssembly SIMD128"
enum { FTBNN_LANES = 4, FTBNN_RUN = 31, FTBNN_SIDE = 4 };
typedef v128_t ftbnn_vector;

static inline ftbnn_vector ftbnn_zero(void) { return wasm_i32x4_splat(0); }
static inline ftbnn_vector ftbnn_spread(uint32_t word) {
  /* Clang 14 would read it into all lanes at once, and move that behind later stores to its place. */
  __asm__("" : "+r"(word));
  return wasm_i32x4_splat((int)word);
}
static inline ftbnn_vector ftbnn_load(const uint32_t *words) { return wasm_v128_load(words); }
static inline void ftbnn_store(int32_t *out, ftbnn_vector v) { wasm_v128_store(out, v); }
static inline ftbnn_vector ftbnn_xor(ftbnn_vector a, ftbnn_vector b) { return wasm_v128_xor(a, b); }
static inline ftbnn_vector ftbnn_and(ftbnn_vector a, ftbnn_vector b) { return wasm_v128_and(a, b); }
static inline ftbnn_vector ftbnn_or(ftbnn_vector a, ftbnn_vector b) { return wasm_v128_or(a, b); }
static inline ftbnn_vector ftbnn_add(ftbnn_vector a, ftbnn_vector b) { return wasm_i32x4_add(a, b); }
static inline ftbnn_vector ftbnn_count(ftbnn_vector v) { return wasm_i8x16_popcnt(v); }
static inline ftbnn_vector ftbnn_add_partial(ftbnn_vector a, ftbnn_vector b) { return wasm_i8x16_add(a, b); }
static inline ftbnn_vector ftbnn_total(ftbnn_vector v) {
  return wasm_u32x4_extadd_pairwise_u16x8(wasm_u16x8_extadd_pairwise_u8x16(v));
}

#else

#if FTBNN_PORTABLE + 0 == 32 || (FTBNN_PORTABLE + 0 != 64 && UINTPTR_MAX <= 0xffffffffu)
#define FTBNN_KERNELS "portable, 32 bits"
#define FTBNN_WORDS /* ftbnn_words.h counts better */
typedef uint32_t ftbnn_vector;
#else
#define FTBNN_KERNELS "portable, 64 bits"
typedef uint64_t ftbnn_vector;
#endif
#define FTBNN_CARRY_SAVE
enum { FTBNN_LANES = sizeof(ftbnn_vector) / 4, FTBNN_RUN = 31, FTBNN_SIDE = 1 };

/* The word `v` in every lane. */
#define FTBNN_EACH(v) (((ftbnn_vector)-1 / 0xffffffffu) * (v))

static inline ftbnn_vector ftbnn_zero(void) { return 0; }
static inline ftbnn_vector ftbnn_spread(uint32_t word) { return FTBNN_EACH(word); }
static inline ftbnn_vector ftbnn_load(const uint32_t *words) {
  ftbnn_vector v;
  memcpy(&v, words, sizeof v);
  return v;
}
static inline void ftbnn_store(int32_t *out, ftbnn_vector v) { memcpy(out, &v, sizeof v); }
static inline ftbnn_vector ftbnn_xor(ftbnn_vector a, ftbnn_vector b) { return a ^ b; }
static inline ftbnn_vector ftbnn_and(ftbnn_vector a, ftbnn_vector b) { return a & b; }
static inline ftbnn_vector ftbnn_or(ftbnn_vector a, ftbnn_vector b) { return a | b; }
/* No lane overflows into the next: counts stay far below 2^31. */
static inline ftbnn_vector ftbnn_add(ftbnn_vector a, ftbnn_vector b) { return a + b; }
static inline ftbnn_vector ftbnn_count(ftbnn_vector v) {
  v -= v >> 1 & FTBNN_EACH(0x55555555u);
  v = (v & FTBNN_EACH(0x33333333u)) + (v >> 2 & FTBNN_EACH(0x33333333u));
  return (v + (v >> 4)) & FTBNN_EACH(0x0f0f0f0fu);
}
static inline ftbnn_vector ftbnn_add_partial(ftbnn_vector a, ftbnn_vector b) { return a + b; }
static inline ftbnn_vector ftbnn_total(ftbnn_vector v) {
  v = (v & FTBNN_EACH(0x00ff00ffu)) + (v >> 8 & FTBNN_EACH(0x00ff00ffu));
  return (v & FTBNN_EACH(0x0000ffffu)) + (v >> 16 & FTBNN_EACH(0x0000ffffu));
}

#endif

/* Number of bits set in one word. */
static inline int ftbnn_bits_set(uint32_t word) {
#if defined(__POPCNT__) || defined(__wasm__)
  return __builtin_popcount(word);
#else
  word -= word >> 1 & 0x55555555u;
  word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
  word = (word + (word >> 4)) & 0x0f0f0f0fu;
  return (int)(word * 0x01010101u >> 24);
#endif
}

#endif
