/* Functions of real numbers, from additions, multiplications and divisions alone: a mathematical library
 * rounds as it likes, these give the same numbers everywhere. They compute in double and round once. */
#ifndef FTBNN_FUNCTIONS_H
#define FTBNN_FUNCTIONS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float ftbnn_abs(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7fffffffu;
  memcpy(&x, &bits, sizeof bits);
  return x;
}

static inline double ftbnn_power_of_2(int exponent) {
  uint64_t bits = (uint64_t)(exponent + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

/* exp(x) - 1 for |x| below 0.35. */
static inline double ftbnn_small_expm1(double x) {
  double sum = 0;
  for (int n = 16; n > 0; n--) sum = (sum + 1.0) * (x / (double)n);
  return sum;
}

/* exp(x) where x is cut to [-150, 150]: beyond it a float is 0 or infinite anyhow. */
static inline double ftbnn_exp_of(double x) {
  x = x > 150.0 ? 150.0 : x < -150.0 ? -150.0 : x;
  int n = (int)(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
  double rest = (x - (double)n * 0.693147180369123816490) - (double)n * 1.90821492927058770002e-10;
  return (ftbnn_small_expm1(rest) + 1.0) * ftbnn_power_of_2(n);
}

static inline double ftbnn_expm1_of(double x) {
  return x > -0.35 && x < 0.35 ? ftbnn_small_expm1(x) : ftbnn_exp_of(x) - 1.0;
}

/* log(1 + y) for 1 + y from 0.7 to 1.5. */
static inline double ftbnn_small_log1p(double y) {
  double t = y / (2.0 + y), square = t * t, sum = 0;
  for (int n = 27; n > 0; n -= 2) sum = sum * square + 1.0 / (double)n;
  return 2.0 * t * sum;
}

/* log(x) of a positive normal number. */
static inline double ftbnn_log_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int exponent = (int)(bits >> 52) - 1023;
  double fraction = x * ftbnn_power_of_2(-exponent);
  if (fraction > 1.4142135623730951) {
    fraction = fraction * 0.5;
    exponent++;
  }
  return (double)exponent * 0.6931471805599453 + ftbnn_small_log1p(fraction - 1.0);
}

static inline float ftbnn_exp(float x) { return x != x ? x : (float)ftbnn_exp_of((double)x); }

static inline float ftbnn_expm1(float x) { return x != x ? x : (float)ftbnn_expm1_of((double)x); }

static inline float ftbnn_log(float x) {
  if (x != x || x > FLT_MAX) return x;
  if (x <= 0.0f) return x < 0.0f ? (float)(HUGE_VAL - HUGE_VAL) : -HUGE_VALF;
  return (float)ftbnn_log_of((double)x);
}

static inline float ftbnn_log1p(float x) {
  if (x > -0.3f && x < 0.5f) return (float)ftbnn_small_log1p((double)x);
  if (x != x || x > FLT_MAX) return x;
  if (x <= -1.0f) return x < -1.0f ? (float)(HUGE_VAL - HUGE_VAL) : -HUGE_VALF;
  return (float)ftbnn_log_of(1.0 + (double)x);
}

static inline float ftbnn_logistic(float x) {
  return x != x ? x : (float)(1.0 / (1.0 + ftbnn_exp_of(-(double)x)));
}

static inline float ftbnn_tanh(float x) {
  if (x != x) return x;
  double twice = ftbnn_expm1_of(2.0 * (double)x);
  return (float)(twice / (twice + 2.0));
}

/* The square root of a number that is not negative, by Newton's method. */
static inline double ftbnn_sqrt_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits >> 1) + ((uint64_t)1023 << 51);
  double root;
  memcpy(&root, &bits, sizeof root);
  for (int i = 0; i < 5; i++) root = 0.5 * (root + x / root);
  return root;
}

static inline float ftbnn_sqrt(float x) {
  if (x != x || x > FLT_MAX || x == 0.0f) return x;
  return x < 0.0f ? (float)(HUGE_VAL - HUGE_VAL) : (float)ftbnn_sqrt_of((double)x);
}

static inline float ftbnn_rsqrt(float x) {
  if (x != x || x < 0.0f) return (float)(HUGE_VAL - HUGE_VAL);
  if (x == 0.0f) return 1.0f / x;
  return x > FLT_MAX ? 0.0f : (float)(1.0 / ftbnn_sqrt_of((double)x));
}

/* A whole number near x, halves to the even one; larger numbers are whole. */
static inline float ftbnn_floor(float x) {
  if (!(x > -8388608.0f && x < 8388608.0f)) return x;
  float whole = (float)(int32_t)x;
  return whole > x ? whole - 1.0f : whole;
}

static inline float ftbnn_ceil(float x) { return -ftbnn_floor(-x); }

static inline float ftbnn_round(float x) {
  if (!(x > -8388608.0f && x < 8388608.0f)) return x;
  int32_t whole = (int32_t)ftbnn_floor(x);
  float rest = x - (float)whole;
  return (float)(whole + (rest > 0.5f || (rest == 0.5f && (whole & 1))));
}

/* Rounds to a number of 16 bits with `fraction` of them behind the point, halves to the even one; `least`: the
 * exponent below which numbers are subnormal. */
static inline float ftbnn_to_16_bits(float x, int fraction, int least, float largest) {
  if (x != x || x == 0.0f) return x;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  int exponent = (int)(bits >> 23 & 255) - 127;
  if (exponent < least) exponent = least;
  /* Added and taken away, this leaves multiples of the last place. */
  double large = ftbnn_power_of_2(exponent - fraction + 52) * 1.5;
  float rounded = (float)(((double)x + large) - large);
  return rounded > largest ? HUGE_VALF : rounded < -largest ? -HUGE_VALF : rounded;
}

static inline float ftbnn_float16(float x) { return ftbnn_to_16_bits(x, 10, -14, 65504.0f); }

static inline float ftbnn_bfloat16(float x) { return ftbnn_to_16_bits(x, 7, -126, 3.38953139e38f); }

#endif
