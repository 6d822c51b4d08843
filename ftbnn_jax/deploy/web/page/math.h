/* What the program needs of the C library: WebAssembly comes without one. */
#ifndef FTBNN_MATH_H
#define FTBNN_MATH_H

#define HUGE_VAL __builtin_huge_val()
#define HUGE_VALF __builtin_huge_valf()

static inline float fabsf(float x) { return __builtin_fabsf(x); }

#endif
