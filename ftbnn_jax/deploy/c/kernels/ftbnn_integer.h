/* Real convolutions, and products of rows with a matrix, in integers: of pixels, or of values that become
 * 16-bit integers, with weights of 8 or 16 bits. Every sum is exact and fits into an int32_t, for whatever
 * enters: weights are such that none can be larger. What a unit of the sums is, for each output channel,
 * is in model.c.
 *
 * Padding is a pixel, or value, 0. Where a pixel of 0 stands for another number than 0, `bias` makes up for
 * that: it has a row of numbers for every set of taps that can lie inside the image.
 *
 * Compiled for a processor with AVX-512, VNNI, AVX2, SSE2, NEON, its dot products, or SIMD in WebAssembly,
 * sums are taken by its instructions; otherwise, or with FTBNN_PORTABLE defined, in plain C.
 */
#ifndef FTBNN_INTEGER_H
#define FTBNN_INTEGER_H

#include "ftbnn_layers.h"
#include "ftbnn_pairs.h"

/* Outputs whose weights lie side by side, where a group has as many; neighbouring inputs of one output: their
 * weights too. Values of 16 bits are in an order in which every second one forms a pair. */
enum { FTBNN_OUTPUTS = 16, FTBNN_BYTES = 4, FTBNN_PAIR = 2 };

typedef struct {
  int height, width, channels;
  int out_width;
  int kernel_height, kernel_width;
  int stride_y, stride_x, dilation_y, dilation_x;
  int top, left;      /* positions of padding above and to the left of the input */
  int row_width;      /* positions in a row with its padding */
  int features, groups;
  int outputs;        /* whose weights lie side by side: FTBNN_OUTPUTS, or all of a group, which are fewer */
  const void *weights; /* int8_t or int16_t, [groups][blocks of outputs][inputs / many][outputs][many] */
  const int32_t *bias; /* [kinds of rows][kinds of columns][features], FTBNN_SLACK behind it; or null */
  const uint16_t *row_kinds, *column_kinds; /* of every output row and column */
  int kinds;          /* of columns */
  int bits, largest;  /* a value becomes round(value * 2^bits), from -largest to largest */
} ftbnn_integer_conv;

/* Write the rows that the windows of output row `y` read, with their padding, where those of output row
 * `y - 1` must be: bytes as they are, what a table has for each of them ([channels][256]), or values. */
void ftbnn_read_bytes(const ftbnn_integer_conv *conv, const uint8_t *pixels, int y, uint8_t *rows);
void ftbnn_read_table(const ftbnn_integer_conv *conv, const uint8_t *pixels, const int16_t *table, int y,
                      int16_t *rows);
void ftbnn_read_values(const ftbnn_integer_conv *conv, const ftbnn_value *x, int y, int16_t *rows,
                       uint32_t *saturated);

/* Convolve `count` output positions of row `y`, 1 to FTBNN_BLOCK, from the one at `left` on, to
 * [count][features + FTBNN_SLACK]: bytes or values of 16 bits, with weights of 8 or 16 bits. */
void ftbnn_convolve_bytes(const ftbnn_integer_conv *conv, const uint8_t *rows, int y, int left, int count,
                          int32_t *sums);
void ftbnn_convolve_8(const ftbnn_integer_conv *conv, const int16_t *rows, int y, int left, int count,
                      int32_t *sums);
void ftbnn_convolve_16(const ftbnn_integer_conv *conv, const int16_t *rows, int y, int left, int count,
                       int32_t *sums);

#endif
