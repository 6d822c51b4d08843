/* What the layers of a network have in common, in the arithmetic of ftbnn_arithmetic.h: single precision or
 * fixed point. What follows a layer, value by value, is in model.c. */
#ifndef FTBNN_LAYERS_H
#define FTBNN_LAYERS_H

#include "ftbnn_binary.h"

/* Output channels of a real convolution that are summed at once. */
enum { FTBNN_CHUNK = 32 };

/* The values that a window of a real convolution reads, beside where its first one lies: rows, `step` values
 * apart, of runs, `hop` values apart, of `length` values that lie one behind the other. */
typedef struct {
  int rows, runs, length;
  size_t step, hop;
} ftbnn_window;

#include "ftbnn_arithmetic.h"

/* The network's binary products, in model.c. */
extern const ftbnn_conv ftbnn_convs[FTBNN_BLOCKS];

/* Real convolution with zero padding on [height][width][channels]. A product of rows with a matrix is one
 * with a kernel of one position, on one row of positions. */
typedef struct {
  int height, width, channels;
  int out_width;
  int kernel_height, kernel_width;
  int stride_y, stride_x, dilation_y, dilation_x;
  int top, left;               /* positions of padding above and to the left of the input */
  int row_width;               /* positions in a row with its padding */
  int features, groups;
  const ftbnn_weight *weights; /* [kernel_height][kernel_width][channels / groups][features] */
  int shift;                   /* of the sums, in fixed point */
} ftbnn_real_conv;

typedef struct {
  uint32_t *windows;
  int32_t *sums;
  int16_t *narrow; /* or bytes */
  ftbnn_sum *wide;
  ftbnn_value *values;
  ftbnn_observer observe; /* or null */
  void *context;
  uint32_t saturated; /* whether a number left its range; in fixed point only */
} ftbnn_scratch;

/* Returns the rows that the windows of output row `y` read, with their padding, one every `*step` values:
 * where they lie in `x`, or copied to `rows`, in which those of output row `y - 1` must be. With `pixels`
 * the input is `table`, [channels][256], of each of them. */
const ftbnn_value *ftbnn_read_rows(const ftbnn_real_conv *conv, const ftbnn_value *x, const uint8_t *pixels,
                                   const ftbnn_weight *table, int y, ftbnn_value *rows, size_t *step);

/* Convolves `count` output positions, 1 to FTBNN_BLOCK, from the one at `left` on, with rows from
 * ftbnn_read_rows, to [count][features]. */
void ftbnn_convolve_real(const ftbnn_real_conv *conv, const ftbnn_value *rows, size_t step, int left, int count,
                         ftbnn_value *y, ftbnn_scratch *scratch);

/* Writes the signs of one position, [features of all groups], to those of the input of `conv`. Up to 7 values
 * behind them may be read. */
void ftbnn_pack(const ftbnn_conv *conv, const ftbnn_value *x, ftbnn_signs signs, int position);

#endif
